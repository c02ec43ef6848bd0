//! A lane whose head does not move: the claimer of its first position was stopped between its claim
//! and its mark. The other instances end that claim for it; it learns so when it wakes.

use core::mem::offset_of;

use sandpipe_abi::layout::InFlightEntry;

use super::Claimer;
use crate::claim_word::{Claim, advance_head, settle};
use crate::lane::claim_at;
use crate::memory::Memory;
use crate::sync::Ordering;

/// How long a lane is claimed to its end before the first claim is taken back: longer than a
/// claimer that runs needs, and not worth more patience, since taking it back harms nobody.
const BLOCKED_NS: u64 = 1_000_000;

/// The claim at which a lane has come to a halt, and since when; a word of 0 is no claim.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Blocked {
    word: u64,
    since_ns: u64,
}

impl<M: Memory> Claimer<M> {
    /// A look at a lane of which every position is claimed: ends the first claim if it has been the
    /// same for [`BLOCKED_NS`].
    #[cold]
    pub(crate) fn unblock(&mut self, lane: usize, now_ns: u64) {
        let layout = &self.layouts[self.family.index()];
        let head_at = layout.lanes[lane].head_at;
        let mask = u64::from(layout.lanes[lane].lane_slots) - 1;
        let head = self.own.word(head_at).load(Ordering::Relaxed);
        // SYNC(mark): Acquire: a claim that says copied has its message in an entry.
        let seen = self
            .own
            .word(claim_at(head_at, mask, head))
            .load(Ordering::Acquire);
        let blocked = &mut self.lanes[lane].blocked;
        if blocked.word != seen {
            *blocked = Blocked {
                word: seen,
                since_ns: now_ns,
            };
            return;
        }
        let claim = Claim::from_word(seen);
        let is_of_head = claim.position_after == head.wrapping_add(1);
        if !is_of_head || now_ns.saturating_sub(blocked.since_ns) < BLOCKED_NS {
            return;
        }
        settle(&self.own, layout, lane, head, claim);
        advance_head(&self.own, head_at, mask);
    }

    /// After a stop so long that others have taken this slot's claim back: the copy is void.
    #[cold]
    pub(super) fn forget_claim(&self, entry: usize) {
        let key = self.own.word(entry + offset_of!(InFlightEntry, key));
        key.store(0, Ordering::Relaxed);
        self.own.word(self.started_at).store(0, Ordering::Relaxed);
    }
}

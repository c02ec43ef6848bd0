//! Looks at what a family holds, without stopping anything: for status, for the kill tests, and for
//! whoever ends idle workers.

use core::mem::offset_of;
use core::ops::ControlFlow;

use sandpipe_abi::MessageId;
use sandpipe_abi::layout::{InFlightEntry, LaneHead, OWNER_ORPHAN};

use crate::bus::Bus;
use crate::chunk::Pool;
use crate::claim_word::{Claim, Stage, is_tentative, split_owner};
use crate::lane::{LaneReader, claim_at};
use crate::memory::Memory;
use crate::message::{Message, read_words};
use crate::sync::Ordering;
use crate::topology::{FamilyIndex, SlotIndex};

/// What one family holds at the moment. Exact while the family rests, a snapshot otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Messages that lie in the family's incoming lanes and are not taken.
    pub queued: Vec<MessageId>,
    /// Messages that were taken and are not acknowledged.
    pub in_flight: Vec<MessageId>,
    /// How many of those have no owner.
    pub orphans: usize,
    /// Chunks on loan.
    pub chunks_loaned: usize,
    /// Chunks that some consumer still holds.
    pub chunks_published: usize,
}

impl<M: Memory> Bus<M> {
    /// Counts what `family` holds; what is not mapped holds nothing. Reads only; no system call.
    #[must_use]
    pub fn audit(&self, family: FamilyIndex) -> Audit {
        let mut audit = Audit::default();
        let Some(segment) = self.segment(family) else {
            return audit;
        };
        let layout = &self.layouts()[family.index()];
        self.each_queued(family, |reader, position| {
            audit.queued.extend(id_of(&reader.read(position)));
            ControlFlow::Continue(())
        });
        for entry in 0..layout.entries {
            let at = layout.entry_at(entry);
            let word = |field: usize| segment.word(at + field).load(Ordering::Acquire);
            let key = word(offset_of!(InFlightEntry, key));
            if key == 0 || is_tentative(key) {
                continue;
            }
            let words = read_words(segment, at + offset_of!(InFlightEntry, message));
            audit.in_flight.extend(id_of(&words));
            let (owner, _) = split_owner(word(offset_of!(InFlightEntry, owner)));
            audit.orphans += usize::from(owner == OWNER_ORPHAN);
        }
        let pool = Pool::new(segment.clone(), self.layouts(), family, SlotIndex(0));
        (audit.chunks_loaned, audit.chunks_published) = pool.in_use(&self.holders_of(family));
        audit
    }

    /// Whether a message waits for `family`: in a lane, or left by the dead, due or not. What is
    /// not mapped has none. Reads only and, whatever stands there, no more than its lanes and
    /// entries are long; no system call.
    #[must_use]
    pub fn has_waiting(&self, family: FamilyIndex) -> bool {
        let Some(segment) = self.segment(family) else {
            return false;
        };
        let layout = &self.layouts()[family.index()];
        let mut entries = (0..layout.entries).map(|entry| layout.entry_at(entry));
        let mut found = entries.any(|at| {
            let owner = segment.word(at + offset_of!(InFlightEntry, owner));
            split_owner(owner.load(Ordering::Acquire)).0 == OWNER_ORPHAN
        });
        self.each_queued(family, |_, _| {
            found = true;
            ControlFlow::Break(())
        });
        found
    }

    /// Calls `each` with every position of a family's incoming lanes that holds a message which is
    /// not taken, until it breaks.
    fn each_queued(
        &self,
        family: FamilyIndex,
        mut each: impl FnMut(&LaneReader<M>, u64) -> ControlFlow<()>,
    ) {
        let Some(segment) = self.segment(family) else {
            return;
        };
        for lane in &self.layouts()[family.index()].lanes {
            let Some(reader) = self.lane_reader(lane) else {
                continue;
            };
            let word = |field: usize| segment.word(lane.head_at + field).load(Ordering::Acquire);
            let head = word(offset_of!(LaneHead, head));
            // An exclusive receiver lets its head lag behind what it has acknowledged.
            let first = head.max(word(offset_of!(LaneHead, cursor)));
            let Some(end) = head.checked_add(reader.lane_slots()) else {
                continue;
            };
            for position in first..end {
                let claim = segment.word(claim_at(lane.head_at, reader.mask(), position));
                let claim = Claim::from_word(claim.load(Ordering::Acquire));
                let claimed = claim.position_after == position + 1;
                if claimed && claim.stage == Stage::Confirmed {
                    continue;
                }
                if !reader.is_visible(position) {
                    break;
                }
                if each(&reader, position).is_break() {
                    return;
                }
            }
        }
    }
}

fn id_of(words: &[u64; 15]) -> Option<MessageId> {
    Message::from_words(words)
        .ok()
        .map(|message| message.header.id)
}

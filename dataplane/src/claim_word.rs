//! The words that say who has taken a message: the claim of a lane position, the owner of an
//! in-flight entry, and the head that follows what was copied out.

use core::mem::offset_of;

use sandpipe_abi::layout::LaneHead;

use crate::lane::claim_at;
use crate::memory::Memory;
use crate::sync::Ordering;

/// A claim word: position + 1, the claiming slot, and whether its message was copied out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) position_after: u64,
    pub(crate) slot: u16,
    pub(crate) copied: bool,
}

impl Claim {
    /// The slot of a claim that recovery took back: anybody may claim the position again.
    pub(crate) const RETURNED: u16 = 0x7fff;

    pub(crate) fn from_word(word: u64) -> Claim {
        let slot = (word >> 1 & 0x7fff) as u16;
        Claim {
            position_after: word >> 16,
            slot,
            copied: word & 1 != 0,
        }
    }

    pub(crate) fn to_word(self) -> u64 {
        self.position_after << 16 | u64::from(self.slot) << 1 | u64::from(self.copied)
    }
}

/// The owner word of an in-flight entry.
pub(crate) fn owner_word(owner: u64, attempt: u64) -> u64 {
    owner | attempt.min(0xffff) << 16
}

/// Slot + 1 (or [`OWNER_ORPHAN`], or 0: free) and attempt of an owner word.
pub(crate) fn split_owner(word: u64) -> (u64, u64) {
    (word & 0xffff, word >> 16 & 0xffff)
}

/// Moves the head of a lane over the prefix that was copied out; every instance helps. How far it
/// went.
#[inline]
pub(crate) fn advance_head(own: &impl Memory, head_at: usize, mask: u64) -> u64 {
    let word = own.word(head_at + offset_of!(LaneHead, head));
    let mut head = word.load(Ordering::Relaxed);
    let mut moved = 0;
    loop {
        // SYNC(mark): Acquire: what the copying instance has done comes before the head below.
        let claim = own
            .word(claim_at(head_at, mask, head))
            .load(Ordering::Acquire);
        let done = Claim {
            copied: true,
            ..Claim::from_word(claim)
        };
        // A dead family may have left any head at all: one that has no successor stays.
        let Some(next) = head.checked_add(1) else {
            return moved;
        };
        if claim != done.to_word() || done.position_after != next {
            return moved;
        }
        // SYNC(head): Release pairs with the producer's Acquire of free slots.
        // SYNC(release): and with its Acquire before it looks for the entry.
        match word.compare_exchange(head, next, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => (head, moved) = (next, moved + 1),
            Err(now) => (head, moved) = (now, moved + 1),
        }
    }
}

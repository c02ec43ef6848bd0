//! The words that say who has taken a message: the claim of a lane position, the owner of an
//! in-flight entry, and the head that follows what was confirmed.

use core::mem::offset_of;

use sandpipe_abi::layout::{InFlightEntry, LaneHead, OWNER_ORPHAN};

use crate::chunk::entry_key;
use crate::family_layout::{FamilyLayout, IncomingLane};
use crate::lane::claim_at;
use crate::memory::Memory;
use crate::sync::Ordering;

/// How far the claimer of a position has come. Each step is an exchange, so that a claimer which
/// was stopped before it learns when it wakes what others have decided meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It copies the message; anybody may take the position back.
    Claimed = 0,
    /// The message is the claimer's for good; the key of its entry is still tentative.
    Copied = 1,
    /// The entry holds the message; the head may pass.
    Confirmed = 2,
}

/// A claim word: position + 1, the claiming slot, and how far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) position_after: u64,
    pub(crate) slot: u16,
    pub(crate) stage: Stage,
}

impl Claim {
    /// The slot of a claim that was taken back: anybody may claim the position again.
    pub(crate) const RETURNED: u16 = 0x3fff;

    pub(crate) fn from_word(word: u64) -> Claim {
        let stage = match word & 3 {
            0 => Stage::Claimed,
            1 => Stage::Copied,
            _ => Stage::Confirmed,
        };
        Claim {
            position_after: word >> 16,
            slot: (word >> 2 & 0x3fff) as u16,
            stage,
        }
    }

    pub(crate) fn to_word(self) -> u64 {
        self.position_after << 16 | u64::from(self.slot) << 2 | self.stage as u64
    }

    /// The same claim, further on.
    pub(crate) fn at(self, stage: Stage) -> Claim {
        Claim { stage, ..self }
    }
}

/// The key of an entry whose message was copied while it is not decided whether it is the copier's.
/// It means nothing unless the claim word says [`Stage::Copied`].
pub(crate) fn tentative(key: u64) -> u64 {
    !key // a key has far fewer lanes than would reach its highest bit
}

pub(crate) fn is_tentative(key: u64) -> bool {
    key >> 63 != 0
}

/// Ends a claimed position for its claimer, which is dead or does not move: what was not decided is
/// taken back, what was decided is confirmed. Others may do the same, and the claimer may go on;
/// whether it was this call that took the position back or confirmed it.
#[cold]
pub(crate) fn settle(
    own: &impl Memory,
    layout: &FamilyLayout,
    lane: usize,
    position: u64,
    seen: Claim,
) -> bool {
    let IncomingLane {
        head_at,
        lane_slots,
        ..
    } = layout.lanes[lane];
    let word = own.word(claim_at(head_at, u64::from(lane_slots) - 1, position));
    let next = match seen.stage {
        Stage::Confirmed => return false,
        Stage::Claimed => Claim {
            slot: Claim::RETURNED,
            ..seen
        },
        Stage::Copied => {
            let key = entry_key(lane, position);
            for entry in 0..layout.entries {
                let at = layout.entry_at(entry) + offset_of!(InFlightEntry, key);
                // SYNC(key): Release, as the claimer's own store: who sees the key sees the
                // message, which whoever has read `Copied` by an Acquire sees.
                let _ = own.word(at).compare_exchange(
                    tentative(key),
                    key,
                    Ordering::Release,
                    Ordering::Relaxed,
                );
            }
            seen.at(Stage::Confirmed)
        }
    };
    // SYNC(mark): Release: the key is there before anybody moves the head.
    word.compare_exchange(
        seen.to_word(),
        next.to_word(),
        Ordering::Release,
        Ordering::Relaxed,
    )
    .is_ok()
}

/// The owner word of an in-flight entry.
pub(crate) fn owner_word(owner: u64, attempt: u64) -> u64 {
    owner | attempt.min(0xffff) << 16
}

/// Slot + 1 (or [`OWNER_ORPHAN`], or 0: free) and attempt of an owner word.
pub(crate) fn split_owner(word: u64) -> (u64, u64) {
    (word & 0xffff, word >> 16 & 0xffff)
}

/// The owner word of a message that nobody has and that is due at a time, 0 = at once. The time
/// takes the top 32 bits, in units of about a millisecond: owner, attempt and time are one store.
pub(crate) fn orphan_word(attempt: u64, due_ns: u64) -> u64 {
    // Rounded up; 0 is kept for "at once".
    let units = (due_ns >> DUE_UNIT_SHIFT) as u32;
    let units = if due_ns == 0 {
        0
    } else {
        units.wrapping_add(1).max(1)
    };
    owner_word(OWNER_ORPHAN, attempt) | u64::from(units) << 32
}

/// Whether an orphan's time has come. Times wrap after 52 days; a pause is shorter than half that.
pub(crate) fn is_due(orphan: u64, now_ns: u64) -> bool {
    let units = (orphan >> 32) as u32;
    let now = (now_ns >> DUE_UNIT_SHIFT) as u32;
    units == 0 || now.wrapping_sub(units).cast_signed() >= 0
}

/// Nanoseconds of a unit of an orphan's time: 2^20.
const DUE_UNIT_SHIFT: u32 = 20;

/// Moves the head of a lane over the prefix that was confirmed; every instance helps. How far it
/// went.
#[inline]
pub(crate) fn advance_head(own: &impl Memory, head_at: usize, mask: u64) -> u64 {
    let word = own.word(head_at + offset_of!(LaneHead, head));
    let mut head = word.load(Ordering::Relaxed);
    let mut moved = 0;
    loop {
        // SYNC(mark): Acquire: what the claiming instance has done comes before the head below.
        let claim = own
            .word(claim_at(head_at, mask, head))
            .load(Ordering::Acquire);
        // A dead family may have left any head at all: one that has no successor stays.
        let Some(next) = head.checked_add(1) else {
            return moved;
        };
        if claim >> 16 != next || claim & 3 != Stage::Confirmed as u64 {
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

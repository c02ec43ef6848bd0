//! One lane: a ring from one instance slot to one queue, one writer, one reading family.
//!
//! The producer owns the slots and its tail; the consumer owns the head. A slot holds the message
//! of position `p` once its stamp is `p + 1`. Nothing here blocks or makes a system call.

use core::mem::{offset_of, size_of};

use sandpipe_abi::layout::{LaneHead, LaneSlot};

use crate::memory::Memory;
use crate::message::{Message, MessageWords, SharedWords, read_words};
use crate::refusal::Violation;
use crate::sync::{Ordering, kill_point};

/// Where a lane's parts are.
#[derive(Clone, Debug)]
pub(crate) struct LaneWriter<M> {
    own: M,
    slots_at: usize,
    mask: u64,
    tail_at: usize,
    /// The consumer's segment, once it is mapped, and the offset of its head for this lane.
    consumer: Option<M>,
    head_at: usize,
    head_seen: u64,
    /// Next position to stamp.
    pos: u64,
    /// Next position to stage; those from `pos` on are staged.
    next: u64,
}

impl<M: Memory> LaneWriter<M> {
    pub(crate) fn new(
        own: M,
        slots_at: usize,
        lane_slots: u32,
        tail_at: usize,
        consumer: Option<M>,
        head_at: usize,
    ) -> LaneWriter<M> {
        let pos = own.word(tail_at).load(Ordering::Relaxed);
        let mask = u64::from(lane_slots) - 1;
        LaneWriter {
            own,
            slots_at,
            mask,
            tail_at,
            consumer,
            head_at,
            head_seen: 0,
            pos,
            next: pos,
        }
    }

    /// Whether one more message can be staged.
    ///
    /// # Errors
    /// The consumer's head goes backwards, or past what was published: nothing is overwritten on
    /// the word of one who lies.
    #[inline]
    pub(crate) fn has_room(&mut self) -> Result<bool, Violation> {
        let next = self.next + 1;
        if next.wrapping_sub(self.head_seen) <= self.mask + 1 {
            return Ok(true);
        }
        if let Some(consumer) = &self.consumer {
            // SYNC(head): Acquire pairs with the consumer's Release when it frees slots, so that
            // its reads of a slot are over before the slot is written again.
            let head = consumer.word(self.head_at).load(Ordering::Acquire);
            if head < self.head_seen || head > self.pos {
                return Err(Violation::Head {
                    head,
                    seen: self.head_seen,
                    tail: self.pos,
                });
            }
            self.head_seen = head;
        }
        Ok(next.wrapping_sub(self.head_seen) <= self.mask + 1)
    }

    /// Lets `write` write a message behind the staged ones; invisible, since the stamp is not
    /// touched.
    #[inline(always)]
    pub(crate) fn stage(&mut self, write: impl FnOnce(&SharedWords)) -> u64 {
        let position = self.next;
        let at = slot_at(self.slots_at, self.mask, position) + offset_of!(LaneSlot, id);
        self.own.note_write(at);
        write(self.own.array(at));
        self.next += 1;
        position
    }

    /// Makes the oldest staged message visible and records the position for the next holder of the
    /// slot.
    #[inline]
    pub(crate) fn publish_next(&mut self) {
        debug_assert!(self.pos < self.next);
        let at = slot_at(self.slots_at, self.mask, self.pos);
        self.pos += 1;
        // SYNC(stamp): Release pairs with the reader's Acquire: it sees the whole message.
        self.own.word(at).store(self.pos, Ordering::Release);
        kill_point();
        self.own
            .word(self.tail_at)
            .store(self.pos, Ordering::Relaxed);
        kill_point();
    }

    /// Forgets what was staged and not stamped.
    pub(crate) fn discard_staged(&mut self) {
        self.next = self.pos;
    }
}

/// What [`LaneReader::look`] saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// The message of this position.
    Visible,
    /// Not yet.
    Empty,
    /// What no honest producer writes.
    Lie(Violation),
}

/// Reads one lane of another family.
#[derive(Clone, Debug)]
pub(crate) struct LaneReader<M> {
    source: M,
    slots_at: usize,
    mask: u64,
}

impl<M: Memory> LaneReader<M> {
    pub(crate) fn new(source: M, slots_at: usize, lane_slots: u32) -> LaneReader<M> {
        LaneReader {
            source,
            slots_at,
            mask: u64::from(lane_slots) - 1,
        }
    }

    pub(crate) fn lane_slots(&self) -> u64 {
        self.mask + 1
    }

    pub(crate) fn mask(&self) -> u64 {
        self.mask
    }

    /// Whether the message of this position is visible.
    #[inline]
    pub(crate) fn is_visible(&self, position: u64) -> bool {
        let at = slot_at(self.slots_at, self.mask, position);
        // SYNC(stamp): Acquire pairs with the producer's Release.
        self.source.word(at).load(Ordering::Acquire) == position.wrapping_add(1)
    }

    /// What the slot of this position says, which is its producer's alone to write: the message of
    /// this position, that of one lane's length before it, or something that is a lie.
    #[inline]
    pub(crate) fn look(&self, position: u64) -> Look {
        let at = slot_at(self.slots_at, self.mask, position);
        // SYNC(stamp): Acquire pairs with the producer's Release.
        let stamp = self.source.word(at).load(Ordering::Acquire);
        let next = position.wrapping_add(1);
        if stamp == next {
            Look::Visible
        } else if stamp == next.saturating_sub(self.lane_slots()) {
            Look::Empty
        } else {
            Look::Lie(Violation::Stamp { position, stamp })
        }
    }

    /// Copies a visible message out.
    #[inline]
    pub(crate) fn read(&self, position: u64) -> MessageWords {
        let at = slot_at(self.slots_at, self.mask, position) + offset_of!(LaneSlot, id);
        read_words(&self.source, at)
    }

    /// Copies a visible message out, checked.
    #[inline(always)]
    pub(crate) fn parse(&self, position: u64, message: &mut Message) -> Result<(), Violation> {
        let at = slot_at(self.slots_at, self.mask, position) + offset_of!(LaneSlot, id);
        message.parse_at(&self.source, at)
    }
}

/// Offset of the slot of a position.
#[inline]
pub(crate) fn slot_at(slots_at: usize, mask: u64, position: u64) -> usize {
    slots_at + (position & mask) as usize * size_of::<LaneSlot>()
}

/// Offset of the claim word of a position, behind the lane's head.
#[inline]
pub(crate) fn claim_at(head_at: usize, mask: u64, position: u64) -> usize {
    head_at + size_of::<LaneHead>() + (position & mask) as usize * 8
}

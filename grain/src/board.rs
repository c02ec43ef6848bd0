//! What the worker and its instances tell each other: a page that only they share.
//!
//! Each word has one writer at a time: a slot's words its instance while it lives, the worker
//! before and after; the reasons the worker. Losing the board loses no message: it decides who
//! waits and what a failure is called.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use sandpipe::{Delivery, Mapping, Memory, MessageId, SlotIndex, futex, segment};

use crate::process::{self, Ended};

/// What an instance slot does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotUse {
    /// Nobody holds it.
    Free,
    /// Its instance waits for an event.
    Idle,
    /// Its instance handles an event.
    Busy,
    /// Its instance is done and about to end.
    Leaving,
}

/// Why an attempt ended without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The process ended.
    Ended(Ended),
    /// It was killed after its time limit.
    TimeLimit,
}

/// The shared page, see the module.
#[derive(Clone, Debug)]
pub(crate) struct Board {
    page: Mapping,
    slots: u16,
    concurrency: usize,
}

const DRAIN_AT: usize = 8;
const NEXT_REASON_AT: usize = 16;
const USES_AT: usize = 64;

impl Board {
    /// A board for `slots` slots, the worker's own 0 included.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn new(slots: u16, concurrency: u16) -> io::Result<Board> {
        let slots_bytes = usize::from(slots) * (8 + 16);
        let bytes = (USES_AT + slots_bytes + usize::from(slots) * 2 * REASON_BYTES)
            .next_multiple_of(sandpipe::layout::PAGE);
        let page = Mapping::new(
            segment::create("sandpipe-board", bytes)?,
            bytes,
            true,
            bytes,
        )?;
        let concurrency = usize::from(concurrency);
        Ok(Board {
            page,
            slots,
            concurrency,
        })
    }

    /// The page itself.
    pub(crate) fn page(&self) -> &Mapping {
        &self.page
    }

    /// Wakes the worker: one system call.
    pub(crate) fn nudge(&self) {
        let word = process::nudge_word(&self.page);
        word.fetch_add(1, Ordering::SeqCst);
        futex::wake(word, 1);
    }

    /// Asks every idle instance to end.
    pub(crate) fn drain(&self) {
        self.page.word(DRAIN_AT).store(1, Ordering::SeqCst);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.page.word(DRAIN_AT).load(Ordering::Relaxed) != 0
    }

    pub(crate) fn set_use(&self, slot: SlotIndex, what: SlotUse) {
        self.use_word(slot).store(what as u64, Ordering::SeqCst);
    }

    pub(crate) fn slot_use(&self, slot: SlotIndex) -> SlotUse {
        use_of(self.use_word(slot).load(Ordering::SeqCst))
    }

    /// Makes an idle slot busy unless `concurrency` others are; two that try at once may both be
    /// refused, and try again.
    pub(crate) fn enter(&self, slot: SlotIndex) -> bool {
        self.set_use(slot, SlotUse::Busy);
        let within = self.count(SlotUse::Busy) <= self.concurrency;
        if !within {
            self.set_use(slot, SlotUse::Idle);
        }
        within
    }

    /// Whether one more instance may be busy.
    pub(crate) fn has_room(&self) -> bool {
        self.count(SlotUse::Busy) < self.concurrency
    }

    /// How many slots do this.
    pub(crate) fn count(&self, what: SlotUse) -> usize {
        let slots = (1..self.slots).map(SlotIndex);
        slots.filter(|&slot| self.slot_use(slot) == what).count()
    }

    /// Notes which event a slot handles.
    pub(crate) fn note(&self, slot: SlotIndex, delivery: &Delivery) {
        self.put_id(self.message_at(slot), delivery.message.header.id);
    }

    /// Keeps why the event of a slot was not answered, for whoever gives it up.
    pub(crate) fn keep_reason(&self, slot: SlotIndex, reason: Reason) {
        let id = self.id(self.message_at(slot));
        let next = self.page.word(NEXT_REASON_AT);
        let index = next.fetch_add(1, Ordering::Relaxed) % (2 * u64::from(self.slots));
        let at = self.reason_at(index as usize);
        self.put_id(at, id);
        self.page
            .word(at + 16)
            .store(reason.to_word(), Ordering::Release);
    }

    /// Why the last attempt of an event ended, if that is still known.
    pub(crate) fn reason(&self, id: MessageId) -> Option<Reason> {
        let newest = self.page.word(NEXT_REASON_AT).load(Ordering::Acquire) as usize;
        let kept = 2 * usize::from(self.slots);
        let places = (1..=kept.min(newest)).map(|back| self.reason_at((newest - back) % kept));
        let mut of_event = places.filter(|&at| self.id(at) == id);
        Reason::from_word(
            self.page
                .word(of_event.next()? + 16)
                .load(Ordering::Acquire),
        )
    }

    fn use_word(&self, slot: SlotIndex) -> &AtomicU64 {
        self.page.word(USES_AT + usize::from(slot.0) * 8)
    }

    fn message_at(&self, slot: SlotIndex) -> usize {
        USES_AT + usize::from(self.slots) * 8 + usize::from(slot.0) * 16
    }

    fn reason_at(&self, index: usize) -> usize {
        USES_AT + usize::from(self.slots) * 24 + index * REASON_BYTES
    }

    fn put_id(&self, at: usize, id: MessageId) {
        let [low, high] = id.words();
        self.page.word(at).store(low, Ordering::Relaxed);
        self.page.word(at + 8).store(high, Ordering::Relaxed);
    }

    fn id(&self, at: usize) -> MessageId {
        let word = |at: usize| self.page.word(at).load(Ordering::Relaxed);
        MessageId::from_words([word(at), word(at + 8)])
    }
}

/// An event's id and a reason.
const REASON_BYTES: usize = 24;

fn use_of(word: u64) -> SlotUse {
    match word {
        1 => SlotUse::Idle,
        2 => SlotUse::Busy,
        3 => SlotUse::Leaving,
        _ => SlotUse::Free,
    }
}

impl Reason {
    fn to_word(self) -> u64 {
        match self {
            Reason::Ended(Ended::Exited(code)) => 1 << 32 | u64::from(code as u32),
            Reason::Ended(Ended::Signalled(signal)) => 2 << 32 | u64::from(signal as u32),
            Reason::TimeLimit => 3 << 32,
        }
    }

    fn from_word(word: u64) -> Option<Reason> {
        let value = word as u32 as i32;
        match word >> 32 {
            1 => Some(Reason::Ended(Ended::Exited(value))),
            2 => Some(Reason::Ended(Ended::Signalled(value))),
            3 => Some(Reason::TimeLimit),
            _ => None,
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Reason::Ended(Ended::Exited(0)) => f.write_str("it ended without an answer"),
            Reason::Ended(Ended::Exited(code)) => write!(f, "it ended with exit code {code}"),
            Reason::Ended(Ended::Signalled(signal)) => write!(f, "signal {signal} killed it"),
            Reason::TimeLimit => f.write_str("it passed its time limit"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_concurrency_slots_are_busy() {
        let board = Board::new(5, 2).unwrap();
        let entered = (1..5).filter(|&slot| board.enter(SlotIndex(slot))).count();
        assert_eq!((entered, board.has_room()), (2, false));
        board.set_use(SlotIndex(1), SlotUse::Leaving);
        assert!(board.has_room() && board.enter(SlotIndex(4)));
    }

    #[test]
    fn the_newest_reason_of_an_event_is_found() {
        let board = Board::new(2, 1).unwrap();
        let slot = SlotIndex(1);
        assert_eq!(board.reason(MessageId(0)), None);
        for (id, reason) in [
            (7, Reason::TimeLimit),
            (8, Reason::TimeLimit),
            (7, Reason::Ended(Ended::Exited(3))),
            (7, Reason::Ended(Ended::Signalled(9))),
        ] {
            board.put_id(board.message_at(slot), MessageId(id));
            board.keep_reason(slot, reason);
        }
        let newest = board.reason(MessageId(7));
        assert_eq!(newest, Some(Reason::Ended(Ended::Signalled(9))));
        assert_eq!(board.reason(MessageId(8)), Some(Reason::TimeLimit));
        board.keep_reason(slot, Reason::TimeLimit);
        assert_eq!(board.reason(MessageId(8)), Some(Reason::TimeLimit));
    }
}

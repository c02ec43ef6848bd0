//! Bells: how a publisher wakes a parked consumer, and how a consumer parks without missing one.
//!
//! A consumer announces itself (`parked`), fences, looks at its lanes once more and sleeps on the
//! bell. A publisher stamps, fences, and looks at `parked`: zero means awake, and no system call
//! is made. Otherwise it takes one announcement off, moves the bell and wakes one sleeper; so many
//! messages to one sleeper cost one wake.
//!
//! `parked` holds two numbers: how many are announced (low half), and how many rings have taken
//! announcements off so far (high half, the *turn*). Whoever takes its own announcement back does
//! so only while the turn is the one in which it announced itself: otherwise a ring may have taken
//! it off already, and the count might be another's. So the count never falls below the number of
//! sleepers and no wake is missed. Where it is too high (a sleeper died, or could not know whether
//! it was taken off), the next ring finds nobody asleep and sets it to zero: one empty wake. The
//! hint page is writable by every process of the application; its loss or forgery costs a rescan.

use core::mem::{offset_of, size_of};
use core::time::Duration;

use sandpipe_abi::layout::HintBlock;

use crate::memory::Memory;
use crate::sync::{AtomicU64, Ordering, full_fence};
use crate::topology::FamilyIndex;

/// The longest sleep without a look at the lanes: a producer may have been stopped between its
/// commit and its bell.
pub const PARK_MAX: Duration = Duration::from_millis(50);

/// The bell of one queue.
#[derive(Clone, Debug)]
pub struct Bell<M> {
    hints: M,
    at: usize,
}

impl<M: Memory> Bell<M> {
    pub(crate) fn new(hints: M, queue: FamilyIndex) -> Bell<M> {
        Bell {
            hints,
            at: queue.index() * size_of::<HintBlock>(),
        }
    }

    fn word(&self) -> &AtomicU64 {
        self.hints.word(self.at + offset_of!(HintBlock, bell))
    }

    fn parked(&self) -> &AtomicU64 {
        self.hints.word(self.at + offset_of!(HintBlock, parked))
    }

    /// Wakes one parked consumer if there is any. The caller has stamped and fenced
    /// ([`full_fence`]); one load and no system call while the consumer is awake.
    #[inline]
    pub(crate) fn ring_if_parked(&self) {
        // SYNC(park): this load comes after the publisher's full fence; the parker's increment
        // comes before its own. One of the two sees the other.
        if count_of(self.parked().load(Ordering::Relaxed)) != 0 {
            self.ring_one();
        }
    }

    #[cold]
    fn ring_one(&self) {
        let Some(left) = self.take_off(1) else { return };
        self.word().fetch_add(1, Ordering::SeqCst);
        if kernel::wake(self.word(), 1) == 0 && count_of(left) != 0 {
            // Nobody sleeps. Whoever is still counted announced itself before the bell moved, since
            // a later one would have changed the word: it will not sleep on what it has seen, or
            // it is dead. If the exchange fails, a later ring tries.
            let none = word_of(turn_of(left).wrapping_add(1), 0);
            let _ = self
                .parked()
                .compare_exchange(left, none, Ordering::SeqCst, Ordering::Relaxed);
        }
    }

    /// Takes up to `count` announcements off and begins a new turn; `None` if there is none.
    fn take_off(&self, count: u32) -> Option<u64> {
        let mut parked = self.parked().load(Ordering::Relaxed);
        loop {
            let rest = match count_of(parked) {
                0 => return None,
                announced => announced.saturating_sub(count),
            };
            let left = word_of(turn_of(parked).wrapping_add(1), rest);
            let taken = self.parked().compare_exchange_weak(
                parked,
                left,
                Ordering::SeqCst,
                Ordering::Relaxed,
            );
            match taken {
                Ok(_) => return Some(left),
                Err(now) => parked = now,
            }
        }
    }

    /// Makes every consumer look again: after a recovery, a peer's restart, or from another thread
    /// of the same process. One system call; does not block.
    pub fn ring_all(&self) {
        // All are woken, so all are taken off; who announces itself later is not among them.
        self.take_off(u32::MAX);
        self.word().fetch_add(1, Ordering::SeqCst);
        kernel::wake(self.word(), u32::MAX >> 1);
    }

    /// Moves the bell without a wake: from a signal handler of the process that parks on it.
    pub fn touch(&self) {
        self.word().fetch_add(1, Ordering::SeqCst);
    }

    /// Announces a sleeper. The caller then looks at everything it waits for once more and either
    /// calls [`Parking::sleep`] or [`Parking::cancel`].
    #[must_use = "an announced sleeper sleeps or cancels"]
    pub fn prepare(&self) -> Parking<'_, M> {
        let seen = self.word().load(Ordering::SeqCst);
        let before = self.parked().fetch_add(1, Ordering::SeqCst);
        // SYNC(park): pairs with the publisher's full fence between its stamp and its look here.
        full_fence();
        Parking {
            bell: self,
            seen,
            turn: turn_of(before),
        }
    }

    #[cfg(not(loom))]
    pub(crate) fn resume(&self, kept: Announcement) -> Parking<'_, M> {
        let Announcement { seen, turn } = kept;
        let bell = self;
        Parking { bell, seen, turn }
    }
}

/// What a [`Parking`] knows, for a sleeper that cannot borrow its bell all the time.
#[cfg(not(loom))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Announcement {
    seen: u64,
    turn: u32,
}

/// How many sleepers are announced.
fn count_of(parked: u64) -> u32 {
    parked as u32
}

/// How many rings have taken announcements off.
fn turn_of(parked: u64) -> u32 {
    (parked >> 32) as u32
}

fn word_of(turn: u32, count: u32) -> u64 {
    u64::from(turn) << 32 | u64::from(count)
}

/// An announced sleeper.
#[derive(Debug)]
pub struct Parking<'b, M> {
    bell: &'b Bell<M>,
    seen: u64,
    turn: u32,
}

impl<M: Memory> Parking<'_, M> {
    /// Sleeps until a ring, a signal, or `timeout` (bounded by [`PARK_MAX`]): one system call.
    pub fn sleep(self, timeout: Duration) {
        kernel::sleep(self.bell.word(), self.seen as u32, timeout.min(PARK_MAX));
        self.cancel();
    }

    /// The word to sleep on, for a [`crate::wait::Waiter`]; [`Parking::cancel`] afterwards.
    #[cfg(not(loom))]
    #[must_use]
    pub fn watched(&self) -> crate::wait::Watched<'_> {
        crate::wait::Watched {
            word: self.bell.word(),
            seen: self.seen as u32,
        }
    }

    #[cfg(not(loom))]
    pub(crate) fn keep(self) -> Announcement {
        let Parking { seen, turn, .. } = self;
        Announcement { seen, turn }
    }

    /// Takes the announcement back, unless a ring since then may have done so: after a sleep, or
    /// instead of one.
    pub fn cancel(self) {
        let mut parked = self.bell.parked().load(Ordering::Relaxed);
        while turn_of(parked) == self.turn && count_of(parked) != 0 {
            let back = self.bell.parked().compare_exchange_weak(
                parked,
                parked - 1,
                Ordering::SeqCst,
                Ordering::Relaxed,
            );
            match back {
                Ok(_) => return,
                Err(now) => parked = now,
            }
        }
    }
}

#[cfg(not(loom))]
mod kernel {
    use core::sync::atomic::AtomicU64;
    use core::time::Duration;

    use crate::futex;

    pub(super) fn sleep(word: &AtomicU64, seen: u32, timeout: Duration) {
        futex::wait(word, seen, timeout);
    }

    /// Wakes up to `count` sleepers; how many there were.
    pub(super) fn wake(word: &AtomicU64, count: u32) -> usize {
        futex::wake(word, count)
    }
}

/// The kernel's side of a futex for loom: the look at the word and the sleep are one step. A
/// sleeper that nobody wakes never wakes up: no time-out hides a missed bell.
#[cfg(loom)]
mod kernel {
    use core::time::Duration;
    use std::vec::Vec;

    use loom::sync::Mutex;
    use loom::sync::atomic::{AtomicU64, Ordering};

    loom::lazy_static! {
        /// Sleepers on any word, oldest first, and the next one's number.
        static ref ASLEEP: Mutex<(Vec<(usize, u64)>, u64)> = Mutex::new((Vec::new(), 0));
    }

    pub(super) fn sleep(word: &AtomicU64, seen: u32, _timeout: Duration) {
        let address = core::ptr::from_ref(word).addr();
        let own = {
            let mut asleep = ASLEEP.lock().unwrap();
            if word.load(Ordering::SeqCst) as u32 != seen {
                return;
            }
            asleep.1 += 1;
            let own = (address, asleep.1);
            asleep.0.push(own);
            own
        };
        while ASLEEP.lock().unwrap().0.contains(&own) {
            loom::thread::yield_now();
        }
    }

    pub(super) fn wake(word: &AtomicU64, count: u32) -> usize {
        let address = core::ptr::from_ref(word).addr();
        let mut asleep = ASLEEP.lock().unwrap();
        let before = asleep.0.len();
        let mut left = count;
        asleep.0.retain(|sleeper| {
            let woken = sleeper.0 == address && left != 0;
            left -= u32::from(woken);
            !woken
        });
        before - asleep.0.len()
    }
}

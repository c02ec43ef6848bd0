//! Bells: how a publisher wakes a parked consumer, and how a consumer parks without missing one.
//!
//! A consumer announces itself (`parked` + 1), fences, looks at its lanes once more and sleeps on
//! the bell. A publisher stamps, fences, and looks at `parked`: zero means awake, and no system
//! call is made. Otherwise it takes one waiter off the count, moves the bell and wakes one.
//! `parked` never falls below the number of sleepers, so a wake is never missed; where it is too
//! high (a sleeper died) a later ring makes one empty wake and the count is right again. The hint
//! page is writable by every process of the application; its loss or forgery costs a rescan.

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
        if self.parked().load(Ordering::Relaxed) != 0 {
            self.ring_one();
        }
    }

    #[cold]
    fn ring_one(&self) {
        let mut parked = self.parked().load(Ordering::Relaxed);
        while parked != 0 {
            let taken = self.parked().compare_exchange_weak(
                parked,
                parked - 1,
                Ordering::SeqCst,
                Ordering::Relaxed,
            );
            match taken {
                Ok(_) => {
                    self.word().fetch_add(1, Ordering::SeqCst);
                    sleep::wake_one(self.word());
                    return;
                }
                Err(now) => parked = now,
            }
        }
    }

    /// Makes every consumer look again: after a recovery, a peer's restart, or from another thread
    /// of the same process. One system call; does not block.
    pub fn ring_all(&self) {
        self.word().fetch_add(1, Ordering::SeqCst);
        sleep::wake_all(self.word());
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
        self.parked().fetch_add(1, Ordering::SeqCst);
        // SYNC(park): pairs with the publisher's full fence between its stamp and its look here.
        full_fence();
        Parking { bell: self, seen }
    }
}

/// An announced sleeper.
#[derive(Debug)]
pub struct Parking<'b, M> {
    bell: &'b Bell<M>,
    seen: u64,
}

impl<M: Memory> Parking<'_, M> {
    /// Sleeps until a ring, a signal, or `timeout` (bounded by [`PARK_MAX`]): one system call.
    pub fn sleep(self, timeout: Duration) {
        let timed_out = sleep::sleep(self.bell.word(), self.seen as u32, timeout.min(PARK_MAX));
        if timed_out {
            self.cancel();
        }
    }

    /// Takes the announcement back, unless a ringer has done so already.
    pub fn cancel(self) {
        // A ring since the announcement took one waiter off, perhaps us: too high a count costs an
        // empty wake, too low a count would cost a sleeper its bell.
        if self.bell.word().load(Ordering::SeqCst) != self.seen {
            return;
        }
        let parked = self.bell.parked();
        let now = parked.load(Ordering::Relaxed);
        if now != 0 {
            let _ = parked.compare_exchange(now, now - 1, Ordering::SeqCst, Ordering::Relaxed);
        }
    }
}

#[cfg(not(loom))]
mod sleep {
    use core::sync::atomic::AtomicU64;
    use core::time::Duration;

    use crate::futex::{self, Woken};

    pub(super) fn sleep(word: &AtomicU64, seen: u32, timeout: Duration) -> bool {
        // After a signal nobody has taken us off the count either: treated like a time-out.
        matches!(
            futex::wait(word, seen, timeout),
            Woken::TimedOut | Woken::Interrupted
        )
    }

    pub(super) fn wake_one(word: &AtomicU64) {
        futex::wake(word, 1);
    }

    pub(super) fn wake_all(word: &AtomicU64) {
        futex::wake(word, u32::MAX >> 1);
    }
}

/// Under loom a sleeper that nobody rings never wakes up: no time-out hides a missed bell.
#[cfg(loom)]
mod sleep {
    use core::time::Duration;

    use loom::sync::atomic::{AtomicU64, Ordering};

    pub(super) fn sleep(word: &AtomicU64, seen: u32, _timeout: Duration) -> bool {
        while word.load(Ordering::SeqCst) as u32 == seen {
            loom::thread::yield_now();
        }
        false
    }

    pub(super) fn wake_one(_word: &AtomicU64) {}

    pub(super) fn wake_all(_word: &AtomicU64) {}
}

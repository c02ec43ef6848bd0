//! Sleeps on a bell that are counted: how many, what ended them, how often was looked in vain.
//!
//! What a sleep counts it counts before and after it: an awake consumer adds nothing.

use std::io;
use std::time::Duration;

use super::{Token, Waiter};
use crate::bell::{PARK_MAX, Parking};
use crate::counters::{Count, Tally};
use crate::futex::{self, Woken};
use crate::memory::Memory;

impl<M: Memory> Tally<M> {
    /// Sleeps on a bell alone until a ring, a signal, or `timeout` (bounded by [`PARK_MAX`]): one
    /// system call. `looks` at the lanes since the last message have found nothing. The caller is
    /// the slot's only holder; if it dies asleep, the sleep is counted and its end is not. Whether
    /// a ring ended it.
    pub fn sleep(&self, parking: Parking<'_, M>, looks: u64, timeout: Duration) -> bool {
        self.fall_asleep(looks);
        let bell = parking.watched();
        let how = futex::wait(bell.word, bell.seen, timeout.min(PARK_MAX));
        parking.cancel();
        self.wake_up(how)
    }

    /// Sleeps on a bell and on whatever else `waiter` watches, as [`Tally::sleep`]; appends the
    /// tokens that are ready. Whether a ring ended it.
    ///
    /// # Errors
    /// The waiter's; the announcement is taken back all the same.
    pub fn sleep_through(
        &self,
        waiter: &mut dyn Waiter,
        parking: Parking<'_, M>,
        looks: u64,
        timeout: Duration,
        ready: &mut Vec<Token>,
    ) -> io::Result<bool> {
        self.fall_asleep(looks);
        let before = ready.len();
        let rung = waiter.wait(&[parking.watched()], timeout.min(PARK_MAX), ready);
        parking.cancel();
        Ok(self.wake_up(match rung? {
            true => Woken::Rung,
            false if ready.len() == before => Woken::TimedOut,
            false => Woken::Interrupted,
        }))
    }

    fn fall_asleep(&self, looks: u64) {
        self.add(Count::Parked, 1);
        self.add(Count::Spins, looks);
    }

    fn wake_up(&self, how: Woken) -> bool {
        match how {
            // Whoever moves the word rings: one that had moved before the sleep was rung as well.
            Woken::Rung | Woken::Moved => self.add(Count::Woken, 1),
            Woken::TimedOut => self.add(Count::Rescans, 1),
            Woken::Interrupted => {}
        }
        matches!(how, Woken::Rung | Woken::Moved)
    }
}

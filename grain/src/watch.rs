//! What a worker waits for besides its words: its line to the guardian and its children.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use sandpipe::wait::{Loop, Token, Waiter, WaiterKind, Watched};
use sandpipe::{Mapping, Parking, SlotIndex, Tally};

use crate::instance::LOOKS;

/// The line's token. A child's is its slot, and slot 0 is the worker's own.
const LINE: Token = 0;

/// After a wait that failed.
const RETRY: Duration = Duration::from_millis(1);

/// The worker's waiter, with what it has told so far.
#[derive(Debug)]
pub(crate) struct Watch {
    waiter: Option<Box<dyn Waiter>>,
    told: Vec<Token>,
    /// Why there is no waiter any more.
    failure: Option<io::Error>,
}

/// What has arrived since it was asked last.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Arrived {
    /// There may be news on the line.
    pub(crate) line: bool,
    /// Whose children have ended.
    pub(crate) slots: Vec<SlotIndex>,
}

impl Watch {
    /// Opens the waiter that works here, for this thread (`SANDPIPE_WAITER` forces one), and
    /// watches the line.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn open(line: BorrowedFd<'_>) -> io::Result<Watch> {
        let mut waiter = WaiterKind::probe(Loop::Own)?;
        waiter.watch(line, LINE)?;
        Ok(Watch {
            waiter: Some(waiter),
            told: Vec::new(),
            failure: None,
        })
    }

    /// Watches a child until it ends; false if it cannot be watched (no descriptor is left).
    pub(crate) fn child(&mut self, slot: SlotIndex, pid: i32) -> bool {
        let token = Token::from(slot.0);
        let waiter = self.waiter.as_mut();
        waiter.is_some_and(|waiter| waiter.watch_child(pid, token).is_ok())
    }

    /// Sleeps on the queue's bell as well.
    pub(crate) fn sleep(
        &mut self,
        tally: &Tally<Mapping>,
        parking: Parking<'_, Mapping>,
        timeout: Duration,
    ) {
        match &mut self.waiter {
            Some(waiter) => {
                let slept =
                    tally.sleep_through(&mut **waiter, parking, LOOKS, timeout, &mut self.told);
                self.lose_if(slept.map(drop));
            }
            None => drop(tally.sleep(parking, LOOKS, RETRY)),
        }
    }

    /// Sleeps on these words as well.
    pub(crate) fn wait(&mut self, words: &[Watched<'_>], timeout: Duration) {
        match &mut self.waiter {
            Some(waiter) => {
                let waited = waiter.wait(words, timeout, &mut self.told);
                self.lose_if(waited.map(drop));
            }
            None => std::thread::sleep(RETRY),
        }
    }

    fn lose_if(&mut self, waited: io::Result<()>) {
        if let Err(error) = waited {
            self.waiter = None;
            self.failure = Some(error);
        }
    }

    /// Why the last wait failed; told once.
    pub(crate) fn take_failure(&mut self) -> Option<io::Error> {
        self.failure.take()
    }

    /// Whether a wait has failed, so that nothing is told until another watch is opened.
    pub(crate) fn is_lost(&self) -> bool {
        self.waiter.is_none()
    }

    /// Lets everything go: in a forked child, which would keep the line open.
    pub(crate) fn close(&mut self) {
        self.waiter = None;
    }

    /// What has arrived since the last call.
    pub(crate) fn take_arrived(&mut self) -> Arrived {
        // Without a waiter the worker looks for itself.
        let mut arrived = Arrived {
            line: self.is_lost(),
            slots: Vec::new(),
        };
        for token in self.told.drain(..) {
            match token {
                LINE => arrived.line = true,
                slot => arrived.slots.push(SlotIndex(slot as u16)),
            }
        }
        arrived
    }
}

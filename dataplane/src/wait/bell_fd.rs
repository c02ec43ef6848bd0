//! A queue's bell as a descriptor, for event loops of other libraries.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use super::{Loop, Waiter, WaiterKind};
use crate::bell::{Announcement, Bell, PARK_MAX};
use crate::memory::Memory;

/// A descriptor that is readable exactly while its queue may hold something.
///
/// The loop polls it (level or edge triggered). When it is readable, or before the first poll, the
/// consumer receives until nothing is left and calls [`BellFd::park`]. As every park, this one ends
/// after [`PARK_MAX`] at the latest: then the descriptor is readable and there may be nothing.
#[derive(Debug)]
pub struct BellFd<M: Memory> {
    bell: Bell<M>,
    waiter: Box<dyn Waiter>,
    announced: Option<Announcement>,
}

impl<M: Memory> BellFd<M> {
    /// Opens a waiter for a bell: of `kind`, or the best that works here. A few system calls.
    ///
    /// # Errors
    /// The system's.
    pub fn new(bell: Bell<M>, kind: Option<WaiterKind>) -> io::Result<BellFd<M>> {
        let waiter = match kind {
            Some(kind) => kind.open(Loop::Foreign)?,
            None => WaiterKind::probe(Loop::Foreign)?,
        };
        Ok(BellFd {
            bell,
            waiter,
            announced: None,
        })
    }

    /// Announces the consumer as asleep: the descriptor becomes readable with the next ring. If
    /// `has_message` finds something after the announcement, it is readable at once, and the result
    /// is false. One or two system calls; does not block. If the caller dies, a ring is made in
    /// vain.
    ///
    /// # Errors
    /// The system's.
    pub fn park(&mut self, has_message: impl FnOnce() -> bool) -> io::Result<bool> {
        self.unpark()?;
        let parking = self.bell.prepare();
        if has_message() {
            parking.cancel();
            self.waiter.arm(&[], std::time::Duration::ZERO)?;
            return Ok(false);
        }
        let armed = self.waiter.arm(&[parking.watched()], PARK_MAX);
        self.announced = Some(parking.keep());
        armed.map(|()| true)
    }

    /// Awake: the descriptor is not readable, and publishers make no system call. Whoever is about
    /// to receive many messages calls it first; [`BellFd::park`] does it too.
    ///
    /// # Errors
    /// The system's.
    pub fn unpark(&mut self) -> io::Result<()> {
        let disarmed = self.waiter.disarm(&mut Vec::new());
        if let Some(announced) = self.announced.take() {
            self.bell.resume(announced).cancel();
        }
        disarmed.map(drop)
    }
}

impl<M: Memory> AsFd for BellFd<M> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.waiter
            .as_fd()
            .expect("a waiter for a foreign loop has a descriptor")
    }
}

impl<M: Memory> AsRawFd for BellFd<M> {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl<M: Memory> Drop for BellFd<M> {
    fn drop(&mut self) {
        let _ = self.unpark();
    }
}

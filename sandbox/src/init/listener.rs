//! The socket at which agents and tools knock.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::events::{Events, Watch};
use super::supervisor::Source;

/// How long nobody is let in after the system had no descriptor, or no memory, for a connection.
/// It would be told again and again meanwhile, as it stays in the queue.
const PAUSE: Duration = Duration::from_millis(100);

/// A listening socket that is watched, or pauses.
pub(super) struct Listener {
    socket: OwnedFd,
    watch: Option<Watch>,
    paused_until: Option<Instant>,
}

impl Listener {
    pub(super) fn open(socket: OwnedFd, events: &Events) -> io::Result<Listener> {
        let watch = Some(events.watch(&socket, Source::Listener)?);
        Ok(Listener {
            socket,
            watch,
            paused_until: None,
        })
    }

    /// After a connection was refused: pauses unless that was the connection's own fault.
    pub(super) fn refused(&mut self, error: Errno) {
        let of_peer = [Errno::AGAIN, Errno::INTR, Errno::CONNABORTED];
        if !of_peer.contains(&error) {
            self.watch = None;
            self.paused_until = Some(Instant::now() + PAUSE);
        }
    }

    /// A descriptor is free again.
    pub(super) fn hurry(&mut self) {
        if let Some(until) = &mut self.paused_until {
            *until = Instant::now();
        }
    }

    /// Listens again once a pause is over.
    pub(super) fn go_on(&mut self, now: Instant, events: &Events) {
        if self.paused_until.is_some_and(|until| until <= now) {
            self.watch = events.watch(&self.socket, Source::Listener).ok();
            self.paused_until = self.watch.is_none().then_some(now + PAUSE);
        }
    }

    pub(super) fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

//! What a grain's worker waits for beside its queue: a child, a socket, and a time.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use sandpipe::wait::{Loop, Token, Waiter, WaiterKind};
use sandpipe::{Bus, Mapping, PARK_MAX, Parking, SlotIndex, Tally};

use crate::clock::die_with_parent;
use crate::error::BenchError;
use crate::raw::{Child, fork};

const SOCKET: Token = 1;
const CHILD: Token = 2;

/// A waiter that watches a child which does not end and a socket on which nothing comes.
#[derive(Debug)]
pub struct Company {
    waiter: Box<dyn Waiter>,
    /// Sleeps are counted, as a grain's are.
    tally: Tally<Mapping>,
    _child: Child,
    _sockets: (OwnedFd, OwnedFd),
}

impl Company {
    /// Forks the child and opens the waiter that probing finds, for this thread.
    ///
    /// # Errors
    /// The system's; if this process has other threads already.
    pub fn new(bus: &Bus<Mapping>, slot: SlotIndex) -> Result<Company, BenchError> {
        let child = fork(|| {
            die_with_parent();
            loop {
                std::thread::sleep(Duration::from_secs(3600));
            }
        })?;
        let os = |what: &'static str| move |error| BenchError::os(what, error);
        let flags = SocketFlags::CLOEXEC;
        let sockets = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(|error| BenchError::os("socketpair", error.into()))?;
        let mut waiter = WaiterKind::probe(Loop::Own).map_err(os("a waiter"))?;
        let socket = sockets.0.as_fd();
        waiter.watch(socket, SOCKET).map_err(os("watch a socket"))?;
        let pid = child.pid().as_raw_nonzero().get();
        let watched = waiter.watch_child(pid, CHILD);
        watched.map_err(os("watch a child"))?;
        Ok(Company {
            waiter,
            tally: bus.tally(slot),
            _child: child,
            _sockets: sockets,
        })
    }

    /// Sleeps until the bell, or anything else that is not to happen, which is an error then.
    ///
    /// # Errors
    /// If the child has ended, the socket is readable, or the wait fails.
    pub fn sleep(&mut self, parking: Parking<'_, Mapping>) -> Result<(), BenchError> {
        let mut ready = Vec::new();
        let waiter = &mut *self.waiter;
        let slept = self
            .tally
            .sleep_through(waiter, parking, 1, PARK_MAX, &mut ready);
        slept.map_err(|error| BenchError::os("a wait", error))?;
        if ready.is_empty() {
            Ok(())
        } else {
            Err(BenchError::peer("the sleeper's company", "stirred"))
        }
    }
}

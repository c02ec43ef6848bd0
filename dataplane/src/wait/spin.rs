//! Waiting without sleeping: for consumers that have a core of their own.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use super::descriptors::Descriptors;
use super::{Token, Waiter, WaiterKind, Watched};

/// Looks at the words between two looks at epoll and the clock, which cost some hundred
/// nanoseconds each.
const LOOKS: u32 = 64;

/// See the module.
#[derive(Debug)]
pub(super) struct SpinWaiter {
    descriptors: Descriptors,
}

impl SpinWaiter {
    pub(super) fn new() -> io::Result<SpinWaiter> {
        let descriptors = Descriptors::new(false)?;
        Ok(SpinWaiter { descriptors })
    }
}

impl Waiter for SpinWaiter {
    fn kind(&self) -> WaiterKind {
        WaiterKind::Spin
    }

    fn watch(&mut self, fd: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        self.descriptors.watch(fd, token)
    }

    fn watch_child(&mut self, pid: i32, token: Token) -> io::Result<()> {
        self.descriptors.watch_child(pid, token)
    }

    fn forget(&mut self, token: Token) -> io::Result<()> {
        self.descriptors.forget(token)
    }

    fn wait(
        &mut self,
        words: &[Watched<'_>],
        timeout: Duration,
        ready: &mut Vec<Token>,
    ) -> io::Result<bool> {
        let begin = Instant::now();
        let before = ready.len();
        loop {
            for _ in 0..LOOKS {
                if words.iter().any(Watched::has_moved) {
                    return Ok(true);
                }
                std::hint::spin_loop();
            }
            if !self.descriptors.is_empty() {
                self.descriptors.wait(Duration::ZERO, ready)?;
            }
            if ready.len() != before || begin.elapsed() >= timeout {
                return Ok(false);
            }
        }
    }

    fn arm(&mut self, _: &[Watched<'_>], _: Duration) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn disarm(&mut self, _: &mut Vec<Token>) -> io::Result<bool> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn as_fd(&self) -> io::Result<BorrowedFd<'_>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

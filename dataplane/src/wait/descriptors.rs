//! Descriptors and children behind one epoll: what the waiters without io_uring share.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::Token;

/// Events taken at once.
const BATCH: usize = 16;

/// An epoll with tokens.
#[derive(Debug)]
pub(super) struct Descriptors {
    epoll: OwnedFd,
    plain: BTreeMap<Token, OwnedFd>,
    children: BTreeMap<Token, OwnedFd>,
    flags: epoll::EventFlags,
}

impl Descriptors {
    /// With `once` a descriptor that was reported stays silent until [`Descriptors::again`].
    pub(super) fn new(once: bool) -> io::Result<Descriptors> {
        let once = if once {
            epoll::EventFlags::ONESHOT
        } else {
            epoll::EventFlags::empty()
        };
        Ok(Descriptors {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            plain: BTreeMap::new(),
            children: BTreeMap::new(),
            flags: epoll::EventFlags::IN | epoll::EventFlags::RDHUP | once,
        })
    }

    pub(super) fn epoll(&self) -> &OwnedFd {
        &self.epoll
    }

    pub(super) fn is_empty(&self) -> bool {
        self.plain.is_empty() && self.children.is_empty()
    }

    pub(super) fn knows(&self, token: Token) -> bool {
        self.plain.contains_key(&token) || self.children.contains_key(&token)
    }

    pub(super) fn watch(&mut self, fd: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        let fd = fd.try_clone_to_owned()?;
        epoll::add(&self.epoll, &fd, data(token), self.flags)?;
        self.plain.insert(token, fd);
        Ok(())
    }

    pub(super) fn watch_child(&mut self, pid: i32, token: Token) -> io::Result<()> {
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let child = pidfd_open(pid, PidfdFlags::empty())?;
        epoll::add(&self.epoll, &child, data(token), self.flags)?;
        self.children.insert(token, child);
        Ok(())
    }

    pub(super) fn forget(&mut self, token: Token) -> io::Result<()> {
        let plain = self.plain.remove(&token);
        let child = self.children.remove(&token);
        // Closing is not enough: a process that was forked meanwhile has it open as well.
        for fd in plain.iter().chain(&child) {
            epoll::delete(&self.epoll, fd)?;
        }
        Ok(())
    }

    /// Lets a descriptor be reported again.
    pub(super) fn again(&self, token: Token) -> io::Result<()> {
        match self.plain.get(&token) {
            Some(fd) => Ok(epoll::modify(&self.epoll, fd, data(token), self.flags)?),
            None => Ok(()),
        }
    }

    /// Waits for descriptors and appends those that are ready. Blocks up to `timeout`.
    pub(super) fn wait(&mut self, timeout: Duration, ready: &mut Vec<Token>) -> io::Result<()> {
        let from = ready.len();
        take_events(self.epoll.as_fd(), Some(timeout), ready)?;
        self.reported(&ready[from..])
    }

    /// A child ends once.
    pub(super) fn reported(&mut self, tokens: &[Token]) -> io::Result<()> {
        for token in tokens {
            if self.children.contains_key(token) {
                self.forget(*token)?;
            }
        }
        Ok(())
    }
}

/// Appends the tokens that are ready. Blocks up to `timeout`; a signal ends it early.
pub(super) fn take_events(
    epoll: BorrowedFd<'_>,
    timeout: Option<Duration>,
    ready: &mut Vec<Token>,
) -> io::Result<()> {
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    let mut events = Vec::with_capacity(BATCH);
    match epoll::wait(epoll, spare_capacity(&mut events), timeout.as_ref()) {
        Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
        Ok(_) => ready.extend(events.iter().map(|event: &epoll::Event| event.data.u64())),
    }
    Ok(())
}

fn data(token: Token) -> epoll::EventData {
    epoll::EventData::new_u64(token)
}

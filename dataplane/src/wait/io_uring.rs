//! Waiting through one io_uring: words (FUTEX_WAIT, FUTEX_WAITV), descriptors (poll), children
//! (waitid) and time end the same wait, which is one system call and arms again what has ended.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use ::io_uring::{opcode, squeue, types};

use super::ring::{Ring, futex_wait, futex_wait_one, futex_word};
use super::{Loop, Token, Waiter, WaiterKind, Watched};
use crate::futex;

/// See the module.
#[derive(Debug)]
pub(super) struct IoUringWaiter {
    ring: Ring,
    sources: BTreeMap<Token, Source>,
    /// Sources that are to be armed by the next enter.
    unarmed: Vec<Token>,
    /// Operations begun: each has a number of its own, so that a late completion is told apart.
    begun: u64,
    /// Which token the completion of a source's operation means.
    tokens: BTreeMap<u64, Token>,
    words: Option<u64>,
    time: Option<u64>,
    rung: bool,
    /// Ready, and not told yet.
    untold: Vec<Token>,
    /// Cancellations that were asked for and not answered.
    cancelling: u32,
    /// What entries point to, at one place for as long as the ring lives.
    pointed_to: Box<PointedTo>,
    /// A child of a fork has this struct, but neither the ring nor its memory.
    process: u32,
}

#[derive(Debug)]
struct PointedTo {
    words: [types::FutexWaitV; WORDS_MAX],
    time: types::Timespec,
}

/// Words of one wait at the most.
const WORDS_MAX: usize = 8;

#[derive(Debug)]
struct Source {
    what: What,
    armed: Option<u64>,
}

#[derive(Debug)]
enum What {
    Descriptor(OwnedFd),
    Child(i32),
}

/// Operations: what the ring is restricted to.
const OPERATIONS: [u8; 6] = [
    opcode::FutexWait::CODE,
    opcode::FutexWaitV::CODE,
    opcode::PollAdd::CODE,
    opcode::WaitId::CODE,
    opcode::Timeout::CODE,
    opcode::AsyncCancel::CODE,
];

/// The name of a cancellation; operations are counted from 1.
const CANCEL: u64 = 0;

impl IoUringWaiter {
    /// Opens a ring and proves each operation by use.
    pub(super) fn new(whose: Loop) -> io::Result<IoUringWaiter> {
        let mut waiter = IoUringWaiter {
            ring: Ring::new(&OPERATIONS, whose)?,
            sources: BTreeMap::new(),
            unarmed: Vec::new(),
            begun: 0,
            tokens: BTreeMap::new(),
            words: None,
            time: None,
            rung: false,
            untold: Vec::new(),
            cancelling: 0,
            pointed_to: Box::new(PointedTo {
                words: [types::FutexWaitV::new(); WORDS_MAX],
                time: types::Timespec::new(),
            }),
            process: std::process::id(),
        };
        waiter.try_operations()?;
        Ok(waiter)
    }

    fn check_process(&self) -> io::Result<()> {
        if self.process == std::process::id() {
            return Ok(());
        }
        let what = "a ring is not inherited over fork: open a waiter in the child";
        Err(io::Error::new(io::ErrorKind::Unsupported, what))
    }

    /// An older kernel knows the ring and not all operations: each is tried in vain.
    fn try_operations(&mut self) -> io::Result<()> {
        let word = std::sync::atomic::AtomicU64::new(1);
        let address = futex::address_of(&word);
        // Nobody is its own child.
        let no_child = opcode::WaitId::new(libc::P_PID, self.process, libc::WEXITED);
        let words = &mut self.pointed_to.words[..2];
        words.fill(futex_word(address, 0));
        for entry in [
            futex_wait_one(address, 0),
            futex_wait(words),
            no_child.build(),
        ] {
            self.ring.push(&entry.user_data(1))?;
            self.ring.enter(1, Duration::from_secs(1))?;
            let result = self.ring.completed().map_or(-libc::ETIME, |done| done.1);
            if ![-libc::EAGAIN, -libc::ECHILD, 0].contains(&result) {
                return Err(io::Error::from_raw_os_error(-result));
            }
        }
        self.begun = 1;
        Ok(())
    }

    fn begin(&mut self, entry: squeue::Entry) -> io::Result<u64> {
        self.begun += 1;
        self.ring.push(&entry.user_data(self.begun))?;
        Ok(self.begun)
    }

    /// Pushes whatever is not armed.
    fn arm_sources(&mut self) -> io::Result<()> {
        for token in std::mem::take(&mut self.unarmed) {
            let Some(source) = self.sources.get(&token).filter(|s| s.armed.is_none()) else {
                continue;
            };
            let entry = match &source.what {
                What::Descriptor(fd) => {
                    let events = (libc::POLLIN | libc::POLLRDHUP) as u32;
                    opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), events).build()
                }
                What::Child(pid) => {
                    let how = libc::WEXITED | libc::WNOWAIT;
                    opcode::WaitId::new(libc::P_PID, pid.cast_unsigned(), how).build()
                }
            };
            let number = self.begin(entry)?;
            self.tokens.insert(number, token);
            if let Some(source) = self.sources.get_mut(&token) {
                source.armed = Some(number);
            }
        }
        Ok(())
    }

    /// Pushes the words, and enters once. With `want` it waits up to `timeout`.
    fn enter(&mut self, words: &[Watched<'_>], want: u32, timeout: Duration) -> io::Result<()> {
        self.arm_sources()?;
        match words {
            [] => {}
            [only] => {
                let entry = futex_wait_one(futex::address_of(only.word), only.seen);
                self.words = Some(self.begin(entry)?);
            }
            words => {
                let several = &mut self.pointed_to.words;
                let places = several.get_mut(..words.len());
                let places = places.ok_or(io::ErrorKind::InvalidInput)?;
                for (place, watched) in places.iter_mut().zip(words) {
                    *place = futex_word(futex::address_of(watched.word), watched.seen);
                }
                let entry = futex_wait(places);
                self.words = Some(self.begin(entry)?);
            }
        }
        self.ring.enter(want, timeout)
    }

    /// Takes the completions that are there; appends the tokens of sources.
    fn take(&mut self, ready: &mut Vec<Token>) {
        while let Some((number, result)) = self.ring.completed() {
            if number == CANCEL {
                self.cancelling -= 1;
            } else if self.words == Some(number) {
                self.words = None;
                self.rung |= result != -libc::ECANCELED;
            } else if self.time == Some(number) {
                self.time = None;
            } else if let Some(token) = self.tokens.remove(&number) {
                self.source_ended(token, number, ready);
            }
        }
    }

    fn source_ended(&mut self, token: Token, number: u64, ready: &mut Vec<Token>) {
        let Some(source) = self.sources.get_mut(&token) else {
            return;
        };
        if source.armed != Some(number) {
            return;
        }
        ready.push(token);
        source.armed = None;
        match source.what {
            What::Descriptor(_) => self.unarmed.push(token),
            What::Child(_) => drop(self.sources.remove(&token)),
        }
    }

    /// Cancels operations and waits until the kernel is done with them.
    fn cancel(&mut self, numbers: &[u64], ready: &mut Vec<Token>) -> io::Result<()> {
        for number in numbers {
            let entry = opcode::AsyncCancel::new(*number).build();
            self.ring.push(&entry.user_data(CANCEL))?;
            self.cancelling += 1;
        }
        let still = |of: Option<u64>| of.is_some_and(|number| numbers.contains(&number));
        while self.cancelling > 0 || still(self.words) || still(self.time) {
            self.ring.enter(1, Duration::from_secs(1))?;
            self.take(ready);
        }
        Ok(())
    }

    /// Nothing of this waiter sleeps on a word when this returns.
    fn leave(&mut self, ready: &mut Vec<Token>) -> io::Result<bool> {
        let numbers: Vec<u64> = self.words.into_iter().chain(self.time).collect();
        if !numbers.is_empty() {
            self.cancel(&numbers, ready)?;
        }
        Ok(std::mem::take(&mut self.rung))
    }
}

impl Waiter for IoUringWaiter {
    fn kind(&self) -> WaiterKind {
        WaiterKind::IoUring
    }

    fn watch(&mut self, fd: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        let what = What::Descriptor(fd.try_clone_to_owned()?);
        self.sources.insert(token, Source { what, armed: None });
        self.unarmed.push(token);
        Ok(())
    }

    fn watch_child(&mut self, pid: i32, token: Token) -> io::Result<()> {
        let what = What::Child(pid);
        self.sources.insert(token, Source { what, armed: None });
        self.unarmed.push(token);
        Ok(())
    }

    fn forget(&mut self, token: Token) -> io::Result<()> {
        self.check_process()?;
        let Some(source) = self.sources.remove(&token) else {
            return Ok(());
        };
        if let Some(number) = source.armed {
            self.tokens.remove(&number);
            let mut ready = Vec::new();
            self.cancel(&[number], &mut ready)?;
            self.untold.append(&mut ready);
        }
        self.untold.retain(|untold| *untold != token);
        Ok(())
    }

    fn wait(
        &mut self,
        words: &[Watched<'_>],
        timeout: Duration,
        ready: &mut Vec<Token>,
    ) -> io::Result<bool> {
        self.check_process()?;
        if self.untold.is_empty() {
            self.enter(words, 1, timeout)?;
        }
        ready.append(&mut self.untold);
        self.take(ready);
        self.leave(ready)
    }

    fn arm(&mut self, words: &[Watched<'_>], timeout: Duration) -> io::Result<()> {
        self.check_process()?;
        let mut ready = Vec::new();
        self.disarm(&mut ready)?;
        let timeout = if ready.is_empty() {
            timeout
        } else {
            Duration::ZERO
        };
        self.untold = ready;
        self.pointed_to.time = types::Timespec::from(timeout);
        let entry = opcode::Timeout::new(&raw const self.pointed_to.time).build();
        self.time = Some(self.begin(entry)?);
        self.enter(words, 0, Duration::ZERO)
    }

    fn disarm(&mut self, ready: &mut Vec<Token>) -> io::Result<bool> {
        self.check_process()?;
        ready.append(&mut self.untold);
        self.take(ready);
        self.leave(ready)
    }

    fn as_fd(&self) -> io::Result<BorrowedFd<'_>> {
        self.ring
            .as_fd()
            .ok_or_else(|| io::ErrorKind::Unsupported.into())
    }
}

//! Waiting for several things at once: words that others move, descriptors, children, time.
//!
//! A process that waits for its queue alone sleeps on the bell ([`crate::Parking::sleep`]): one
//! futex call, nothing is shorter. One that waits for its children and its control socket as well
//! waits through a [`Waiter`]. There are three, which behave alike and pass one suite
//! (`tests/waiters.rs`): io_uring, futex with epoll (where io_uring is refused), and spin (where
//! each consumer has a core of its own). [`WaiterKind::probe`] takes the best that works here;
//! `SANDPIPE_WAITER` forces one.

mod bell_fd;
mod budget;
mod companion;
mod descriptors;
mod doorman;
mod futex;
mod io_uring;
mod ring;
mod sleep;
mod spin;

use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

pub use bell_fd::BellFd;
pub use budget::{SpinBudget, SpinCounts};

/// The environment variable that names the waiter to use: `io_uring`, `futex` or `spin`.
pub const WAITER_VARIABLE: &str = "SANDPIPE_WAITER";

/// What the caller calls a source; it comes back when the source is ready.
pub type Token = u64;

/// A word that others move, and its low half's value as the caller has seen it.
#[derive(Clone, Copy, Debug)]
pub struct Watched<'w> {
    /// The word.
    pub word: &'w AtomicU64,
    /// The value to sleep on.
    pub seen: u32,
}

impl Watched<'_> {
    fn has_moved(&self) -> bool {
        // Acquire pairs with the SeqCst of whoever moves the word: a ring, a watchman's note.
        self.word.load(std::sync::atomic::Ordering::Acquire) as u32 != self.seen
    }
}

/// Waits for words, descriptors, children and time together.
///
/// As with a futex, the caller reads each word's value first, then looks at what the word stands
/// for, then waits: nothing that happens in between is missed. A wait may end early; the caller
/// looks again. When a call returns, nothing of this waiter sleeps on a word any more, so that a
/// wake meant for another is not swallowed by a process that is awake ([`Waiter::arm`] excepted).
///
/// Some time after an io_uring waiter is dropped, the kernel interrupts one system call of the
/// thread that used it: keep a waiter, and expect `EINTR` where a call does not go on by itself.
pub trait Waiter: Debug + Send + Sync {
    /// Which one it is.
    fn kind(&self) -> WaiterKind;

    /// Reports `token` whenever `fd` is readable or closed by its peer, as long as it is. It is
    /// kept as a duplicate: closing `fd` closes nothing before [`Waiter::forget`]. Does not block.
    ///
    /// # Errors
    /// The system's.
    fn watch(&mut self, fd: BorrowedFd<'_>, token: Token) -> io::Result<()>;

    /// Reports `token` once, when the child `pid` has ended; it is not reaped. Does not block.
    ///
    /// # Errors
    /// The system's, if `pid` is no child of this process.
    fn watch_child(&mut self, pid: i32, token: Token) -> io::Result<()>;

    /// Reports nothing more under `token`. Does not block for long.
    ///
    /// # Errors
    /// The system's.
    fn forget(&mut self, token: Token) -> io::Result<()>;

    /// Sleeps until a word has moved, a source is ready, a signal arrives, or `timeout` has passed.
    /// Appends the tokens that are ready; true if a word was rung or had moved.
    ///
    /// Blocks. If the caller dies, the kernel takes back whatever it waited for.
    ///
    /// # Errors
    /// The system's.
    fn wait(
        &mut self,
        words: &[Watched<'_>],
        timeout: Duration,
        ready: &mut Vec<Token>,
    ) -> io::Result<bool>;

    /// For a foreign event loop: [`Waiter::as_fd`] is readable from when a word has moved, a source
    /// is ready or `timeout` has passed, until [`Waiter::disarm`]. The words stay mapped until
    /// then. Does not block.
    ///
    /// # Errors
    /// The system's.
    fn arm(&mut self, words: &[Watched<'_>], timeout: Duration) -> io::Result<()>;

    /// Ends [`Waiter::arm`] as if a wait had ended now.
    ///
    /// # Errors
    /// The system's.
    fn disarm(&mut self, ready: &mut Vec<Token>) -> io::Result<bool>;

    /// The descriptor that [`Waiter::arm`] speaks of.
    ///
    /// # Errors
    /// `Unsupported` if the waiter was opened for [`Loop::Own`].
    fn as_fd(&self) -> io::Result<BorrowedFd<'_>>;
}

/// Whose loop a waiter serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loop {
    /// The caller's own, on the thread that opens it; nothing of it is inherited over fork.
    Own,
    /// Another library's, which polls a descriptor, on any thread.
    Foreign,
}

/// The three ways to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaiterKind {
    /// One io_uring for everything.
    IoUring,
    /// A futex for the words, epoll for the rest.
    Futex,
    /// Looks again and again: for consumers that have a core of their own.
    Spin,
}

impl WaiterKind {
    /// All of them.
    pub const ALL: [WaiterKind; 3] = [WaiterKind::IoUring, WaiterKind::Futex, WaiterKind::Spin];

    /// The name that [`WAITER_VARIABLE`] knows.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            WaiterKind::IoUring => "io_uring",
            WaiterKind::Futex => "futex",
            WaiterKind::Spin => "spin",
        }
    }

    /// The kind of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<WaiterKind> {
        WaiterKind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Opens a waiter of this kind: a few system calls. In a foreign loop there is nothing to spin
    /// in: it gets futex instead.
    ///
    /// # Errors
    /// The system's; for io_uring also what it refuses to do (a container's filter, an old kernel).
    pub fn open(self, whose: Loop) -> io::Result<Box<dyn Waiter>> {
        Ok(match self {
            WaiterKind::IoUring => Box::new(io_uring::IoUringWaiter::new(whose)?),
            WaiterKind::Spin if whose == Loop::Own => Box::new(spin::SpinWaiter::new()?),
            WaiterKind::Futex | WaiterKind::Spin => Box::new(futex::FutexWaiter::new(whose)?),
        })
    }

    /// Opens the waiter that `SANDPIPE_WAITER` names, else io_uring if a wait through it works
    /// here, else futex with epoll. Spin is never chosen unasked.
    ///
    /// # Errors
    /// A name that is none, or that kind's reason.
    pub fn probe(whose: Loop) -> io::Result<Box<dyn Waiter>> {
        match std::env::var(WAITER_VARIABLE) {
            Ok(name) => WaiterKind::named(&name)
                .ok_or_else(|| {
                    let what = format!("{WAITER_VARIABLE}={name}: io_uring, futex or spin");
                    io::Error::new(io::ErrorKind::InvalidInput, what)
                })?
                .open(whose),
            Err(_) => WaiterKind::IoUring
                .open(whose)
                .or_else(|_| WaiterKind::Futex.open(whose)),
        }
    }
}

//! Waiting without io_uring: the caller sleeps on a futex, a thread of its own on epoll.
//!
//! The words, where each microsecond counts, end the sleep directly. What epoll reports takes the
//! way over the *watchman*, a thread that exists once the caller waits for words and descriptors
//! together: it notes the token and moves a word of the waiter's own, which is among those that
//! the caller sleeps on.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, epoll, eventfd};

use super::companion::Companion;
use super::descriptors::{Descriptors, take_events};
use super::doorman::Doorman;
use super::{Loop, Token, Waiter, WaiterKind, Watched};
use crate::futex::{self, Woken};

/// See the module.
#[derive(Debug)]
pub(super) struct FutexWaiter {
    descriptors: Descriptors,
    /// Reported, and silent until they are asked for again.
    silent: Vec<Token>,
    watchman: Option<Watchman>,
    doorman: Option<Doorman>,
}

impl FutexWaiter {
    pub(super) fn new(whose: Loop) -> io::Result<FutexWaiter> {
        Ok(FutexWaiter {
            descriptors: Descriptors::new(true)?,
            silent: Vec::new(),
            watchman: None,
            doorman: match whose {
                Loop::Own => None,
                Loop::Foreign => Some(Doorman::new()?),
            },
        })
    }

    /// Before a sleep: what was reported may be reported again, and somebody watches epoll.
    fn prepare(&mut self) -> io::Result<()> {
        for token in self.silent.drain(..) {
            self.descriptors.again(token)?;
        }
        if !self.descriptors.is_empty() && self.watchman.is_none() {
            self.watchman = Some(Watchman::start(&self.descriptors)?);
        }
        Ok(())
    }

    /// Takes what the watchman has noted.
    fn take(&mut self, ready: &mut Vec<Token>) -> io::Result<()> {
        let from = ready.len();
        if let Some(watchman) = &self.watchman {
            let mut noted = watchman.post.noted();
            // The watchman may note what has just been forgotten.
            noted.retain(|token| self.descriptors.knows(*token));
            ready.append(&mut noted);
        }
        self.note(&ready[from..])
    }

    fn note(&mut self, tokens: &[Token]) -> io::Result<()> {
        self.silent.extend_from_slice(tokens);
        self.descriptors.reported(tokens)
    }

    /// The words to sleep on, the waiter's own among them.
    fn all<'w>(own: &'w Option<Watchman>, words: &[Watched<'w>]) -> Vec<Watched<'w>> {
        let own = own.as_ref().map(|watchman| watchman.post.watched());
        words.iter().copied().chain(own).collect()
    }
}

impl Waiter for FutexWaiter {
    fn kind(&self) -> WaiterKind {
        WaiterKind::Futex
    }

    fn watch(&mut self, fd: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        if token == END {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.descriptors.watch(fd, token)
    }

    fn watch_child(&mut self, pid: i32, token: Token) -> io::Result<()> {
        self.descriptors.watch_child(pid, token)
    }

    fn forget(&mut self, token: Token) -> io::Result<()> {
        self.descriptors.forget(token)?;
        self.silent.retain(|silent| *silent != token);
        Ok(())
    }

    fn wait(
        &mut self,
        words: &[Watched<'_>],
        timeout: Duration,
        ready: &mut Vec<Token>,
    ) -> io::Result<bool> {
        if words.is_empty() && self.watchman.is_none() {
            for token in self.silent.drain(..) {
                self.descriptors.again(token)?;
            }
            let from = ready.len();
            self.descriptors.wait(timeout, ready)?;
            self.note(&ready[from..])?;
            return Ok(false);
        }
        self.prepare()?;
        let all = FutexWaiter::all(&self.watchman, words);
        let asleep = self.watchman.as_ref().is_none_or(Watchman::is_quiet);
        if asleep {
            match all.as_slice() {
                [only] => {
                    let _: Woken = futex::wait(only.word, only.seen, timeout);
                }
                several => {
                    let pairs = several.iter().map(|watched| (watched.word, watched.seen));
                    let _: Woken = futex::wait_any(&pairs.collect::<Vec<_>>(), timeout)?;
                }
            }
        }
        self.take(ready)?;
        // What was woken on purpose has moved: nobody wakes without moving the word.
        Ok(words.iter().any(Watched::has_moved))
    }

    fn arm(&mut self, words: &[Watched<'_>], timeout: Duration) -> io::Result<()> {
        self.prepare()?;
        let all = FutexWaiter::all(&self.watchman, words);
        let pending = self.watchman.as_ref().is_some_and(|w| !w.is_quiet());
        let doorman = self.doorman.as_mut().ok_or(io::ErrorKind::Unsupported)?;
        doorman.arm(&all, if pending { Duration::ZERO } else { timeout })
    }

    fn disarm(&mut self, ready: &mut Vec<Token>) -> io::Result<bool> {
        let doorman = self.doorman.as_mut().ok_or(io::ErrorKind::Unsupported)?;
        let rung = doorman.disarm()?;
        self.take(ready)?;
        Ok(rung)
    }

    fn as_fd(&self) -> io::Result<BorrowedFd<'_>> {
        let doorman = self.doorman.as_ref();
        Ok(doorman.ok_or(io::ErrorKind::Unsupported)?.as_fd())
    }
}

/// The thread that sleeps on epoll.
#[derive(Debug)]
struct Watchman {
    post: Arc<Post>,
    /// With epoll, and the bell that wakes the thread at the end.
    thread: Companion<2>,
}

/// What the watchman and the caller share.
#[derive(Debug)]
struct Post {
    /// Moves with every note.
    word: AtomicU64,
    tokens: Mutex<Vec<Token>>,
    end: AtomicBool,
}

/// The watchman's own bell among the tokens; [`Waiter::watch`] refuses it.
const END: Token = Token::MAX;

impl Post {
    fn tokens(&self) -> MutexGuard<'_, Vec<Token>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn noted(&self) -> Vec<Token> {
        std::mem::take(&mut *self.tokens())
    }

    fn watched(&self) -> Watched<'_> {
        Watched {
            word: &self.word,
            seen: self.word.load(Ordering::SeqCst) as u32,
        }
    }
}

impl Watchman {
    fn start(descriptors: &Descriptors) -> io::Result<Watchman> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let data = epoll::EventData::new_u64(END);
        epoll::add(descriptors.epoll(), &bell, data, epoll::EventFlags::IN)?;
        let post = Arc::new(Post {
            word: AtomicU64::new(0),
            tokens: Mutex::new(Vec::new()),
            end: AtomicBool::new(false),
        });
        let epoll = descriptors.epoll().try_clone()?;
        let theirs = Arc::clone(&post);
        let work = move |[epoll, _bell]: &[OwnedFd; 2]| watch(epoll.as_fd(), &theirs);
        let thread = Companion::start("sandpipe-wait", [epoll, bell], work)?;
        Ok(Watchman { post, thread })
    }

    /// Nothing is noted. The word was read before: a note since then has moved it.
    fn is_quiet(&self) -> bool {
        self.post.tokens().is_empty()
    }
}

fn watch(epoll: BorrowedFd<'_>, post: &Post) {
    let mut found = Vec::new();
    while !post.end.load(Ordering::SeqCst) && take_events(epoll, None, &mut found).is_ok() {
        found.retain(|token| *token != END);
        post.tokens().append(&mut found);
        post.word.fetch_add(1, Ordering::SeqCst);
        futex::wake(&post.word, 1);
    }
}

impl Drop for Watchman {
    fn drop(&mut self) {
        if self.thread.is_here() {
            self.post.end.store(true, Ordering::SeqCst);
            let [_epoll, bell] = self.thread.descriptors();
            let _ = rustix::io::write(bell, &1_u64.to_ne_bytes());
        }
    }
}

//! What init waits for: descriptors and time, through the data plane's waiter.
//!
//! Children end as a signal, which is a descriptor here: init reaps whatever process of its
//! namespace was orphaned, not only those that it knows.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;
use sandpipe::wait::{Loop, Token, Waiter, WaiterKind, Watched};

use super::supervisor::Source;

/// After a wait that the kernel had no memory for.
const RETRY: Duration = Duration::from_millis(2);

/// The waiter, and who has asked to be told of what.
pub(super) struct Events(Rc<RefCell<Book>>);

struct Book {
    waiter: Box<dyn Waiter>,
    sources: BTreeMap<Token, Source>,
    last: Token,
}

/// Events of one descriptor are told as long as this lives. The waiter has a duplicate of it: its
/// peer sees it closed when this is dropped as well.
pub(super) struct Watch {
    book: Rc<RefCell<Book>>,
    token: Token,
}

/// Descriptors that were ready when a wait ended.
pub(super) struct Ready {
    book: Rc<RefCell<Book>>,
    tokens: VecDeque<Token>,
}

impl Events {
    /// Opens the waiter that works here (`SANDPIPE_WAITER` forces one). Init has no queue whose
    /// messages come faster than a wake-up: it never spins.
    pub(super) fn open() -> io::Result<Events> {
        let mut waiter = WaiterKind::probe(Loop::Own)?;
        if waiter.kind() == WaiterKind::Spin {
            waiter = WaiterKind::Futex.open(Loop::Own)?;
        }
        Ok(Events(Rc::new(RefCell::new(Book {
            waiter,
            sources: BTreeMap::new(),
            last: 0,
        }))))
    }

    /// Has the events of a descriptor told as `source`'s.
    pub(super) fn watch(&self, fd: impl AsFd, source: Source) -> io::Result<Watch> {
        let mut book = self.0.borrow_mut();
        let token = book.last + 1;
        book.waiter.watch(fd.as_fd(), token)?;
        book.last = token;
        book.sources.insert(token, source);
        drop(book);
        let book = Rc::clone(&self.0);
        Ok(Watch { book, token })
    }

    /// Waits until something is ready or a word has moved, or for `timeout`.
    pub(super) fn wait(&self, words: &[Watched<'_>], timeout: Duration) -> io::Result<Ready> {
        let mut tokens = Vec::new();
        let waited = self.0.borrow_mut().waiter.wait(words, timeout, &mut tokens);
        if let Err(error) = waited {
            let passing = [Errno::AGAIN, Errno::BUSY, Errno::NOMEM];
            if !passing.contains(&Errno::from_io_error(&error).unwrap_or(Errno::IO)) {
                return Err(error);
            }
            std::thread::sleep(RETRY);
        }
        let book = Rc::clone(&self.0);
        let tokens = tokens.into();
        Ok(Ready { book, tokens })
    }
}

impl Iterator for Ready {
    type Item = Source;

    /// The next one that is still watched: what was handled before it may have closed it.
    fn next(&mut self) -> Option<Source> {
        let book = self.book.borrow();
        let mut tokens = std::iter::from_fn(|| self.tokens.pop_front());
        tokens.find_map(|token| book.sources.get(&token).copied())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut book = self.book.borrow_mut();
        book.sources.remove(&self.token);
        // If it fails, the descriptor stays open in the waiter and nobody is told of it.
        let _ = book.waiter.forget(self.token);
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Watch").field(&self.token).finish()
    }
}

//! How the front door and the global bus reach the bus thread, and wake it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sandpipe_abi::MessageId;
use tokio::sync::oneshot;

use super::replace::Replacement;
use super::status::{AppStatus, GrainState};
use crate::core::{Reply, Submit, WholeLetter};
use crate::front_door::AppDeadLetters;

/// Whom the core answers: a request of the front door. A client that hung up is nobody.
pub type Waiter = oneshot::Sender<Reply>;

/// What is sent to a bus thread.
#[derive(Debug)]
pub enum Post {
    /// A request.
    Submit(Submit<Waiter>),
    /// Somebody asks for an answer.
    Collect(MessageId, Waiter),
    /// How is it?
    Status(oneshot::Sender<AppStatus>),
    /// Which events died?
    DeadLetters(oneshot::Sender<AppDeadLetters>),
    /// Everything of one of them, if it is there.
    DeadLetter(MessageId, oneshot::Sender<Option<WholeLetter>>),
    /// Delete a dead letter.
    DeleteLetter(MessageId, Waiter),
    /// Send the event of a dead letter again.
    Redrive(MessageId, Waiter),
    /// The grain workers' states have changed: those of the sandbox with this number.
    Workers(u64, Vec<GrainState>),
    /// Another version of the application takes over once nothing is open.
    Replace(Box<Replacement>),
    /// End: take no more requests, finish what is open, then shut the sandbox down.
    Stop(Stop),
}

/// How a bus thread ends.
#[derive(Debug)]
pub struct Stop {
    /// How long what is open may take.
    pub patience: Duration,
    /// Told at the end: how many requests are not finished. They stay on the global bus.
    pub done: oneshot::Sender<usize>,
}

type Ringer = Box<dyn Fn() + Send + Sync>;

/// A queue into the bus thread. A post costs a lock, and a system call only if the thread sleeps.
#[derive(Default)]
pub struct Mailbox {
    posts: Mutex<VecDeque<Post>>,
    /// The thread has ended: a post is dropped, so that who waits for its answer hears so.
    closed: AtomicBool,
    /// The bus thread sleeps, or is about to.
    parked: AtomicBool,
    /// Something other than a post has happened.
    news: AtomicBool,
    ringer: Mutex<Option<Ringer>>,
}

impl std::fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mailbox").finish_non_exhaustive()
    }
}

impl Mailbox {
    /// Sends something to the thread. Does not wait.
    pub fn post(&self, post: Post) {
        {
            let mut posts = self.posts.lock().unwrap_or_else(PoisonError::into_inner);
            // Looked at under the lock under which it is closed: no post stays behind.
            if self.closed.load(Ordering::SeqCst) {
                return;
            }
            posts.push_back(post);
        }
        self.ring_if_parked();
    }

    /// The thread has ended. Drops what it has not taken, and everything that is posted later.
    pub(super) fn close(&self) {
        let mut posts = self.posts.lock().unwrap_or_else(PoisonError::into_inner);
        self.closed.store(true, Ordering::SeqCst);
        let untaken = std::mem::take(&mut *posts);
        drop(posts);
        drop(untaken);
    }

    /// Makes the thread look at the global bus.
    pub fn wake(&self) {
        self.news.store(true, Ordering::SeqCst);
        self.ring_if_parked();
    }

    fn ring_if_parked(&self) {
        // The post above and this look, the announcement and the last look of `is_awaited`: in
        // the one order that SeqCst gives, one of the two sides sees the other.
        if self.parked.swap(false, Ordering::SeqCst)
            && let Some(ring) = &*self.ringer.lock().unwrap_or_else(PoisonError::into_inner)
        {
            ring();
        }
    }

    /// What rings the place where the thread sleeps now.
    pub(super) fn set_ringer(&self, ringer: Option<Ringer>) {
        *self.ringer.lock().unwrap_or_else(PoisonError::into_inner) = ringer;
    }

    /// Takes all posts, in their order.
    pub(super) fn take(&self, into: &mut VecDeque<Post>) {
        std::mem::swap(
            &mut *self.posts.lock().unwrap_or_else(PoisonError::into_inner),
            into,
        );
    }

    /// Forgets the news: the caller looks at the global bus now.
    pub(super) fn take_news(&self) -> bool {
        self.news.swap(false, Ordering::SeqCst)
    }

    /// Announces that the thread is going to sleep.
    pub(super) fn announce(&self) {
        self.parked.store(true, Ordering::SeqCst);
    }

    /// The thread is awake.
    pub(super) fn awake(&self) {
        self.parked.store(false, Ordering::SeqCst);
    }

    /// Whether something waits for the thread.
    pub(super) fn is_awaited(&self) -> bool {
        self.news.load(Ordering::SeqCst)
            || !self
                .posts
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .is_empty()
    }
}

//! The thread that makes appended groups durable, and what it shares with the appending one.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::log::{Group, Log};
use super::storage::Storage;
use crate::bus::{Health, Ticket, Waker};
use crate::fold::now_unix_ms;
use crate::window::Window;

/// The pause after a first failed write; it doubles up to the longest.
const RETRY_FIRST: Duration = Duration::from_millis(10);
const RETRY_LONGEST: Duration = Duration::from_secs(1);

/// A group of this size is written without waiting for more.
pub(super) const GROUP_BYTES: usize = 1 << 20;

/// What the appending thread and the writer share.
pub(super) struct Shared {
    state: Mutex<State>,
    /// Wakes the writer.
    work: Condvar,
    /// Wakes those who wait in `flush` and `close`.
    news: Condvar,
    acknowledged: AtomicU64,
}

pub(super) struct State {
    /// What has been appended since the writer took the last group.
    pub(super) filling: Group,
    /// The sequence number of the next record.
    pub(super) next: u64,
    pub(super) window: Window,
    pub(super) health: Health,
    pub(super) waker: Option<Waker>,
    /// The writer sleeps until it is told; while it is awake, nobody pays for a system call.
    parked: bool,
    /// The writer must not wait for more records.
    urgent: bool,
    pub(super) retain: bool,
    closing: bool,
    ended: bool,
    /// Threads in `wait_for_news`.
    waiting: usize,
}

impl Shared {
    pub(super) fn new(next: u64) -> Shared {
        Shared {
            state: Mutex::new(State {
                filling: Group::new(),
                next,
                window: Window::new(),
                health: Health::Healthy,
                waker: None,
                parked: false,
                urgent: false,
                retain: false,
                closing: false,
                ended: false,
                waiting: 0,
            }),
            work: Condvar::new(),
            news: Condvar::new(),
            acknowledged: AtomicU64::new(0),
        }
    }

    /// The state. A thread that panics while it has the lock leaves nothing half done that the
    /// other could not live with, so poison is ignored.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn acknowledged(&self) -> Ticket {
        Ticket(self.acknowledged.load(Ordering::Acquire))
    }

    /// Tells the writer of something to do; `urgent` work is not collected for a while first.
    pub(super) fn poke(&self, mut state: MutexGuard<'_, State>, urgent: bool) {
        let wake = state.parked || (urgent && !state.urgent);
        state.parked = false;
        state.urgent |= urgent;
        drop(state);
        if wake {
            self.work.notify_one();
        }
    }

    /// Asks the writer to end when it has written what there is, if the disk takes it.
    pub(super) fn begin_close(&self) {
        let mut state = self.lock();
        state.closing = true;
        self.poke(state, true);
    }

    pub(super) fn has_ended(state: &State) -> bool {
        state.ended
    }

    /// Waits until `done` or `deadline`; returns whether it is done.
    pub(super) fn wait_for_news(&self, deadline: Instant, done: impl Fn(&State) -> bool) -> bool {
        let mut state = self.lock();
        state.waiting += 1;
        while !done(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.news.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.waiting -= 1;
        done(&state)
    }

    /// Changes the state and tells everyone who asked to be told.
    fn publish(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        let waker = state.waker.clone();
        let waiting = state.waiting;
        drop(state);
        if waiting > 0 {
            self.news.notify_all();
        }
        if let Some(waker) = waker {
            waker();
        }
    }
}

/// The writer.
pub(super) struct Writer<S: Storage> {
    pub(super) shared: std::sync::Arc<Shared>,
    pub(super) log: std::sync::Arc<Mutex<Log<S>>>,
    /// How long to collect records before a group is written.
    pub(super) linger: Duration,
    pub(super) dir: String,
    /// Held as long as this thread can write.
    pub(super) lock: Option<File>,
}

impl<S: Storage> Writer<S> {
    /// Runs until the bus is closed.
    pub(super) fn run(mut self) {
        let end = End(std::sync::Arc::clone(&self.shared));
        let mut group = Group::new();
        loop {
            let (ticket, retain, closing) = self.next_job(&mut group);
            if !group.is_empty() {
                if !self.write_until_durable(&mut group) {
                    break;
                }
                self.shared.acknowledged.store(ticket.0, Ordering::Release);
                self.shared
                    .publish(|state| state.window.acknowledge_through(ticket));
                group.clear();
            }
            if retain {
                self.retain();
            }
            if closing && self.shared.lock().filling.is_empty() {
                break;
            }
        }
        if let Err(error) = self.lock_log().seal() {
            tracing::warn!(dir = self.dir, %error, "the log could not be sealed at its end");
        }
        // The lock goes before the news, so that who waited for the end can open the log again.
        drop(self.lock.take());
        drop(end);
    }

    /// Waits for something to do, collects for a while, and takes what there is then.
    fn next_job(&mut self, group: &mut Group) -> (Ticket, bool, bool) {
        let mut state = self.shared.lock();
        let idle = |state: &State| state.filling.is_empty() && !state.retain && !state.closing;
        while idle(&state) {
            state.parked = true;
            let woken = self.shared.work.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
        state.parked = false;
        if !state.filling.is_empty() && !self.linger.is_zero() {
            let until = Instant::now() + self.linger;
            while !state.urgent && state.filling.bytes() < GROUP_BYTES {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                let woken = self.shared.work.wait_timeout(state, left);
                state = woken.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        std::mem::swap(group, &mut state.filling);
        state.urgent = false;
        let retain = std::mem::take(&mut state.retain);
        (state.window.last(), retain, state.closing)
    }

    /// Tries until the group is durable; `false` if the bus is closed before that.
    fn write_until_durable(&mut self, group: &mut Group) -> bool {
        let mut pause = RETRY_FIRST;
        loop {
            let written = self.lock_log().write(group);
            let Err(error) = written else {
                break;
            };
            self.report_failure(&error);
            let state = self.shared.lock();
            let waited = self
                .shared
                .work
                .wait_timeout_while(state, pause, |state| !state.closing);
            let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if state.closing {
                drop(state);
                // One last time, since the pause was cut short.
                return self.lock_log().write(group).is_ok();
            }
            pause = (pause * 2).min(RETRY_LONGEST);
        }
        if self.shared.lock().health != Health::Healthy {
            tracing::info!(dir = self.dir, "the log can be written again");
            self.shared.publish(|state| state.health = Health::Healthy);
        }
        true
    }

    fn report_failure(&self, error: &io::Error) {
        let reason = format!("{error}; free some space in {} or mend its disk", self.dir);
        let health = Health::Degraded { reason };
        if self.shared.lock().health != health {
            tracing::error!(dir = self.dir, %error, "the log cannot be written, trying again");
            self.shared.publish(|state| state.health = health);
        }
    }

    fn retain(&self) {
        if let Err(error) = self.lock_log().retain(now_unix_ms()) {
            tracing::warn!(dir = self.dir, %error, "a finished segment could not be deleted");
        }
    }

    fn lock_log(&self) -> MutexGuard<'_, Log<S>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says that the writer is gone, also if it panics: nobody may wait for it then.
struct End(std::sync::Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.publish(|state| {
            state.ended = true;
            let reason = if state.closing {
                "closed by its owner".to_owned()
            } else {
                "its writer has panicked, this is a bug; restart the process".to_owned()
            };
            state.health = Health::Closed { reason };
        });
    }
}

//! What the appending thread and the bus's own thread share: a queue, the window, and the news.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::bus::{FlushError, Health, Ticket, Waker};
use crate::window::Window;

/// How long closing a bus waits for its thread when the deadline has passed already.
const END_WAIT: Duration = Duration::from_secs(2);

/// The shared part of a bus; `Q` is what has been appended and not yet taken by its thread.
pub(crate) struct Shared<Q> {
    state: Mutex<State<Q>>,
    /// Wakes the bus's thread.
    work: Condvar,
    /// Wakes those who wait in `flush` and `close`.
    news: Condvar,
    acknowledged: AtomicU64,
    /// The waker was called, and `acknowledged` has not been read since: no need to call again.
    announced: AtomicBool,
}

pub(crate) struct State<Q> {
    pub(crate) queue: Q,
    pub(crate) window: Window,
    pub(crate) health: Health,
    pub(crate) waker: Option<Waker>,
    /// Marks are to be committed.
    pub(crate) commit: bool,
    pub(crate) closing: bool,
    /// The thread must not wait for more records.
    pub(crate) urgent: bool,
    /// The thread sleeps until it is told; while it is awake, nobody pays for a system call.
    parked: bool,
    ended: bool,
    /// Callers in `wait_for_news`.
    waiting: usize,
}

impl<Q> Shared<Q> {
    pub(crate) fn new(queue: Q) -> Shared<Q> {
        Shared {
            state: Mutex::new(State {
                queue,
                window: Window::new(),
                health: Health::Healthy,
                waker: None,
                commit: false,
                closing: false,
                urgent: false,
                parked: false,
                ended: false,
                waiting: 0,
            }),
            work: Condvar::new(),
            news: Condvar::new(),
            acknowledged: AtomicU64::new(0),
            announced: AtomicBool::new(false),
        }
    }

    /// The state. A thread that panics while it has the lock leaves nothing half done that the
    /// other could not live with, so poison is ignored.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State<Q>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state of a bus that is not closed; else the reason.
    pub(crate) fn lock_open(&self) -> Result<MutexGuard<'_, State<Q>>, String> {
        let state = self.lock();
        match &state.health {
            Health::Closed { reason } => Err(reason.clone()),
            Health::Healthy | Health::Degraded { .. } => Ok(state),
        }
    }

    pub(crate) fn acknowledged(&self) -> Ticket {
        self.announced.store(false, Ordering::SeqCst);
        Ticket(self.acknowledged.load(Ordering::SeqCst))
    }

    // --- the appending thread -------------------------------------------------------------------

    /// Tells the bus's thread of something to do; `urgent` work is not collected for a while.
    pub(crate) fn poke(&self, mut state: MutexGuard<'_, State<Q>>, urgent: bool) {
        let wake = state.parked || (urgent && !state.urgent);
        state.parked = false;
        state.urgent |= urgent;
        drop(state);
        if wake {
            self.work.notify_one();
        }
    }

    /// Waits until the window is empty; `idle` says what to blame when no fault is known.
    pub(crate) fn flush(&self, deadline: Instant, idle: &str) -> Result<(), FlushError> {
        self.poke(self.lock(), true);
        let over = |state: &State<Q>| {
            state.window.is_empty() || matches!(state.health, Health::Closed { .. })
        };
        let state = self.wait_for_news(deadline, over);
        if state.window.is_empty() {
            return Ok(());
        }
        let unbacked = state.window.unbacked();
        let health = match &state.health {
            Health::Closed { reason } => {
                let reason = reason.clone();
                return Err(FlushError::Closed { reason });
            }
            Health::Degraded { reason } => reason.clone(),
            Health::Healthy => idle.to_owned(),
        };
        Err(FlushError::Deadline {
            messages: unbacked.messages,
            bytes: unbacked.bytes,
            health,
        })
    }

    /// Asks the bus's thread to end; returns whether it has, soon after `deadline` at the latest.
    pub(crate) fn end(&self, deadline: Instant) -> bool {
        let mut state = self.lock();
        state.closing = true;
        self.poke(state, true);
        let deadline = deadline.max(Instant::now() + END_WAIT);
        self.wait_for_news(deadline, |state| state.ended).ended
    }

    fn wait_for_news(
        &self,
        deadline: Instant,
        over: impl Fn(&State<Q>) -> bool,
    ) -> MutexGuard<'_, State<Q>> {
        let mut state = self.lock();
        state.waiting += 1;
        while !over(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let woken = self.news.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.waiting -= 1;
        state
    }

    // --- the bus's thread -----------------------------------------------------------------------

    /// Parks while `idle`, at most for `longest`.
    pub(crate) fn park_while(
        &self,
        longest: Duration,
        idle: impl Fn(&State<Q>) -> bool,
    ) -> MutexGuard<'_, State<Q>> {
        let mut state = self.lock();
        let until = Instant::now() + longest;
        while idle(&state) {
            state.parked = true;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let woken = self.work.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.parked = false;
        state
    }

    /// Waits for `longest` unless something urgent or the close comes, without being parked: who
    /// appends meanwhile does not call the kernel.
    pub(crate) fn collect<'a>(
        &'a self,
        state: MutexGuard<'a, State<Q>>,
        longest: Duration,
    ) -> MutexGuard<'a, State<Q>> {
        let calm = |state: &mut State<Q>| !state.urgent && !state.closing;
        let woken = self.work.wait_timeout_while(state, longest, calm);
        woken.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits for `longest`, or until the bus is to be closed; returns whether it is.
    pub(crate) fn pause(&self, longest: Duration) -> bool {
        let calm = |state: &mut State<Q>| !state.closing;
        let woken = self.work.wait_timeout_while(self.lock(), longest, calm);
        woken.unwrap_or_else(PoisonError::into_inner).0.closing
    }

    /// All up to `ticket` is durable, which `state`'s window knows already.
    pub(crate) fn acknowledge(&self, state: MutexGuard<'_, State<Q>>, ticket: Ticket) {
        let before = self.acknowledged.swap(ticket.0, Ordering::SeqCst);
        debug_assert!(before <= ticket.0);
        let call = before != ticket.0 && !self.announced.swap(true, Ordering::SeqCst);
        self.tell(state, call);
    }

    /// Sets the health and tells everyone, if it is news. A closed bus stays closed.
    pub(crate) fn set_health(&self, health: Health) {
        let mut state = self.lock();
        if state.health != health && !matches!(state.health, Health::Closed { .. }) {
            state.health = health;
            self.tell(state, true);
        }
    }

    fn tell(&self, state: MutexGuard<'_, State<Q>>, call_waker: bool) {
        let waker = state.waker.clone().filter(|_| call_waker);
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

/// Says that the bus's thread is gone, also if it panics: nobody may wait for it then.
pub(crate) struct End<'a, Q>(pub(crate) &'a Shared<Q>);

impl<Q> Drop for End<'_, Q> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.ended = true;
        if !matches!(state.health, Health::Closed { .. }) {
            let reason = if state.closing {
                "closed by its owner"
            } else {
                "its thread has panicked, this is a bug; restart the process"
            };
            let reason = reason.to_owned();
            state.health = Health::Closed { reason };
        }
        self.0.tell(state, true);
    }
}

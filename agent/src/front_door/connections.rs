//! Open connections: how many there may be, and which one goes when there is no room.
//!
//! A connection is *idle* while none of its requests is at work: nothing has come yet, a head is
//! coming slowly, or the client keeps it for later. Only idle connections are closed for others,
//! the one that has been idle longest first, so that thousands that send nothing keep nobody out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Descriptors that are left to everything else: the bus, the logs, the sandboxes, control.
const OTHER_DESCRIPTORS: u64 = 256;

/// More connections than this cost memory and help nobody on one host.
const OPEN_MAX: usize = 10_000;

/// What a client may take its time for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Connections that are open at once.
    pub open_max: usize,
    /// From the opening, or the answer before, until a request's head is whole (HTTP/1.1).
    pub head: Duration,
    /// From a request's head until its body is whole.
    pub body: Duration,
    /// How long a connection may be idle, whatever is sent on it.
    pub idle: Duration,
}

impl Default for ConnectionLimits {
    /// As many connections as half of this process's descriptors allow.
    fn default() -> ConnectionLimits {
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        ConnectionLimits {
            open_max: budget(descriptors),
            head: Duration::from_secs(20),
            body: Duration::from_secs(30),
            idle: Duration::from_secs(60),
        }
    }
}

/// Connections that fit into so many descriptors.
fn budget(descriptors: u64) -> usize {
    let spare = descriptors.saturating_sub(OTHER_DESCRIPTORS) / 2;
    usize::try_from(spare)
        .unwrap_or(OPEN_MAX)
        .clamp(16, OPEN_MAX)
}

/// Counts of a front door's connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ConnectionCounts {
    /// Open now.
    pub open: usize,
    /// Accepted since the start.
    pub accepted: u64,
    /// Closed because they had been idle longest when another one came.
    pub displaced: u64,
    /// Closed because they were idle for too long.
    pub timed_out: u64,
    /// Refused with 503, since all the others were at work.
    pub refused: u64,
}

/// The open connections of a front door.
#[derive(Debug, Default)]
pub(super) struct Connections {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    counts: ConnectionCounts,
    /// Those that are idle, the one that has been so longest first.
    idle: BTreeMap<u64, Arc<Notify>>,
    next: u64,
}

impl State {
    fn rest(&mut self, close: &Arc<Notify>) -> Work {
        self.next += 1;
        self.idle.insert(self.next, Arc::clone(close));
        Work::Idle {
            number: self.next,
            since: Instant::now(),
        }
    }
}

impl Connections {
    /// A place for one more connection; `None` if all that are open are at work.
    pub(super) fn admit(self: &Arc<Self>, open_max: usize) -> Option<Arc<Connection>> {
        let mut state = self.lock();
        if state.counts.open >= open_max && !displace(&mut state) {
            state.counts.refused += 1;
            return None;
        }
        state.counts.open += 1;
        state.counts.accepted += 1;
        let close = Arc::new(Notify::new());
        let work = state.rest(&close);
        drop(state);
        Some(Arc::new(Connection {
            all: Arc::clone(self),
            close,
            work: Mutex::new(work),
        }))
    }

    /// Closes the connection that has been idle longest; whether there was one.
    pub(super) fn displace(&self) -> bool {
        displace(&mut self.lock())
    }

    pub(super) fn counts(&self) -> ConnectionCounts {
        self.lock().counts
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn displace(state: &mut State) -> bool {
    let Some((_, close)) = state.idle.pop_first() else {
        return false;
    };
    // It counts as closed from now on: its task ends at its next turn.
    close.notify_one();
    state.counts.open -= 1;
    state.counts.displaced += 1;
    true
}

/// What a connection is doing.
#[derive(Debug)]
enum Work {
    Idle { number: u64, since: Instant },
    Requests(usize),
}

/// One open connection's place; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Connection {
    all: Arc<Connections>,
    close: Arc<Notify>,
    work: Mutex<Work>,
}

impl Connection {
    /// A request of it is at work until the answer is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> AtWork {
        let mut state = self.all.lock();
        let mut work = self.lock();
        let requests = match *work {
            Work::Idle { number, .. } => {
                if state.idle.remove(&number).is_none() {
                    // Displaced at this very moment: it counts again until its task ends.
                    state.counts.open += 1;
                }
                0
            }
            Work::Requests(requests) => requests,
        };
        *work = Work::Requests(requests + 1);
        AtWork(Arc::clone(self))
    }

    /// Waits until it has been idle for `limit`, or has to make room for another.
    pub(super) async fn closing(&self, limit: Duration) {
        loop {
            let now = Instant::now();
            let since = match *self.lock() {
                Work::Idle { since, .. } => since,
                Work::Requests(_) => now,
            };
            if now.duration_since(since) >= limit {
                self.all.lock().counts.timed_out += 1;
                return;
            }
            tokio::select! {
                () = self.close.notified() => return,
                () = tokio::time::sleep_until(since + limit) => {}
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut state = self.all.lock();
        let is_open = match *self.lock() {
            Work::Idle { number, .. } => state.idle.remove(&number).is_some(),
            Work::Requests(_) => true,
        };
        if is_open {
            state.counts.open -= 1;
        }
    }
}

/// A request at work on a connection.
#[derive(Debug)]
pub(super) struct AtWork(Arc<Connection>);

impl Drop for AtWork {
    fn drop(&mut self) {
        let mut state = self.0.all.lock();
        let mut work = self.0.lock();
        *work = match *work {
            Work::Requests(requests) if requests > 1 => Work::Requests(requests - 1),
            _ => state.rest(&self.0.close),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_has_been_idle_longest_makes_room_and_one_at_work_never_does() {
        let all = Arc::new(Connections::default());
        let first = all.admit(3).unwrap();
        let second = all.admit(3).unwrap();
        let third = all.admit(3).unwrap();
        let at_work = first.begin();
        drop(second.begin()); // idle for less long than the third now
        let _fourth = all.admit(3).unwrap();
        let displaced = |connection: &Connection| {
            let Work::Idle { number, .. } = *connection.lock() else {
                return false;
            };
            !all.lock().idle.contains_key(&number)
        };
        assert_eq!(
            [&first, &second, &third].map(|one| displaced(one)),
            [false, false, true]
        );
        let counts = all.counts();
        assert_eq!((counts.open, counts.displaced), (3, 1));
        drop(third);
        assert_eq!(all.counts().open, 3, "a displaced one was counted twice");
        drop((at_work, first, second));
        assert_eq!(all.counts().open, 1);
    }

    #[test]
    fn when_all_are_at_work_the_next_is_refused() {
        let all = Arc::new(Connections::default());
        let only = all.admit(1).unwrap();
        let at_work = [only.begin(), only.begin()];
        assert!(all.admit(1).is_none());
        let [one, other] = at_work;
        drop(one);
        assert!(all.admit(1).is_none(), "its other request is still at work");
        drop(other);
        assert!(all.admit(1).is_some());
        assert_eq!(all.counts().refused, 2);
    }

    #[test]
    fn half_of_the_descriptors_are_for_connections() {
        for (descriptors, connections) in
            [(1024, 384), (20_000, 9872), (64, 16), (u64::MAX, OPEN_MAX)]
        {
            assert_eq!(budget(descriptors), connections);
        }
    }
}

//! What an application may cost beside its sandbox: bytes of the log on this host's disk, and
//! wake-ups of its bus thread, whose time is the agent's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// The length of the time in which wake-ups are counted.
const SECOND: Duration = Duration::from_secs(1);

/// Bounds that the bus thread keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of the global bus's log on this host's disk; beyond it nothing new is accepted.
    pub spool_bytes: u64,
    /// Messages that wait in the first grain's queue; kept by the queue itself.
    pub queue_length: u64,
    /// Wake-ups in a second that find nothing; beyond it the bus thread looks by the clock.
    pub empty_wakes_per_s: u64,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            // At the speed of a disk for a minute, which is how long an answer is kept.
            spool_bytes: 8 << 30,
            queue_length: 1024,
            // An honest application has some hundreds, when a message was taken before its ring.
            empty_wakes_per_s: 5000,
        }
    }
}

impl Bounds {
    /// Why nothing new is accepted, if so much is on the disk.
    pub(super) fn spool_is_full(&self, spooled_bytes: u64) -> Option<Arc<str>> {
        let full = spooled_bytes >= self.spool_bytes;
        full.then(|| {
            let (now, limit) = (spooled_bytes >> 20, self.spool_bytes >> 20);
            format!(
                "the application's log holds {now} MiB, its limit is {limit}: nothing was \
                 accepted, what is open goes on; it shrinks as requests finish and answers \
                 expire, or raise limits.spool_mb in app.toml"
            )
            .into()
        })
    }
}

/// One of an application's limits, and how it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitState {
    /// As `[limits]` of `app.toml` calls it, in that unit.
    pub name: String,
    /// The limit.
    pub limit: u64,
    /// How much is used now.
    pub now: u64,
    /// How often it has refused a request; of wake-ups, the seconds in which it held.
    pub hits: u64,
}

impl LimitState {
    /// What a person is told of a limit that was hit; nothing of another one.
    #[must_use]
    pub fn told(&self) -> Option<String> {
        let LimitState {
            name,
            limit,
            now,
            hits,
        } = self;
        (*hits > 0).then(|| format!("{name}: hit {hits} times, now {now} of {limit}"))
    }
}

/// Wake-ups for nothing, second by second. Who rings costs its own application its promptness, and
/// the agent no more than the bound.
#[derive(Debug)]
pub(super) struct EmptyWakes {
    since: Instant,
    count: u64,
    /// Those of the last whole second.
    last: u64,
    /// Seconds in which they were too many.
    hits: u64,
}

impl EmptyWakes {
    pub(super) fn new(now: Instant) -> EmptyWakes {
        EmptyWakes {
            since: now,
            count: 0,
            last: 0,
            hits: 0,
        }
    }

    /// One more; whether it was the first too many of its second.
    pub(super) fn note(&mut self, now: Instant, bounds: &Bounds) -> bool {
        self.turn_over(now);
        self.count += 1;
        let first = self.count == bounds.empty_wakes_per_s;
        self.hits += u64::from(first);
        first
    }

    /// Whether no more of them are borne for now.
    pub(super) fn are_too_many(&mut self, now: Instant, bounds: &Bounds) -> bool {
        self.turn_over(now);
        self.count >= bounds.empty_wakes_per_s
    }

    pub(super) fn state(&self, bounds: &Bounds) -> LimitState {
        LimitState {
            name: "empty_wakes_per_s".into(),
            limit: bounds.empty_wakes_per_s,
            now: self.last.max(self.count),
            hits: self.hits,
        }
    }

    fn turn_over(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since);
        if passed >= SECOND {
            self.last = if passed < 2 * SECOND { self.count } else { 0 };
            self.since = now;
            self.count = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wakes_for_nothing_are_borne_up_to_the_bound_in_each_second() {
        let bounds = Bounds {
            empty_wakes_per_s: 3,
            ..Bounds::default()
        };
        let begin = Instant::now();
        let mut wakes = EmptyWakes::new(begin);
        let noted = [(); 2].map(|()| wakes.note(begin, &bounds));
        assert_eq!(noted, [false, false]);
        assert!(!wakes.are_too_many(begin, &bounds));
        assert!(wakes.note(begin, &bounds), "the third is the last");
        assert!(wakes.are_too_many(begin + SECOND / 2, &bounds));
        assert!(!wakes.are_too_many(begin + SECOND, &bounds), "a new second");
        let state = wakes.state(&bounds);
        assert_eq!((state.limit, state.now, state.hits), (3, 3, 1));
    }

    #[test]
    fn a_full_spool_says_both_figures_and_where_the_limit_stands() {
        let bounds = Bounds {
            spool_bytes: 16 << 20,
            ..Bounds::default()
        };
        assert_eq!(bounds.spool_is_full((16 << 20) - 1), None);
        let reason = bounds.spool_is_full(17 << 20).unwrap();
        for words in ["17 MiB", "is 16", "limits.spool_mb"] {
            assert!(reason.contains(words), "{reason}");
        }
    }
}

//! Wake-ups of a bus thread, second by second: those for nothing and all together. Who rings costs
//! its own application its promptness, and the agent no more than the bound.

use std::time::{Duration, Instant};

use super::bounds::LimitState;

/// The length of the time in which they are counted.
const SECOND: Duration = Duration::from_secs(1);

/// Wake-ups of one kind.
#[derive(Debug)]
pub(super) struct Wakes {
    since: Instant,
    count: u64,
    /// Those of the last whole second.
    last: u64,
    /// Seconds in which they were too many.
    hits: u64,
}

impl Wakes {
    pub(super) fn new(now: Instant) -> Wakes {
        Wakes {
            since: now,
            count: 0,
            last: 0,
            hits: 0,
        }
    }

    /// One more; whether it was the first too many of its second.
    pub(super) fn note(&mut self, now: Instant, limit: u64) -> bool {
        self.turn_over(now);
        self.count += 1;
        let first = self.count == limit;
        self.hits += u64::from(first);
        first
    }

    /// Whether no more of them are borne for now.
    pub(super) fn are_too_many(&mut self, now: Instant, limit: u64) -> bool {
        self.turn_over(now);
        self.count >= limit
    }

    pub(super) fn state(&self, name: &str, limit: u64) -> LimitState {
        LimitState {
            name: name.into(),
            limit,
            now: Some(self.last.max(self.count)),
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
    fn wakes_are_borne_up_to_the_bound_in_each_second() {
        let begin = Instant::now();
        let mut wakes = Wakes::new(begin);
        let noted = [(); 2].map(|()| wakes.note(begin, 3));
        assert_eq!(noted, [false, false]);
        assert!(!wakes.are_too_many(begin, 3));
        assert!(wakes.note(begin, 3), "the third is the last");
        assert!(wakes.are_too_many(begin + SECOND / 2, 3));
        assert!(!wakes.are_too_many(begin + SECOND, 3), "a new second");
        let state = wakes.state("wakes_per_s", 3);
        assert_eq!((state.limit, state.now, state.hits), (3, Some(3), 1));
    }
}

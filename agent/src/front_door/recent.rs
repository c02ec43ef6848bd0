//! How long the requests of the last seconds took.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Requests older than two of these are forgotten.
const WINDOW: Duration = Duration::from_secs(10);

/// Microseconds; what takes longer counts as this.
const MAX_US: u64 = 3_600_000_000;

/// How long the requests to one application took, in the last 10 to 20 seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// The application.
    pub app: String,
    /// Requests.
    pub count: u64,
    /// Half of them were answered within so many microseconds.
    pub p50_us: u64,
    /// 99 of 100 were.
    pub p99_us: u64,
}

/// Two windows: the current one and the one before.
#[derive(Debug)]
pub(super) struct Recent {
    begin: Instant,
    current: Histogram<u64>,
    before: Histogram<u64>,
}

impl Default for Recent {
    fn default() -> Recent {
        let empty = || Histogram::new_with_max(MAX_US, 2).expect("constant bounds are valid");
        Recent {
            begin: Instant::now(),
            current: empty(),
            before: empty(),
        }
    }
}

impl Recent {
    pub(super) fn record(&mut self, took: Duration) {
        self.turn(Instant::now());
        let us = u64::try_from(took.as_micros()).unwrap_or(MAX_US);
        self.current.saturating_record(us.clamp(1, MAX_US));
    }

    pub(super) fn latency(&mut self, app: &str) -> Latency {
        self.turn(Instant::now());
        let mut both = self.before.clone();
        both.add(&self.current).expect("both have the same bounds");
        Latency {
            app: app.to_owned(),
            count: both.len(),
            p50_us: both.value_at_quantile(0.5),
            p99_us: both.value_at_quantile(0.99),
        }
    }

    fn turn(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.begin);
        if age < WINDOW {
            return;
        }
        std::mem::swap(&mut self.current, &mut self.before);
        self.current.reset();
        if age >= 2 * WINDOW {
            self.before.reset();
        }
        self.begin = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quantiles_are_of_the_last_two_windows_only() {
        let mut recent = Recent::default();
        let begin = recent.begin;
        (1..=100).for_each(|ms| recent.record(Duration::from_millis(ms)));
        let within = |value: u64, ms: u64| value.abs_diff(ms * 1000) * 50 <= ms * 1000;
        let first = recent.latency("a");
        assert_eq!(first.count, 100);
        assert!(
            within(first.p50_us, 50) && within(first.p99_us, 99),
            "{first:?}"
        );
        recent.turn(begin + WINDOW);
        assert_eq!(recent.latency("a").count, 100);
        recent.turn(begin + 2 * WINDOW);
        assert_eq!(recent.latency("a").count, 0);
        recent.record(Duration::from_millis(1));
        recent.turn(begin + 4 * WINDOW);
        assert_eq!(
            recent.latency("a").count,
            0,
            "after a long pause nothing is recent"
        );
    }
}

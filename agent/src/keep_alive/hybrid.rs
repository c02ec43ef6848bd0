//! The hybrid histogram policy of "Serverless in the Wild" (Shahrad et al., ATC 2020): unload at
//! once and load again just before the next event is likely, as far as the past idle times tell.
//!
//! Left out is its forecast by ARIMA for workers whose idle times lie beyond the histogram: they
//! are kept as workers with too few samples are.

use std::time::Duration;

use super::{IdleTimes, KeepAlive, Plan};

/// Idle times that the histogram has to hold before it is believed.
const SAMPLES_MIN: u64 = 10;

/// The share of idle times beyond the histogram with which it is not believed. The paper gives
/// none; this is the one of its re-implementations.
const BEYOND_MAX: f64 = 0.5;

/// The coefficient of variation of the bins below which they show no pattern.
const VARIATION_MIN: f64 = 2.0;

/// Percentiles within which the next event is expected.
const HEAD_PERCENT: u64 = 5;
const TAIL_PERCENT: u64 = 99;

/// Margins: load at nine tenths of the head, unload at eleven tenths of the tail.
const LOAD_TENTHS: u32 = 9;
const UNLOAD_TENTHS: u32 = 11;

/// The policy for one worker.
#[derive(Clone, Debug, Default)]
pub struct Hybrid {
    times: IdleTimes,
}

impl Hybrid {
    /// One that counts idle times in bins of this width, which is not zero. The default is the
    /// paper's minute.
    #[must_use]
    pub fn with_bin(bin: Duration) -> Hybrid {
        let times = IdleTimes::new(bin);
        Hybrid { times }
    }
}

impl KeepAlive for Hybrid {
    fn note_idle(&mut self, idle: Duration) {
        self.times.note(idle);
    }

    fn plan(&self) -> Plan {
        let standard = Plan::keep(self.times.range());
        let believed = self.times.count() >= SAMPLES_MIN
            && self.times.share_beyond() <= BEYOND_MAX
            && self.times.variation() >= VARIATION_MIN;
        let edges = (
            self.times.percentile(HEAD_PERCENT),
            self.times.percentile(TAIL_PERCENT),
        );
        let (true, (Some((head, _)), Some((_, tail)))) = (believed, edges) else {
            return standard;
        };
        Plan {
            load: head * LOAD_TENTHS / 10,
            unload: Some(tail * UNLOAD_TENTHS / 10),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn after(idle: &[(u64, usize)]) -> Plan {
        let mut policy = Hybrid::default();
        for &(minutes, times) in idle {
            (0..times).for_each(|_| policy.note_idle(seconds(60 * minutes + 30)));
        }
        policy.plan()
    }

    #[test]
    fn a_regular_worker_is_loaded_just_before_its_next_event() {
        // Head 10 min, tail 11 min: 9 min and 12.1 min.
        let plan = after(&[(10, 20)]);
        assert_eq!((plan.load, plan.unload), (seconds(540), Some(seconds(726))));
        // 4 % outliers below and 1 % above count for nothing: 0.9 × 30 and 1.1 × 31 min.
        let plan = after(&[(2, 4), (30, 95), (200, 1)]);
        assert_eq!(
            (plan.load, plan.unload),
            (seconds(1620), Some(seconds(2046)))
        );
    }

    #[test]
    fn a_busy_worker_is_not_unloaded_and_kept_for_its_tail() {
        let plan = after(&[(0, 90), (4, 10)]);
        assert_eq!((plan.load, plan.unload), (seconds(0), Some(seconds(330))));
    }

    #[test]
    fn what_shows_no_pattern_is_kept_for_the_whole_range() {
        let standard = Plan::keep(seconds(4 * 3600));
        assert_eq!(after(&[]), standard);
        assert_eq!(after(&[(10, 9)]), standard, "too few");
        assert_ne!(after(&[(10, 10)]), standard);
        assert_eq!(after(&[(10, 10), (300, 11)]), standard, "beyond the range");
        assert_ne!(after(&[(10, 10), (300, 10)]), standard);
        let spread = |bins: u64| (0..bins).map(|n| (n, 1)).collect::<Vec<_>>();
        assert_eq!(after(&spread(49)), standard, "a variation below 2");
        assert_ne!(after(&spread(48)), standard);
    }
}

//! Idle times of one worker, counted by the minute if nothing else is said.

use std::time::Duration;

/// Four hours of minutes.
pub(super) const BINS: u32 = 240;

/// How often the worker was idle for how long, and how often for longer than all bins.
#[derive(Clone, Debug)]
pub struct IdleTimes {
    /// What one bin covers.
    bin: Duration,
    bins: [u32; BINS as usize],
    within: u64,
    beyond: u64,
    /// Sum of the squared counts.
    squares: u64,
}

impl Default for IdleTimes {
    fn default() -> IdleTimes {
        IdleTimes::new(IdleTimes::BIN)
    }
}

impl IdleTimes {
    /// What a bin covers if nothing else is said: a minute.
    pub const BIN: Duration = Duration::from_secs(60);

    /// None yet; `bin`, not zero, is what one of the 240 bins covers.
    #[must_use]
    pub fn new(bin: Duration) -> IdleTimes {
        assert!(!bin.is_zero(), "a bin covers some time");
        IdleTimes {
            bin,
            bins: [0; BINS as usize],
            within: 0,
            beyond: 0,
            squares: 0,
        }
    }

    /// What all bins cover; a longer idle time has none.
    #[must_use]
    pub fn range(&self) -> Duration {
        self.bin * BINS
    }

    /// Counts one.
    pub fn note(&mut self, idle: Duration) {
        let index = usize::try_from(idle.as_nanos() / self.bin.as_nanos()).unwrap_or(usize::MAX);
        match self.bins.get_mut(index) {
            Some(count) if *count < u32::MAX => {
                // (c + 1)² = c² + 2c + 1
                self.squares += 2 * u64::from(*count) + 1;
                *count += 1;
                self.within += 1;
            }
            Some(_) => {}
            None => self.beyond += 1,
        }
    }

    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.within + self.beyond
    }

    /// The share of those that were longer than all bins, 0 to 1.
    #[must_use]
    pub fn share_beyond(&self) -> f64 {
        self.beyond as f64 / (self.count().max(1)) as f64
    }

    /// The coefficient of variation of the bins' counts: 0 if every bin has the same, large if a
    /// few have nearly all. 0 without any.
    #[must_use]
    pub fn variation(&self) -> f64 {
        if self.within == 0 {
            return 0.0;
        }
        let mean = self.within as f64 / f64::from(BINS);
        let variance = self.squares as f64 / f64::from(BINS) - mean * mean;
        variance.max(0.0).sqrt() / mean
    }

    /// The bin within which a share of `percent` of the counted ones is reached: its beginning and
    /// its end. `None` if no bin has any.
    #[must_use]
    pub fn percentile(&self, percent: u64) -> Option<(Duration, Duration)> {
        let wanted = (self.within * percent).div_ceil(100).max(1);
        let mut below = 0;
        let index = self.bins.iter().position(|&count| {
            below += u64::from(count);
            below >= wanted
        })?;
        let begin = self.bin * u32::try_from(index).expect("240 bins");
        Some((begin, begin + self.bin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minutes(n: u64) -> Duration {
        Duration::from_secs(60 * n)
    }

    #[test]
    fn the_variation_is_that_of_the_definition() {
        // One each in 48 bins: mean 1/5, mean of squares 1/5, so √(1/5 - 1/25) / (1/5) = 2.
        let mut times = IdleTimes::default();
        (0..48).for_each(|n| times.note(minutes(n)));
        assert!((times.variation() - 2.0).abs() < 1e-12);
        // All bins alike: 0.
        (48..240).for_each(|n| times.note(minutes(n)));
        assert!(times.variation().abs() < 1e-12);
        // 3 in one bin only: √(9/240 - (3/240)²) / (3/240) = √239.
        let mut times = IdleTimes::default();
        (0..3).for_each(|_| times.note(minutes(7)));
        assert!((times.variation() - 239_f64.sqrt()).abs() < 1e-9);
    }

    #[test]
    fn percentiles_are_the_edges_of_their_bin() {
        let mut times = IdleTimes::default();
        assert_eq!(times.percentile(5), None);
        // 4 of 100 in minute 2, 95 in minute 30, 1 in minute 200.
        (0..4).for_each(|_| times.note(minutes(2)));
        (0..95).for_each(|_| times.note(minutes(30)));
        times.note(minutes(200));
        let edges = |percent| times.percentile(percent).unwrap();
        assert_eq!(edges(4), (minutes(2), minutes(3)));
        assert_eq!(edges(5), (minutes(30), minutes(31)));
        assert_eq!(edges(99), (minutes(30), minutes(31)));
        assert_eq!(edges(100), (minutes(200), minutes(201)));
    }

    #[test]
    fn bins_of_another_width_count_alike() {
        let second = Duration::from_secs(1);
        let mut times = IdleTimes::new(second);
        assert_eq!(times.range(), minutes(4));
        times.note(Duration::from_millis(2_999));
        assert_eq!(times.percentile(99), Some((2 * second, 3 * second)));
        times.note(minutes(4));
        assert_eq!((times.count(), times.share_beyond()), (2, 0.5));
    }

    #[test]
    fn what_has_no_bin_is_counted_beyond() {
        let mut times = IdleTimes::default();
        times.note(Duration::from_millis(240 * 60_000 - 1));
        times.note(minutes(240));
        times.note(Duration::MAX);
        times.note(minutes(1));
        assert_eq!((times.count(), times.share_beyond()), (4, 0.5));
    }
}

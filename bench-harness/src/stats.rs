//! Samples and what is said about them.

use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer, V2Serializer};
use serde::{Deserialize, Serialize};

use crate::error::BenchError;

/// Largest value that a histogram tells apart, in ns (100 s); larger ones count as this.
const HIGHEST_NS: u64 = 100_000_000_000;

/// Latencies in nanoseconds: an HDR histogram (3 digits) and the exact mean, spread and extremes.
#[derive(Clone, Debug)]
pub struct Samples {
    histogram: Histogram<u64>,
    count: u64,
    mean: f64,
    /// Sum of squared distances from the mean (Welford).
    squares: f64,
    min: u64,
    max: u64,
}

impl Default for Samples {
    fn default() -> Samples {
        Samples::new()
    }
}

impl Samples {
    /// No samples yet.
    #[must_use]
    pub fn new() -> Samples {
        let histogram = Histogram::new_with_bounds(1, HIGHEST_NS, 3)
            .expect("1 ns to 100 s at 3 digits is a valid range");
        Samples {
            histogram,
            count: 0,
            mean: 0.0,
            squares: 0.0,
            min: u64::MAX,
            max: 0,
        }
    }

    /// Adds one latency in ns.
    pub fn record(&mut self, ns: u64) {
        self.histogram.saturating_record(ns.max(1));
        self.count += 1;
        let value = to_f64(ns);
        let step = value - self.mean;
        self.mean += step / to_f64(self.count);
        self.squares += step * (value - self.mean);
        self.min = self.min.min(ns);
        self.max = self.max.max(ns);
    }

    /// Adds all of another's.
    pub fn merge(&mut self, other: &Samples) {
        if other.count == 0 {
            return;
        }
        self.histogram
            .add(&other.histogram)
            .expect("both histograms have the same range");
        let (here, there) = (to_f64(self.count), to_f64(other.count));
        let step = other.mean - self.mean;
        self.squares += other.squares + step * step * here * there / (here + there);
        self.mean += step * there / (here + there);
        self.count += other.count;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The quantile `q` (0 to 1) in ns; 0 without samples.
    #[must_use]
    pub fn quantile_ns(&self, q: f64) -> f64 {
        if self.count == 0 {
            return 0.0;
        }
        // The histogram answers with the upper end of a bucket, which may lie beyond the extremes.
        to_f64(
            self.histogram
                .value_at_quantile(q)
                .clamp(self.min.max(1), self.max.max(1)),
        )
    }

    /// The median in ns.
    #[must_use]
    pub fn p50_ns(&self) -> f64 {
        self.quantile_ns(0.5)
    }

    /// The mean in ns.
    #[must_use]
    pub fn mean_ns(&self) -> f64 {
        self.mean
    }

    /// All that a row of a report says, in ns.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let half = self.confidence_half_width();
        Summary {
            n: self.count,
            mean: self.mean,
            ci95: [self.mean - half, self.mean + half],
            min: if self.count == 0 {
                0.0
            } else {
                to_f64(self.min)
            },
            p50: self.quantile_ns(0.5),
            p90: self.quantile_ns(0.9),
            p99: self.quantile_ns(0.99),
            p999: self.quantile_ns(0.999),
            max: to_f64(self.max),
        }
    }

    /// Half of the mean's 95 % confidence interval (Student's t), 0 for fewer than two samples.
    fn confidence_half_width(&self) -> f64 {
        if self.count < 2 {
            return 0.0;
        }
        let variance = self.squares / to_f64(self.count - 1);
        student_t_975(self.count - 1) * (variance / to_f64(self.count)).sqrt()
    }

    /// The histogram in HdrHistogram's V2 format (values in ns).
    ///
    /// # Errors
    /// [`BenchError::Os`] if it cannot be encoded.
    pub fn to_v2(&self) -> Result<Vec<u8>, BenchError> {
        let mut bytes = Vec::new();
        V2Serializer::new()
            .serialize(&self.histogram, &mut bytes)
            .map_err(|e| BenchError::os("encode a histogram", std::io::Error::other(e)))?;
        Ok(bytes)
    }
}

impl FromIterator<u64> for Samples {
    fn from_iter<I: IntoIterator<Item = u64>>(values: I) -> Samples {
        let mut samples = Samples::new();
        values.into_iter().for_each(|ns| samples.record(ns));
        samples
    }
}

/// The numbers of one row, all in the same unit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Number of samples.
    pub n: u64,
    /// Arithmetic mean.
    pub mean: f64,
    /// 95 % confidence interval of the mean, lower and upper end.
    pub ci95: [f64; 2],
    /// Smallest.
    pub min: f64,
    /// Median.
    pub p50: f64,
    /// 90 % quantile.
    pub p90: f64,
    /// 99 % quantile.
    pub p99: f64,
    /// 99.9 % quantile.
    pub p999: f64,
    /// Largest.
    pub max: f64,
}

impl Summary {
    /// The same numbers in a unit that is `ns_per_unit` ns long.
    #[must_use]
    pub fn in_unit(&self, ns_per_unit: f64) -> Summary {
        let scale = |value: f64| value / ns_per_unit;
        Summary {
            n: self.n,
            mean: scale(self.mean),
            ci95: self.ci95.map(scale),
            min: scale(self.min),
            p50: scale(self.p50),
            p90: scale(self.p90),
            p99: scale(self.p99),
            p999: scale(self.p999),
            max: scale(self.max),
        }
    }
}

/// The median; the mean of the middle two of an even number; `None` of nothing.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// Student's t, two-sided 95 %, for `freedom` degrees of freedom.
fn student_t_975(freedom: u64) -> f64 {
    const TABLE: [f64; 30] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
        2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
        2.052, 2.048, 2.045, 2.042,
    ];
    let index = usize::try_from(freedom).unwrap_or(usize::MAX);
    // Beyond the table: the first term of the expansion about the normal quantile (error < 0.1 %).
    TABLE
        .get(index.wrapping_sub(1))
        .copied()
        .unwrap_or_else(|| 1.959_96 + 2.372_2 / to_f64(freedom))
}

/// Exact up to 2^53, far beyond any count or latency here.
#[expect(clippy::cast_precision_loss, reason = "values stay below 2^53")]
pub(crate) fn to_f64(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64, relative: f64) -> bool {
        (a - b).abs() <= relative * b.abs().max(1e-9)
    }

    #[test]
    fn the_summary_of_one_to_a_thousand_is_the_known_one() {
        let summary = (1..=1000).collect::<Samples>().summary();
        assert_eq!(summary.n, 1000);
        assert!(near(summary.mean, 500.5, 1e-12));
        // sd = sqrt(1000 * 1001 / 12) = 288.819; t(999) = 1.9623; half = t * sd / sqrt(1000)
        assert!(
            near(summary.ci95[1] - summary.mean, 17.9226, 1e-3),
            "{summary:?}"
        );
        assert!(near(summary.mean - summary.ci95[0], 17.9226, 1e-3));
        assert_eq!([summary.min, summary.max], [1.0, 1000.0]);
        for (q, known) in [
            (summary.p50, 500.0),
            (summary.p90, 900.0),
            (summary.p99, 990.0),
        ] {
            assert!(near(q, known, 2e-3), "{q} is not {known}");
        }
        assert!(near(summary.p999, 999.0, 2e-3));
    }

    #[test]
    fn two_samples_have_the_interval_of_one_degree_of_freedom() {
        let summary = [10, 20].into_iter().collect::<Samples>().summary();
        // sd = 7.0711, half = 12.706 * 7.0711 / sqrt(2) = 63.53
        assert!(near(summary.ci95[1], 78.53, 1e-4) && near(summary.ci95[0], -48.53, 1e-4));
    }

    #[test]
    fn one_sample_and_none_have_no_interval() {
        let one = [7].into_iter().collect::<Samples>().summary();
        assert_eq!(
            (one.mean, one.ci95, one.p50, one.max),
            (7.0, [7.0, 7.0], 7.0, 7.0)
        );
        let none = Samples::new().summary();
        assert_eq!((none.n, none.mean, none.min, none.p99), (0, 0.0, 0.0, 0.0));
    }

    #[test]
    fn merging_two_halves_gives_what_the_whole_gives() {
        let whole: Samples = (1..=5000).map(|i| i * i % 7919 + 1).collect();
        let mut left: Samples = (1..=1200).map(|i| i * i % 7919 + 1).collect();
        let right: Samples = (1201..=5000).map(|i| i * i % 7919 + 1).collect();
        left.merge(&right);
        let (a, b) = (left.summary(), whole.summary());
        assert!(near(a.mean, b.mean, 1e-12) && near(a.ci95[0], b.ci95[0], 1e-9));
        assert_eq!(
            (a.n, a.min, a.p50, a.p99, a.max),
            (b.n, b.min, b.p50, b.p99, b.max)
        );
    }

    #[test]
    fn a_median_takes_the_middle_or_the_mean_of_two() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
    }

    #[test]
    fn a_v2_file_gives_the_same_histogram_back() {
        let samples: Samples = (1..=777).collect();
        let bytes = samples.to_v2().unwrap();
        let mut reader = hdrhistogram::serialization::Deserializer::new();
        let back: Histogram<u64> = reader.deserialize(&mut bytes.as_slice()).unwrap();
        assert_eq!(back, samples.histogram);
    }

    #[test]
    fn a_value_beyond_the_range_counts_as_the_largest() {
        let samples: Samples = [u64::MAX / 4].into_iter().collect();
        assert_eq!(samples.count(), 1);
    }
}

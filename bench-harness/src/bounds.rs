//! What each ratio has to reach. A miss is reported, and fails a run only when asked to.

use std::fmt;

/// What a ratio is held against.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
    /// Nothing: it is printed for the reader.
    Printed,
}

impl Bound {
    /// Whether `value` keeps it; a printed one is always kept.
    #[must_use]
    pub fn keeps(self, value: f64) -> bool {
        match self {
            Bound::AtLeast(bound) => value >= bound,
            Bound::AtMost(bound) => value <= bound,
            Bound::Printed => true,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bound::AtLeast(bound) => write!(f, "≥ {bound}"),
            Bound::AtMost(bound) => write!(f, "≤ {bound}"),
            Bound::Printed => f.write_str("–"),
        }
    }
}

/// One stable ratio.
#[derive(Clone, Copy, Debug)]
pub struct Ratio {
    /// Its name in the report.
    pub name: &'static str,
    /// What it must keep now.
    pub bound: Bound,
    /// What it shall keep later, in the same direction.
    pub goal: Option<f64>,
    /// The paper's value of the same thing.
    pub paper: Option<f64>,
}

const fn ratio(name: &'static str, bound: Bound, goal: Option<f64>, paper: Option<f64>) -> Ratio {
    Ratio {
        name,
        bound,
        goal,
        paper,
    }
}

/// Every ratio that a report may carry.
pub const RATIOS: &[Ratio] = &[
    // SAND's Java is its compiled client; its Python is ours.
    ratio(
        "5b.kafka_over_local.rust.awake",
        Bound::AtLeast(1000.0),
        Some(2000.0),
        Some(5.42),
    ),
    ratio(
        "5b.kafka_over_local.python.awake",
        Bound::AtLeast(100.0),
        Some(200.0),
        Some(2.90),
    ),
    ratio(
        "5b.parked_over_futex.rust",
        Bound::AtMost(1.3),
        Some(1.1),
        None,
    ),
    ratio(
        "5b.kafka_over_local.rust.parked",
        Bound::Printed,
        None,
        Some(5.42),
    ),
    ratio(
        "5c.fork_over_floor.rust",
        Bound::AtMost(1.4),
        Some(1.3),
        None,
    ),
    ratio(
        "5c.fork_over_floor.python",
        Bound::AtMost(1.5),
        Some(1.3),
        None,
    ),
    ratio(
        "5c.ahead_over_pool.rust",
        Bound::AtMost(2.0),
        Some(1.5),
        None,
    ),
    ratio(
        "5c.ahead_over_pool.python",
        Bound::AtMost(3.0),
        Some(2.0),
        None,
    ),
    ratio(
        "5c.demand_over_ahead.rust_64MiB",
        Bound::AtLeast(20.0),
        Some(50.0),
        None,
    ),
    ratio(
        "5c.demand_over_ahead.python",
        Bound::AtLeast(8.0),
        Some(12.0),
        None,
    ),
    ratio(
        "5c.pool_over_floor.rust",
        Bound::AtMost(2.0),
        Some(1.5),
        None,
    ),
    ratio(
        "7.overhead_over_floor.fork",
        Bound::AtMost(1.8),
        Some(1.4),
        None,
    ),
    ratio(
        "7.overhead_ms.ahead",
        Bound::AtMost(5.0),
        Some(3.0),
        Some(20.8),
    ),
    ratio(
        "7.overhead_ms.pool",
        Bound::AtMost(5.0),
        Some(3.0),
        Some(20.8),
    ),
    ratio(
        "chain.async_over_none.p50",
        Bound::AtMost(1.10),
        Some(1.05),
        None,
    ),
    // Of the local bus and of a death each bound is the goal.
    ratio(
        "bus.rtt_64.over_minimal_ring",
        Bound::AtMost(1.15),
        None,
        None,
    ),
    ratio("bus.rtt_64.over_named_ring", Bound::Printed, None, None),
    ratio(
        "bus.rtt_64_backup.over_minimal_ring",
        Bound::AtMost(1.20),
        None,
        None,
    ),
    ratio(
        "bus.rtt_64_table.over_minimal_ring",
        Bound::AtMost(1.25),
        None,
        None,
    ),
    ratio("bus.rtt_64.over_aeron.p50", Bound::AtMost(1.0), None, None),
    ratio("bus.rtt_64.over_aeron.p999", Bound::AtMost(0.2), None, None),
    ratio("bus.rtt_64.over_iceoryx2", Bound::AtMost(0.33), None, None),
    ratio(
        "bus.rtt_head.1MiB_over_64B",
        Bound::AtMost(2.0),
        Some(1.2),
        None,
    ),
    ratio(
        "bus.oneway_64.over_aeron.single",
        Bound::AtLeast(1.3),
        None,
        None,
    ),
    ratio(
        "bus.oneway_64.over_aeron.batch",
        Bound::AtLeast(2.0),
        None,
        None,
    ),
    ratio(
        "bus.oneway_64.over_iceoryx2",
        Bound::AtLeast(20.0),
        None,
        None,
    ),
    ratio(
        "bus.oneway_64KiB.over_aeron",
        Bound::AtLeast(3.0),
        None,
        None,
    ),
    ratio(
        "bus.oneway_1MiB.over_iceoryx2",
        Bound::AtLeast(1.0),
        None,
        None,
    ),
    ratio(
        "bus.parked.over_futex.same_core",
        Bound::AtMost(1.1),
        None,
        None,
    ),
    ratio(
        "bus.parked.over_futex.cross_core",
        Bound::AtMost(1.1),
        None,
        None,
    ),
    ratio(
        "bus.parked_multi.over_futex.same_core",
        Bound::AtMost(1.6),
        None,
        None,
    ),
    ratio(
        "bus.parked_multi.over_futex.cross_core",
        Bound::AtMost(1.1),
        None,
        None,
    ),
    ratio(
        "bus.oversubscribed.8_grains_p99_over_pipe",
        Bound::AtMost(2.0),
        None,
        None,
    ),
    ratio("bus.producers.8_over_1", Bound::AtLeast(0.8), None, None),
    ratio("bus.publish_syscalls_awake", Bound::AtMost(0.0), None, None),
    ratio(
        "bus.first_publish_after_fork.faults",
        Bound::AtMost(2.0),
        None,
        None,
    ),
    ratio("bus.memory.idle_queue_bytes", Bound::Printed, None, None),
    ratio("bus.memory.idle_lane_bytes", Bound::Printed, None, None),
    ratio(
        "death.detect.256MiB_over_0.p50",
        Bound::AtMost(3.0),
        None,
        None,
    ),
    ratio("death.redelivery_ms.p99", Bound::AtMost(50.0), None, None),
    ratio(
        "agent_death.gap_p99.during_over_before",
        Bound::AtMost(2.0),
        None,
        None,
    ),
    ratio(
        "agent_death.gap_p99.after_over_before",
        Bound::Printed,
        None,
        None,
    ),
    ratio("agent_death.longest_gap_ms", Bound::Printed, None, None),
    ratio("agent_death.ready_ms.p50", Bound::Printed, None, None),
    ratio("agent_death.lost", Bound::AtMost(0.0), None, None),
    ratio(
        "neighbours.p99_loaded_over_quiet",
        Bound::AtMost(2.0),
        None,
        None,
    ),
    ratio(
        "neighbours.p50_loaded_over_quiet",
        Bound::Printed,
        None,
        None,
    ),
    ratio(
        "overload.goodput_over_best",
        Bound::AtLeast(0.9),
        None,
        None,
    ),
    ratio(
        "overload.rss_after_over_before",
        Bound::AtMost(1.1),
        None,
        None,
    ),
    ratio(
        "keepalive.cold_starts.hybrid_over_fixed_60",
        Bound::Printed,
        None,
        None,
    ),
    ratio(
        "keepalive.memory_time.hybrid_over_fixed_60",
        Bound::Printed,
        None,
        None,
    ),
    ratio(
        "keepalive.memory_time.fixed_20_over_fixed_10",
        Bound::Printed,
        None,
        None,
    ),
    ratio(
        "keepalive.memory_time.fixed_60_over_fixed_10",
        Bound::Printed,
        None,
        None,
    ),
    ratio(
        "keepalive.memory_time.hybrid_over_fixed_10",
        Bound::Printed,
        None,
        None,
    ),
    ratio(
        "keepalive.cold_percent.p75.fixed_10",
        Bound::Printed,
        None,
        None,
    ),
    ratio(
        "keepalive.cold_percent.p75.fixed_20",
        Bound::Printed,
        None,
        None,
    ),
    ratio(
        "keepalive.cold_percent.p75.fixed_60",
        Bound::Printed,
        None,
        None,
    ),
    ratio(
        "keepalive.cold_percent.p75.hybrid",
        Bound::Printed,
        None,
        None,
    ),
];

/// The ratio of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Ratio> {
    RATIOS.iter().find(|ratio| ratio.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_kept_at_its_own_value_and_on_its_side() {
        assert!(Bound::AtLeast(2.0).keeps(2.0) && !Bound::AtLeast(2.0).keeps(1.99));
        assert!(Bound::AtMost(2.0).keeps(2.0) && !Bound::AtMost(2.0).keeps(2.01));
        assert!(Bound::Printed.keeps(f64::MAX));
    }

    #[test]
    fn names_are_unique_and_begin_with_their_figure() {
        for (i, ratio) in RATIOS.iter().enumerate() {
            assert!(
                RATIOS[i + 1..].iter().all(|other| other.name != ratio.name),
                "{}",
                ratio.name
            );
            let figure = ratio.name.split('.').next().unwrap();
            assert!(
                [
                    "5b",
                    "5c",
                    "7",
                    "chain",
                    "bus",
                    "death",
                    "agent_death",
                    "neighbours",
                    "overload",
                    "keepalive"
                ]
                .contains(&figure),
                "{}",
                ratio.name
            );
        }
    }
}

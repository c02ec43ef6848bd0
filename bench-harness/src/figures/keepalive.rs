//! What keeping idle workers loaded costs, and what it saves: policies on a week of events.

use std::time::Duration;

use sandpipe_agent::keep_alive::{Fixed, Hybrid, KeepAlive};

use super::{FigureKind, Parts, Setting};
use crate::error::BenchError;
use crate::report::{Row, Unit};
use crate::stats::Samples;
use crate::trace::{Application, WEEK, week};

pub(super) const FIGURE: FigureKind = FigureKind {
    id: "keepalive",
    title: "Cold starts against idle memory, by keep-alive policy",
    source: "Serverless in the Wild, section 5 (its figures are not reprinted)",
    measure,
};

const SUBSTITUTIONS: [&str; 4] = [
    "simulated: a made-up week (a fixed seed) with the published rates and memory sizes of Azure \
     Functions instead of its trace; the mixture of 20 % regular, 40 % random and 40 % bursty \
     applications is ours, there is no day and night",
    "events take no time, a start takes no time",
    "an application is one worker",
    "the hybrid policy is without its ARIMA forecast",
];

const SEED: u64 = 20_20;
const APPLICATIONS: usize = 600;
const MINUTE: Duration = Duration::from_secs(60);

/// A policy of the figure: its name in a row and in a ratio.
struct Contestant {
    series: &'static str,
    word: &'static str,
    policy: fn() -> Box<dyn KeepAlive>,
}

const CONTESTANTS: [Contestant; 4] = [
    fixed("fixed 10 min", "fixed_10", || boxed(10)),
    fixed("fixed 20 min", "fixed_20", || boxed(20)),
    fixed("fixed 60 min", "fixed_60", || boxed(60)),
    fixed("hybrid", "hybrid", || Box::new(Hybrid::default())),
];

const fn fixed(
    series: &'static str,
    word: &'static str,
    policy: fn() -> Box<dyn KeepAlive>,
) -> Contestant {
    Contestant {
        series,
        word,
        policy,
    }
}

fn boxed(minutes: u32) -> Box<dyn KeepAlive> {
    Box::new(Fixed {
        idle: minutes * MINUTE,
    })
}

/// What one application had of a policy.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Lot {
    events: u64,
    cold: u64,
    /// Loaded while nothing happened.
    idle: Duration,
}

fn measure(setting: &Setting<'_>) -> Result<Parts, BenchError> {
    let mut parts = Parts::default();
    parts.substitutions.extend(SUBSTITUTIONS.map(str::to_owned));
    let trace = week(SEED, setting.profile.samples(APPLICATIONS));
    let results = CONTESTANTS.map(|contestant| summed(&contestant, &trace));
    for (contestant, result) in CONTESTANTS.iter().zip(&results) {
        for (case, samples) in [
            (
                "cold starts, share of an application's events",
                &result.cold,
            ),
            (
                "loaded but idle, share of an application's time",
                &result.idle,
            ),
        ] {
            let row = Row::new(case, contestant.series, Unit::Percent, samples, None);
            parts.rows.push((row, samples.clone()));
        }
    }
    for (contestant, result) in CONTESTANTS.iter().zip(&results) {
        let percent = result.cold.quantile_ns(0.75) / Unit::Percent.ns();
        let name = format!("keepalive.cold_percent.p75.{}", contestant.word);
        parts.ratios.push((name, percent));
        let name = format!("keepalive.memory_time.{}_over_fixed_10", contestant.word);
        let over = result.memory_time / results[0].memory_time;
        parts.ratios.push((name, over));
    }
    parts
        .ratios
        .retain(|(name, _)| !name.ends_with("fixed_10_over_fixed_10"));
    let (hour, hybrid) = (&results[2], &results[3]);
    parts.ratios.push((
        "keepalive.memory_time.hybrid_over_fixed_60".to_owned(),
        hybrid.memory_time / hour.memory_time,
    ));
    parts.ratios.push((
        "keepalive.cold_starts.hybrid_over_fixed_60".to_owned(),
        hybrid.cold_starts as f64 / hour.cold_starts as f64,
    ));
    Ok(parts)
}

/// A policy's result over all applications.
struct Sum {
    cold: Samples,
    idle: Samples,
    cold_starts: u64,
    /// MB·s of idle memory.
    memory_time: f64,
}

fn summed(contestant: &Contestant, trace: &[Application]) -> Sum {
    let mut sum = Sum {
        cold: Samples::new(),
        idle: Samples::new(),
        cold_starts: 0,
        memory_time: 0.0,
    };
    for application in trace {
        let lot = lot(&mut *(contestant.policy)(), &application.events, WEEK);
        sum.cold.record(share(lot.cold as f64, lot.events as f64));
        sum.idle
            .record(share(lot.idle.as_secs_f64(), WEEK.as_secs_f64()));
        sum.cold_starts += lot.cold;
        sum.memory_time += application.memory_mb * lot.idle.as_secs_f64();
    }
    sum
}

/// A share in the unit of samples.
fn share(part: f64, whole: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "0 to 100 percent"
    )]
    let share = (100.0 * Unit::Percent.ns() * part / whole).round() as u64;
    share
}

/// What a policy makes of an application's events; the first finds nothing loaded.
fn lot(policy: &mut dyn KeepAlive, events: &[Duration], end: Duration) -> Lot {
    let mut lot = Lot::default();
    let mut before: Option<Duration> = None;
    for &event in events {
        lot.events += 1;
        match before.map(|before| event - before) {
            None => lot.cold += 1,
            Some(idle) => {
                let plan = policy.plan();
                lot.cold += u64::from(!plan.is_loaded_after(idle));
                lot.idle += plan.loaded_during(idle);
                policy.note_idle(idle);
            }
        }
        before = Some(event);
    }
    if let Some(before) = before {
        lot.idle += policy.plan().loaded_during(end.saturating_sub(before));
    }
    lot
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_every_15_minutes_are_cold_after_10_and_warm_after_20() {
        let events: Vec<Duration> = (0..4).map(|n| 15 * n * MINUTE).collect();
        let end = 100 * MINUTE;
        let of = |minutes| lot(&mut *boxed(minutes), &events, end);
        let expected = |cold, idle: u32| Lot {
            events: 4,
            cold,
            idle: idle * MINUTE,
        };
        assert_eq!(of(10), expected(4, 10 + 10 + 10 + 10));
        assert_eq!(of(20), expected(1, 15 + 15 + 15 + 20));
        assert_eq!(of(60), expected(1, 15 + 15 + 15 + 55));
    }

    #[test]
    fn the_hybrid_learns_a_timer_and_is_loaded_for_little_of_its_pauses() {
        // Every 30.5 minutes: after 10 pauses at 30 min it loads at 27 and would unload at 34.1.
        let gap = Duration::from_secs(1830);
        let events: Vec<Duration> = (0..21).map(|n| n * gap).collect();
        let lot = lot(&mut Hybrid::default(), &events, 20 * gap);
        let expected = 10 * gap + 10 * (gap - 27 * MINUTE);
        assert_eq!((lot.cold, lot.idle), (1, expected));
    }
}

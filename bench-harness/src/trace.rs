//! A week of events of many applications, made up from a seed: rates and memory follow what
//! "Serverless in the Wild" (Shahrad et al., ATC 2020) publishes of Azure Functions; the mixture of
//! regular, random and bursty applications is ours.

use std::time::Duration;

/// How long a trace is.
pub const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

/// Published: 45 % of the applications have at most one event an hour on average, 81 % at most one
/// a minute.
const HOURLY: f64 = 0.45;
const MINUTELY: f64 = 0.81;

/// The rarest and the busiest application, events an hour. Published are eight orders of magnitude;
/// who has two a minute is warm under every policy, so that nothing beyond needs simulating.
const RATE_MIN: f64 = 0.01;
const RATE_MAX: f64 = 120.0;

/// Published: half of the applications need at most 170 MB, 90 % at most 400 MB.
const MEMORY_MEDIAN_MB: f64 = 170.0;
const MEMORY_SIGMA: f64 = 0.6677; // ln(400/170) / 1.2816

/// One application's week.
#[derive(Clone, Debug, PartialEq)]
pub struct Application {
    /// What it needs while it is loaded.
    pub memory_mb: f64,
    /// When its events come, from the trace's beginning.
    pub events: Vec<Duration>,
}

/// How an application's events follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habit {
    /// A timer.
    Regular,
    /// Independent of each other (Poisson).
    Random,
    /// Nine short pauses, then a long one.
    Bursty,
}

impl Habit {
    fn of(share: f64) -> Habit {
        match share {
            ..0.2 => Habit::Regular,
            0.2..0.6 => Habit::Random,
            _ => Habit::Bursty,
        }
    }
}

/// The trace of `seed`: applications without any event are left out of it.
#[must_use]
pub fn week(seed: u64, applications: usize) -> Vec<Application> {
    let mut chance = Chance(seed);
    (0..applications)
        .map(|_| application(&mut chance))
        .filter(|application| !application.events.is_empty())
        .collect()
}

fn application(chance: &mut Chance) -> Application {
    let mean_s = 3600.0 / rate_per_hour(chance.share());
    let habit = Habit::of(chance.share());
    let memory_mb = MEMORY_MEDIAN_MB * (MEMORY_SIGMA * chance.normal()).exp();
    let mut events = Vec::new();
    // A week of something that has gone on for long: it begins in the middle of a pause.
    let mut at_s = gap_s(habit, mean_s, chance) * chance.share();
    while at_s < WEEK.as_secs_f64() {
        events.push(Duration::from_secs_f64(at_s));
        at_s += gap_s(habit, mean_s, chance);
    }
    Application { memory_mb, events }
}

/// The rate below which a share `q` of the applications lies.
fn rate_per_hour(q: f64) -> f64 {
    let between = |from: f64, to: f64, part: f64| from * (to / from).powf(part);
    if q < HOURLY {
        between(RATE_MIN, 1.0, q / HOURLY)
    } else if q < MINUTELY {
        between(1.0, 60.0, (q - HOURLY) / (MINUTELY - HOURLY))
    } else {
        between(60.0, RATE_MAX, (q - MINUTELY) / (1.0 - MINUTELY))
    }
}

fn gap_s(habit: Habit, mean_s: f64, chance: &mut Chance) -> f64 {
    match habit {
        Habit::Regular => mean_s,
        Habit::Random => mean_s * chance.exponential(),
        // 0.9 × 0.1 + 0.1 × 9.1 = 1: the mean stays.
        Habit::Bursty if chance.share() < 0.9 => 0.1 * mean_s * chance.exponential(),
        Habit::Bursty => 9.1 * mean_s * chance.exponential(),
    }
}

/// SplitMix64: the same numbers for the same seed everywhere.
struct Chance(u64);

impl Chance {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// 0 to 1, without 1.
    fn share(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Of mean 1.
    fn exponential(&mut self) -> f64 {
        -(1.0 - self.share()).ln()
    }

    /// Of mean 0 and deviation 1 (Box and Muller).
    fn normal(&mut self) -> f64 {
        let radius = (2.0 * self.exponential()).sqrt();
        radius * (std::f64::consts::TAU * self.share()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_trace_and_another_seed_another() {
        assert_eq!(week(1, 20), week(1, 20));
        assert_ne!(week(1, 20), week(2, 20));
    }

    #[test]
    fn rates_and_memory_are_those_that_are_published() {
        let mut chance = Chance(7);
        let rates: Vec<f64> = (0..20_000).map(|_| rate_per_hour(chance.share())).collect();
        let share = |limit: f64| {
            rates.iter().filter(|rate| **rate <= limit).count() as f64 / rates.len() as f64
        };
        assert!((share(1.0) - 0.45).abs() < 0.01, "{}", share(1.0));
        assert!((share(60.0) - 0.81).abs() < 0.01, "{}", share(60.0));
        let mut memory: Vec<f64> = (0..20_000)
            .map(|_| MEMORY_MEDIAN_MB * (MEMORY_SIGMA * chance.normal()).exp())
            .collect();
        memory.sort_by(f64::total_cmp);
        assert!((memory[10_000] / 170.0 - 1.0).abs() < 0.03);
        assert!((memory[18_000] / 400.0 - 1.0).abs() < 0.03);
    }

    #[test]
    fn each_habit_keeps_the_mean_and_has_its_own_spread() {
        for (habit, spread) in [
            (Habit::Regular, 0.0),
            (Habit::Random, 1.0),
            (Habit::Bursty, 3.95),
        ] {
            let mut chance = Chance(3);
            let gaps: Vec<f64> = (0..100_000)
                .map(|_| gap_s(habit, 5.0, &mut chance))
                .collect();
            let mean = gaps.iter().sum::<f64>() / 1e5;
            let squares = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / 1e5;
            assert!((mean / 5.0 - 1.0).abs() < 0.05, "{habit:?}: {mean}");
            assert!((squares.sqrt() / mean - spread).abs() < 0.15, "{habit:?}");
        }
    }
}

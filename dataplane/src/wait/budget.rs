//! How long a consumer spins before it parks.
//!
//! To spin for about as long as a wake-up takes is never much worse than the better of the two.
//! Whether it is any good at all shows in the last waits: what a spin has caught, what it has
//! missed, and who else wanted the core meanwhile. A consumer that shares its core gives it away
//! and stops spinning for a while, for its producer may be the one that waits for the core.

use std::time::{Duration, Instant};

/// Looks between two looks at the clock.
const LOOKS: u32 = 32;
/// The longest spin: about what a wake-up across cores takes.
const SPIN_MAX: Duration = Duration::from_micros(30);
/// The shortest: below it, none.
const SPIN_MIN: Duration = Duration::from_micros(1);
/// A sleep shorter than this was mostly the wake-up: a spin would have caught the message.
const SHORT_SLEEP: Duration = Duration::from_micros(60);
/// How often the core is offered to others while spinning.
const OFFER: Duration = Duration::from_micros(5);
/// An offer that comes back later than this was taken by another.
const TAKEN: Duration = Duration::from_micros(3);
/// Waits without a spin after the core was wanted by another; doubles each time.
const PATIENCE_MIN: u32 = 8;
const PATIENCE_MAX: u32 = 1024;

/// The spin budget of one consumer; process-local.
#[derive(Clone, Debug)]
pub struct SpinBudget {
    budget: Duration,
    patience: u32,
    /// Waits to go without a spin.
    without: u32,
    /// Nobody else can run while this process spins.
    single_core: bool,
    counts: SpinCounts,
}

/// What a budget was spent on so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpinCounts {
    /// Waits.
    pub waits: u64,
    /// Waits that spun.
    pub spun: u64,
    /// Waits that spun for nothing.
    pub in_vain: u64,
}

impl Default for SpinBudget {
    fn default() -> SpinBudget {
        SpinBudget::new()
    }
}

impl SpinBudget {
    /// A budget for the cores that this thread may run on: on a single one it never spins. One
    /// system call.
    #[must_use]
    pub fn new() -> SpinBudget {
        let cores = rustix::thread::sched_getaffinity(None).map_or(1, |cores| cores.count());
        SpinBudget {
            budget: SPIN_MAX,
            patience: PATIENCE_MIN,
            without: 0,
            single_core: cores <= 1,
            counts: SpinCounts::default(),
        }
    }

    /// Looks for something until it is there or the budget is spent; false: park. Blocks for some
    /// ten microseconds at most, unless others take the core.
    pub fn spin(&mut self, mut found: impl FnMut() -> bool) -> bool {
        self.counts.waits += 1;
        if found() {
            return true;
        }
        if self.single_core || self.without > 0 {
            self.without = self.without.saturating_sub(1);
            return false;
        }
        self.counts.spun += 1;
        let begin = Instant::now();
        let mut offered = Duration::ZERO;
        loop {
            for _ in 0..LOOKS {
                if found() {
                    self.caught(begin.elapsed());
                    return true;
                }
                std::hint::spin_loop();
            }
            let spent = begin.elapsed();
            if spent >= self.budget {
                self.missed();
                return false;
            }
            if spent >= offered + OFFER {
                rustix::thread::sched_yield();
                offered = begin.elapsed();
                if offered > spent + TAKEN {
                    self.crowded();
                    return found();
                }
            }
        }
    }

    /// After a park: how long it took, from the end of the spin until the message was seen.
    pub fn slept(&mut self, took: Duration) {
        if took < SHORT_SLEEP {
            self.budget = SPIN_MAX;
        }
    }

    /// What it was spent on so far.
    #[must_use]
    pub fn counts(&self) -> SpinCounts {
        self.counts
    }

    fn caught(&mut self, after: Duration) {
        self.patience = PATIENCE_MIN;
        let next = (self.budget * 7 / 8).max(after * 4);
        self.budget = next.clamp(SPIN_MIN, SPIN_MAX);
    }

    fn missed(&mut self) {
        self.counts.in_vain += 1;
        self.budget /= 2;
        if self.budget < SPIN_MIN {
            self.budget = SPIN_MIN;
            self.rest();
        }
    }

    /// Another wanted the core.
    fn crowded(&mut self) {
        self.counts.in_vain += 1;
        self.budget = SPIN_MIN;
        self.rest();
    }

    fn rest(&mut self) {
        self.without = self.patience;
        self.patience = (self.patience * 2).min(PATIENCE_MAX);
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    fn budget() -> SpinBudget {
        SpinBudget {
            single_core: false,
            ..SpinBudget::new()
        }
    }

    #[test]
    fn spins_in_vain_become_shorter_and_then_rare() {
        let mut budget = budget();
        for _ in 0..10_000 {
            assert!(!budget.spin(|| false));
        }
        let counts = budget.counts();
        assert_eq!(counts.waits, 10_000);
        assert!(counts.in_vain < 100, "{counts:?}");
    }

    #[test]
    fn a_short_sleep_brings_the_spin_back() {
        let mut budget = budget();
        (0..5).for_each(|_| budget.missed());
        assert_eq!(budget.budget, SPIN_MIN);
        budget.slept(SHORT_SLEEP * 2);
        assert_eq!(budget.budget, SPIN_MIN);
        budget.slept(SHORT_SLEEP / 2);
        assert_eq!(budget.budget, SPIN_MAX);
    }

    #[test]
    fn what_spins_catch_early_makes_them_short_but_long_enough() {
        let mut budget = budget();
        (0..100).for_each(|_| budget.caught(Duration::from_micros(2)));
        assert_eq!(budget.budget, Duration::from_micros(8));
        budget.caught(Duration::from_micros(7));
        assert_eq!(budget.budget, Duration::from_micros(28));
    }

    #[test]
    fn a_core_that_others_want_is_left_to_them_for_longer_each_time() {
        let mut budget = budget();
        budget.crowded();
        assert_eq!((budget.without, budget.budget), (PATIENCE_MIN, SPIN_MIN));
        budget.crowded();
        assert_eq!(budget.without, 2 * PATIENCE_MIN);
        (0..20).for_each(|_| budget.crowded());
        assert_eq!(budget.without, PATIENCE_MAX);
    }

    #[test]
    fn on_a_single_core_nothing_spins() {
        let mut budget = SpinBudget {
            single_core: true,
            ..SpinBudget::new()
        };
        assert!(!budget.spin(|| false));
        assert_eq!(budget.counts().spun, 0);
    }
}

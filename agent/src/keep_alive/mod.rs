//! How long an idle grain worker stays loaded: pure policies that see only how long it was idle.
//!
//! A policy is asked after each event. What it plans holds until the next one.

mod histogram;
mod hybrid;
mod keeper;

use std::time::Duration;

pub use histogram::IdleTimes;
pub use hybrid::Hybrid;
pub use keeper::{Keeper, Order, Seen};

/// What to do after an event, times counted from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// When to load it again: zero = it is not unloaded now, else it is unloaded at once.
    pub load: Duration,
    /// When to unload it if no event has come; `None` = never.
    pub unload: Option<Duration>,
}

impl Plan {
    /// It stays loaded for so long.
    #[must_use]
    pub fn keep(time: Duration) -> Plan {
        Plan {
            load: Duration::ZERO,
            unload: Some(time),
        }
    }

    /// Whether it is loaded when the next event comes after `idle`: a warm start.
    #[must_use]
    pub fn is_loaded_after(&self, idle: Duration) -> bool {
        idle >= self.load && self.unload.is_none_or(|unload| idle <= unload)
    }

    /// How long it was loaded for nothing if the next event comes after `idle`.
    #[must_use]
    pub fn loaded_during(&self, idle: Duration) -> Duration {
        let end = self.unload.map_or(idle, |unload| unload.min(idle));
        end.saturating_sub(self.load)
    }
}

/// Decides how long a worker stays loaded.
pub trait KeepAlive: Send + std::fmt::Debug {
    /// An event has come after the worker was idle for `idle`.
    fn note_idle(&mut self, idle: Duration);

    /// What to do after the event.
    fn plan(&self) -> Plan;
}

/// Always the same time.
#[derive(Clone, Copy, Debug)]
pub struct Fixed {
    /// How long an idle worker stays loaded.
    pub idle: Duration,
}

impl KeepAlive for Fixed {
    fn note_idle(&mut self, _idle: Duration) {}

    fn plan(&self) -> Plan {
        Plan::keep(self.idle)
    }
}

/// A worker is never unloaded.
#[derive(Clone, Copy, Debug)]
pub struct Never;

impl KeepAlive for Never {
    fn note_idle(&mut self, _idle: Duration) {}

    fn plan(&self) -> Plan {
        Plan {
            load: Duration::ZERO,
            unload: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_fixed_time_is_warm_up_to_itself_and_wastes_at_most_itself() {
        let plan = Fixed { idle: 10 * MINUTE }.plan();
        for (idle, warm, wasted) in [(0, true, 0), (10, true, 10), (11, false, 10)] {
            assert_eq!(plan.is_loaded_after(idle * MINUTE), warm, "{idle}");
            assert_eq!(plan.loaded_during(idle * MINUTE), wasted * MINUTE);
        }
    }

    #[test]
    fn what_is_never_unloaded_is_always_warm_and_wastes_everything() {
        let year = 60 * 24 * 365 * MINUTE;
        assert!(Never.plan().is_loaded_after(year));
        assert_eq!(Never.plan().loaded_during(year), year);
    }

    #[test]
    fn loaded_ahead_is_cold_before_and_after_its_window() {
        let plan = Plan {
            load: 9 * MINUTE,
            unload: Some(12 * MINUTE),
        };
        for (idle, warm, wasted) in [(8, false, 0), (9, true, 0), (11, true, 2), (20, false, 3)] {
            assert_eq!(plan.is_loaded_after(idle * MINUTE), warm, "{idle}");
            assert_eq!(plan.loaded_during(idle * MINUTE), wasted * MINUTE);
        }
    }
}

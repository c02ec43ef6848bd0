//! How far apart the two measured cores are: a host moves virtual CPUs about within seconds, and
//! every cross-core number moves 3 to 5 times with them.

use std::fmt;

use crate::error::BenchError;
use crate::probes::cache_line;

/// A round trip of one cache line below this is between two threads of one core.
const SIBLING_BELOW_NS: f64 = 90.0;
/// Below this the two cores share a last-level cache.
const NEAR_BELOW_NS: f64 = 250.0;
/// Looks at one placement differ by less than this factor.
const WOBBLE: f64 = 1.25;

/// Where the two cores lie to each other, by the round trip of one cache line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Placement {
    /// Two threads of one core (or as quick as that).
    Sibling,
    /// Two cores under one last-level cache.
    Near,
    /// Farther apart.
    Far,
}

impl Placement {
    /// The placement that a round trip of `ns` shows.
    #[must_use]
    pub fn of_round_trip(ns: f64) -> Placement {
        match ns {
            ns if ns < SIBLING_BELOW_NS => Placement::Sibling,
            ns if ns < NEAR_BELOW_NS => Placement::Near,
            _ => Placement::Far,
        }
    }
}

/// One look at the placement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Look {
    /// Median round trip of one cache line.
    pub round_trip_ns: f64,
}

impl Look {
    /// Looks now (about 1 ms) between two CPUs.
    ///
    /// # Errors
    /// As [`cache_line::round_trips`].
    pub fn now(cpus: [usize; 2]) -> Result<Look, BenchError> {
        Ok(Look {
            round_trip_ns: cache_line::round_trips(cpus, 60)?.p50_ns(),
        })
    }

    /// The placement that it shows.
    #[must_use]
    pub fn placement(self) -> Placement {
        Placement::of_round_trip(self.round_trip_ns)
    }

    /// Whether the cores were moved between two looks: another placement, and not merely another
    /// side of a bound.
    #[must_use]
    pub fn moved_since(self, before: Look) -> bool {
        let (low, high) = if self.round_trip_ns < before.round_trip_ns {
            (self.round_trip_ns, before.round_trip_ns)
        } else {
            (before.round_trip_ns, self.round_trip_ns)
        };
        self.placement() != before.placement() && high > low * WOBBLE
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Placement::Sibling => "sibling",
            Placement::Near => "near",
            Placement::Far => "far",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_separate_sibling_near_and_far() {
        let at = Placement::of_round_trip;
        assert_eq!([at(64.0), at(89.9)], [Placement::Sibling; 2]);
        assert_eq!([at(90.0), at(249.9)], [Placement::Near; 2]);
        assert_eq!([at(250.0), at(600.0)], [Placement::Far; 2]);
    }

    #[test]
    fn a_wobble_about_a_bound_is_no_move_and_a_jump_is_one() {
        let moved = |before, after| {
            let [before, after] = [before, after].map(|round_trip_ns| Look { round_trip_ns });
            after.moved_since(before)
        };
        assert!(!moved(86.0, 95.0) && !moved(95.0, 86.0) && !moved(92.0, 200.0));
        assert!(moved(74.0, 106.0) && moved(106.0, 400.0) && moved(400.0, 106.0));
    }
}

//! How long an event rests between two attempts: twice as long each time, up to a limit, and a
//! part of it taken off by chance, so that events that died together do not come back together.
//! The chance is the event's id: the same event rests as long on every host and in every re-run.

use std::time::Duration;

use sandpipe::MessageId;
use serde::{Deserialize, Serialize};

/// The pauses between the attempts of an event. The default is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackOff {
    /// The longest pause before the second attempt, in milliseconds; it doubles with each one.
    pub first_ms: u64,
    /// The longest pause at all, in milliseconds.
    pub max_ms: u64,
}

impl BackOff {
    /// The pause before attempt number `attempt`, the first of which is 1. At least half of the
    /// longest, at most all of it. Pure.
    #[must_use]
    pub fn before(&self, attempt: u16, event: MessageId) -> Duration {
        let doublings = u32::from(attempt.saturating_sub(2)).min(63);
        let longest_ms = self
            .first_ms
            .saturating_mul(1 << doublings)
            .min(self.max_ms);
        let longest_ns = longest_ms.saturating_mul(1_000_000);
        let [low, high] = event.words();
        // A 16-bit part of a product (Knuth's multiplicative hash) mixes the attempt in.
        let mixed = (low ^ high.rotate_left(32) ^ u64::from(attempt)) ^ 0x5851_f42d_4c95_7f2d;
        let chance = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
        let half = longest_ns / 2;
        let more = u128::from(longest_ns - half) * u128::from(chance) / u128::from(u16::MAX);
        Duration::from_nanos(half + more as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACK_OFF: BackOff = BackOff {
        first_ms: 50,
        max_ms: 5_000,
    };

    #[test]
    fn pauses_double_up_to_the_limit_and_are_between_half_and_all_of_it() {
        let longest = [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000];
        for event in 1..200 {
            for (attempt, longest_ms) in (2..).zip(longest) {
                let pause = BACK_OFF.before(attempt, MessageId(event * 0x1234_5678_9abc_def1));
                let longest = Duration::from_millis(longest_ms);
                assert!(
                    pause >= longest / 2 && pause <= longest,
                    "{attempt}: {pause:?}"
                );
            }
        }
        assert!(BACK_OFF.before(u16::MAX, MessageId(1)) <= Duration::from_secs(5));
    }

    #[test]
    fn an_event_rests_as_long_everywhere_and_two_events_not_together() {
        let pauses: std::collections::BTreeSet<_> = (1..=100)
            .map(|event| BACK_OFF.before(3, MessageId(event)))
            .collect();
        assert!(pauses.len() > 95, "only {} of 100 differ", pauses.len());
        assert_eq!(
            BACK_OFF.before(3, MessageId(7)),
            BACK_OFF.before(3, MessageId(7))
        );
    }

    #[test]
    fn without_a_back_off_there_is_no_pause() {
        assert_eq!(BackOff::default().before(9, MessageId(1)), Duration::ZERO);
    }
}

use std::time::Duration;

const DELAY_MIN: Duration = Duration::from_millis(100);
const DELAY_MAX: Duration = Duration::from_secs(10);
/// A worker that was attached for this long has proved that it works.
const HEALTHY: Duration = Duration::from_secs(10);
/// So many starts in a row that never attached make a worker a failed one.
const FAILED_STARTS: u32 = 5;

/// When a worker that ended is started again: at once would burn a core on a broken import.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    short_lives: u32,
    unattached: u32,
}

impl Backoff {
    /// Notes an end and returns the wait before the next start. `attached_for` is `None` if the
    /// worker never attached.
    pub(super) fn ended(&mut self, attached_for: Option<Duration>) -> Duration {
        self.unattached = if attached_for.is_some() {
            0
        } else {
            self.unattached + 1
        };
        if attached_for.is_some_and(|lived| lived >= HEALTHY) {
            self.short_lives = 0;
        }
        self.short_lives += 1;
        let doublings = (self.short_lives - 1).min(16);
        DELAY_MIN.saturating_mul(1 << doublings).min(DELAY_MAX)
    }

    /// How many starts in a row never attached, if that many are a failure.
    pub(super) fn failed_starts(&self) -> Option<u32> {
        (self.unattached >= FAILED_STARTS).then_some(self.unattached)
    }

    /// Whether the last start never attached.
    pub(super) fn failed_last_time(&self) -> bool {
        self.unattached > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_ten_seconds_and_starts_anew_after_ten_healthy_seconds() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..9)
            .map(|_| backoff.ended(Some(Duration::ZERO)).as_millis())
            .collect();
        assert_eq!(
            waits,
            [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]
        );
        assert_eq!(backoff.ended(Some(HEALTHY)).as_millis(), 100);
        for _ in 0..100 {
            assert!(backoff.ended(None) <= DELAY_MAX);
        }
    }

    #[test]
    fn five_starts_in_a_row_that_never_attached_are_a_failure_and_one_that_did_is_none() {
        let mut backoff = Backoff::default();
        for _ in 0..4 {
            backoff.ended(None);
            assert_eq!(backoff.failed_starts(), None);
        }
        backoff.ended(None);
        assert_eq!(backoff.failed_starts(), Some(5));
        backoff.ended(Some(Duration::ZERO));
        assert_eq!(backoff.failed_starts(), None);
        assert!(!backoff.failed_last_time());
    }
}

//! How an application stands to each of its limits, and what is said when one holds.

use std::time::Instant;

use super::bounds::{Bounds, LimitState};
use super::shared::{PoolUse, SharedBytes};
use super::thread::BusThread;
use super::wakes::Wakes;

/// The limits of one application, as its bus thread knows them.
pub(super) struct Limits {
    pub(super) bounds: Bounds,
    /// Those that found nothing.
    empty_wakes: Wakes,
    wakes: Wakes,
    shared: SharedBytes,
}

impl Limits {
    pub(super) fn new(bounds: Bounds, now: Instant) -> Limits {
        Limits {
            bounds,
            empty_wakes: Wakes::new(now),
            wakes: Wakes::new(now),
            shared: SharedBytes::default(),
        }
    }

    /// Whether its thread shall not be woken for now.
    pub(super) fn forbid_waking(&mut self, now: Instant) -> bool {
        let Bounds {
            empty_wakes_per_s,
            wakes_per_s,
            ..
        } = self.bounds;
        self.empty_wakes.are_too_many(now, empty_wakes_per_s)
            || self.wakes.are_too_many(now, wakes_per_s)
    }
}

impl BusThread {
    pub(super) fn limits(&self) -> Vec<LimitState> {
        let counters = self.core.counters();
        let state = |name: &str, limit: u64, now: u64, hits: u64| LimitState {
            name: name.into(),
            limit,
            now: Some(now),
            hits,
        };
        let in_flight = self.core.in_flight() as u64;
        let most = self.core.max_in_flight() as u64;
        let Limits { bounds, .. } = &self.limits;
        let busy = counters.busy.saturating_sub(counters.queue_full);
        let spooled = self.global.spooled_bytes() >> 20;
        let mut all = vec![
            state("max_in_flight", most, in_flight, busy),
            state(
                "queue_length",
                bounds.queue_length,
                self.entry_waiting(),
                counters.queue_full,
            ),
            state(
                "spool_mb",
                bounds.spool_bytes >> 20,
                spooled,
                counters.spool_full,
            ),
            self.limits
                .empty_wakes
                .state("empty_wakes_per_s", bounds.empty_wakes_per_s),
            self.limits.wakes.state("wakes_per_s", bounds.wakes_per_s),
        ];
        let shared = bounds.shared.as_ref();
        all.extend(shared.map(|bound| self.limits.shared.state(bound)));
        all.extend(self.source.kernel_limits());
        all
    }

    /// Messages that wait in front of the first grain.
    fn entry_waiting(&self) -> u64 {
        let Some(local) = &self.local else { return 0 };
        let load = local.queues().get(self.core.entry() + 1).copied();
        load.map_or(0, |load| load.waiting as u64)
    }

    /// The thread has slept; whether a ring ended that.
    pub(super) fn count_wake(&mut self, rung: bool) {
        let limit = self.limits.bounds.wakes_per_s;
        if rung && self.limits.wakes.note(Instant::now(), limit) {
            self.say_storm(
                "wakes_per_s",
                limit,
                "its grains and callers ring too often",
            );
        }
    }

    /// The last wake found nothing.
    pub(super) fn count_empty_wake(&mut self, now: Instant) {
        let limit = self.limits.bounds.empty_wakes_per_s;
        if self.limits.empty_wakes.note(now, limit) {
            self.say_storm(
                "empty_wakes_per_s",
                limit,
                "a grain rings without a message",
            );
        }
    }

    /// Once in each second that has too many wake-ups.
    fn say_storm(&self, name: &str, limit: u64, why: &str) {
        tracing::warn!(
            app = %self.app,
            limit,
            "woken too often: for the rest of this second its queues are looked at every 2 ms; \
             {why}, or raise limits.{name}"
        );
    }

    /// Tells the core whether the log on the disk may grow.
    pub(super) fn look_at_spool(&mut self) {
        let spooled = self.global.spooled_bytes();
        let full = self.limits.bounds.spool_is_full(spooled);
        self.core.set_spool_full(full);
    }

    /// Notes how often the limit of shared bytes has refused a loan.
    pub(super) fn look_at_pools(&mut self) {
        let (Some(bound), Some(local)) = (self.limits.bounds.shared, &self.local) else {
            return;
        };
        let pools = local.pool_sizes().into_iter().zip(local.counters());
        let pools: Vec<PoolUse> = pools
            .map(|((bytes, extensions), counters)| PoolUse {
                bytes,
                extensions,
                refused: counters.exhausted,
            })
            .collect();
        self.limits.shared.look(&bound, &pools);
    }
}

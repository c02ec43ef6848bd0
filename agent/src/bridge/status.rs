//! What a bus thread says about itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use sandpipe_global_bus::Health;
use serde::{Deserialize, Serialize};

use super::bounds::LimitState;
use super::local::Refused;
use super::thread::BusThread;
use crate::config::Network;
use crate::core::Counters;

/// How an application is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AppStatus {
    /// Its name.
    pub app: String,
    /// Whether its bus thread says all this itself.
    #[serde(default)]
    pub answers: bool,
    /// Why it takes no requests; `None` = it is ready.
    pub not_ready: Option<String>,
    /// How its grain workers are.
    pub grains: Vec<GrainState>,
    /// Requests that are open.
    pub in_flight: usize,
    /// Answers that can be collected.
    pub kept_results: usize,
    /// Dead letters.
    #[serde(default)]
    pub dead_letters: usize,
    /// Bytes of their events.
    #[serde(default)]
    pub dead_letter_bytes: usize,
    /// Records that the global bus has not acknowledged yet.
    pub unbacked_messages: usize,
    /// Bytes of them.
    pub unbacked_bytes: usize,
    /// Age of the oldest of them, in milliseconds.
    pub unbacked_age_ms: u64,
    /// Counts since the start.
    pub counters: Counters,
    /// How often the sandbox was attached: 1, and one more for each death of its init.
    pub attachments: u64,
    /// Grains that wrote what no honest one writes, since the start; each was ended for it.
    pub refused: Vec<RefusedGrain>,
    /// Whether the first of them found a sandbox of an agent before this one.
    pub adopted: bool,
    /// Which network its processes have; `None` while there is no sandbox.
    #[serde(default)]
    pub network: Option<Network>,
    /// How it stands to the limits that the agent keeps for it.
    #[serde(default)]
    pub limits: Vec<LimitState>,
    /// What the local bus counts: the agent's part first, then each grain's. Empty while there is
    /// no sandbox.
    pub bus: Vec<BusCounts>,
}

/// What one family of a local bus has counted since its sandbox was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusCounts {
    /// The grain, or [`BusCounts::AGENT`].
    pub grain: String,
    /// [`sandpipe::Counters::rows`], by name.
    pub counts: BTreeMap<String, u64>,
    /// Bytes that its payload pool may use now: at most so much memory, and as much as was touched.
    #[serde(default)]
    pub pool_bytes: u64,
    /// By how many extensions its pool has grown.
    #[serde(default)]
    pub pool_extensions: u64,
    /// Messages that wait in its queue.
    #[serde(default)]
    pub waiting: usize,
    /// The most that waited at any of the looks, one a second, since its sandbox was made.
    #[serde(default)]
    pub high_water: usize,
    /// Messages that were taken from its queue and are not finished.
    #[serde(default)]
    pub taken: usize,
    /// Those of them whose instance died and that wait for their next attempt.
    #[serde(default)]
    pub resting: usize,
}

impl BusCounts {
    /// Stands for the agent itself; no grain can be called so.
    pub const AGENT: &str = "(agent)";
}

/// A grain whose words were refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedGrain {
    /// The grain.
    pub grain: String,
    /// What kind of rule it broke, a word.
    pub kind: String,
    /// What it wrote.
    pub reason: String,
}

/// How one grain worker is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrainState {
    /// The grain.
    pub grain: String,
    /// starting, running, unloading, unloaded, reloading, clearing, backoff, failed, quarantined or
    /// stopped.
    pub state: String,
    /// The worker's process, as this host sees it.
    pub pid: Option<u32>,
    /// How often it was started again.
    pub restarts: u64,
    /// How often an event found it unloaded and had it started.
    #[serde(default)]
    pub cold_starts: u64,
    /// Why it does not run, with its last words; `None` while it runs or starts.
    pub trouble: Option<String>,
    /// It will not run before somebody mends it.
    pub broken: bool,
}

impl GrainState {
    /// Whether it takes events: it runs, or it is unloaded and the next one starts it.
    #[must_use]
    pub fn takes_events(&self) -> bool {
        let state = self.state.as_str();
        matches!(state, "running" | "unloading" | "unloaded" | "reloading")
    }
}

impl BusThread {
    /// Why no request is taken for now.
    pub(super) fn not_ready(&self) -> Option<Arc<str>> {
        if self.stopping.is_some() {
            return Some("the agent is stopping".into());
        }
        if self.local.is_none() {
            return Some(Arc::clone(&self.absent));
        }
        let broken = self.workers.iter().find(|worker| worker.broken)?;
        let trouble = broken.trouble.as_deref().unwrap_or("it does not run");
        Some(format!("grain {}: {trouble}", broken.grain).into())
    }

    pub(super) fn status(&self) -> AppStatus {
        let window = self.global.window();
        let mut not_ready = self.not_ready();
        if not_ready.is_none() && !self.workers.iter().all(GrainState::takes_events) {
            not_ready = Some("a grain worker is starting".into());
        }
        if let (None, Health::Degraded { reason } | Health::Closed { reason }) =
            (&not_ready, self.global.health())
        {
            not_ready = Some(reason.into());
        }
        let (dead_letters, dead_letter_bytes) = self.core.dead_letter_load();
        AppStatus {
            app: self.app.to_string(),
            answers: true,
            not_ready: not_ready.map(|reason| reason.to_string()),
            grains: self.workers.clone(),
            in_flight: self.core.in_flight(),
            kept_results: self.core.kept_results(),
            dead_letters,
            dead_letter_bytes,
            unbacked_messages: window.messages,
            unbacked_bytes: window.bytes,
            unbacked_age_ms: u64::try_from(window.oldest_age.as_millis()).unwrap_or(u64::MAX),
            counters: self.core.counters(),
            attachments: self.attachments,
            refused: self
                .refused
                .iter()
                .map(|refused| self.name(refused))
                .collect(),
            adopted: self.adopted,
            network: self.source.network(),
            limits: self.limits(),
            bus: self.bus_counts(),
        }
    }

    fn bus_counts(&self) -> Vec<BusCounts> {
        let Some(local) = &self.local else {
            return Vec::new();
        };
        let names = std::iter::once(BusCounts::AGENT).chain(self.core.grains());
        let loads = local.queues();
        let sizes = local.pool_sizes();
        let counts = |(index, (name, counters)): (usize, (&str, sandpipe::Counters))| {
            let (pool_bytes, pool_extensions) = sizes.get(index).copied().unwrap_or_default();
            let load = loads.get(index).copied().unwrap_or_default();
            let high_water = self.high_water.get(index).copied().unwrap_or_default();
            BusCounts {
                grain: name.to_owned(),
                counts: counters
                    .rows()
                    .map(|(name, _, count)| (name.to_owned(), count))
                    .into(),
                pool_bytes,
                pool_extensions,
                waiting: load.waiting,
                high_water: high_water.max(load.waiting),
                taken: load.taken,
                resting: load.resting,
            }
        };
        let families = names.zip(local.counters()).enumerate();
        families.map(counts).collect()
    }

    /// Tells the core whether records become durable.
    pub(super) fn look_at_health(&mut self) {
        if !self.backup {
            return;
        }
        self.core.set_unavailable(match self.global.health() {
            Health::Healthy if self.appends.is_congested() => Some("the backup lags".into()),
            Health::Healthy => None,
            Health::Degraded { reason } | Health::Closed { reason } => Some(reason.into()),
        });
    }

    /// Notes how full the queues are.
    pub(super) fn look_at_queues(&mut self) {
        let Some(local) = &self.local else { return };
        let loads = local.queues();
        self.high_water.resize(loads.len(), 0);
        for (high, load) in self.high_water.iter_mut().zip(loads) {
            *high = load.waiting.max(*high);
        }
        self.look_at_pools();
    }

    /// A grain was found out: none of its lanes is read any more, init ends its processes, and the
    /// application takes no requests until it was made anew. The other grains finish what they
    /// have.
    pub(super) fn quarantine(&mut self, refused: Refused) {
        self.refused.push(refused);
        let RefusedGrain { grain, reason, .. } = self.name(&refused);
        tracing::error!(app = %self.app, grain, reason, "quarantined: it broke the bus's rules");
        self.source.quarantine(refused.grain, &reason);
    }

    fn name(&self, refused: &Refused) -> RefusedGrain {
        let grain = self.core.grain_name(refused.grain);
        RefusedGrain {
            grain: grain.to_owned(),
            kind: refused.violation.kind().to_owned(),
            reason: refused.violation.to_string(),
        }
    }
}

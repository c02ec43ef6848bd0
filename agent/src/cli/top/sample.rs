//! What lies between two looks at an agent: rates, and the memory of its grains.

use std::time::Instant;

use serde::Serialize;

use crate::bridge::{AppStatus, BusCounts, GrainState, LimitState};
use crate::control::AgentStatus;

/// An agent's status, and when.
#[derive(Debug)]
pub(super) struct Looked {
    at: Instant,
    status: AgentStatus,
}

/// What is shown.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Sample {
    pub(super) url: String,
    pub(super) pid: u32,
    /// Of the agent itself, in bytes.
    pub(super) memory: u64,
    pub(super) apps: Vec<App>,
}

/// One application.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct App {
    pub(super) name: String,
    /// 0 where it was not deployed but run.
    pub(super) version: u64,
    pub(super) not_ready: Option<String>,
    pub(super) open: usize,
    pub(super) answered_per_s: f64,
    pub(super) failed_per_s: f64,
    /// Requests that `p50_us` and `p99_us` are of.
    pub(super) recent: u64,
    pub(super) p50_us: u64,
    pub(super) p99_us: u64,
    pub(super) unbacked_messages: usize,
    pub(super) unbacked_bytes: usize,
    pub(super) unbacked_age_ms: u64,
    pub(super) restarts: u64,
    /// What waits for the agent to be backed up.
    pub(super) backup_queue: usize,
    pub(super) backup_high_water: usize,
    pub(super) wakes_per_s: f64,
    pub(super) limits: Vec<LimitState>,
    pub(super) grains: Vec<Grain>,
}

/// One grain.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Grain {
    pub(super) name: String,
    pub(super) state: String,
    pub(super) waiting: usize,
    pub(super) high_water: usize,
    pub(super) taken: usize,
    pub(super) instances: usize,
    pub(super) events_per_s: f64,
    pub(super) restarts: u64,
    /// Of the worker and its instances, shared pages by halves; in bytes.
    pub(super) memory: u64,
    pub(super) wakes_per_s: f64,
}

impl Looked {
    pub(super) fn now(status: AgentStatus) -> Looked {
        Looked {
            at: Instant::now(),
            status,
        }
    }
}

impl Sample {
    pub(super) fn between(before: &Looked, now: &Looked) -> Sample {
        let seconds = now.at.duration_since(before.at).as_secs_f64();
        let (old, new) = (&before.status, &now.status);
        let app = |status: &AppStatus| {
            let old = old.apps.iter().find(|old| old.app == status.app);
            app(new, status, old.unwrap_or(status), seconds)
        };
        Sample {
            url: new.url.clone(),
            pid: new.pid,
            memory: memory(new.pid),
            apps: new.apps.iter().map(app).collect(),
        }
    }

    /// Lines that it takes.
    pub(super) fn rows(&self) -> usize {
        self.apps.iter().map(|app| 1 + app.grains.len()).sum()
    }
}

fn app(agent: &AgentStatus, new: &AppStatus, old: &AppStatus, seconds: f64) -> App {
    let latency = agent.latencies.iter().find(|known| known.app == new.app);
    let latency = latency.cloned().unwrap_or_default();
    let deployed = agent.deployments.iter().find(|known| known.app == new.app);
    let of_agent = new.bus.first().cloned().unwrap_or_default();
    let old_of_agent = old.bus.first().cloned().unwrap_or_default();
    let grain = |state: &GrainState| grain(state, new, old, seconds);
    App {
        name: new.app.clone(),
        version: deployed.map_or(0, |known| known.version),
        not_ready: new.not_ready.clone(),
        open: new.in_flight,
        answered_per_s: rate(new.counters.answered, old.counters.answered, seconds),
        failed_per_s: rate(new.counters.failed, old.counters.failed, seconds),
        recent: latency.count,
        p50_us: latency.p50_us,
        p99_us: latency.p99_us,
        unbacked_messages: new.unbacked_messages,
        unbacked_bytes: new.unbacked_bytes,
        unbacked_age_ms: new.unbacked_age_ms,
        restarts: new.grains.iter().map(|grain| grain.restarts).sum(),
        backup_queue: of_agent.waiting,
        backup_high_water: of_agent.high_water,
        wakes_per_s: rate_of("woken", &of_agent, &old_of_agent, seconds),
        limits: new.limits.clone(),
        grains: new.grains.iter().map(grain).collect(),
    }
}

fn grain(state: &GrainState, new: &AppStatus, old: &AppStatus, seconds: f64) -> Grain {
    let counts = |status: &AppStatus| {
        let found = status.bus.iter().find(|of| of.grain == state.grain);
        found.cloned().unwrap_or_default()
    };
    let (bus, old) = (counts(new), counts(old));
    let instances = state.pid.map(children).unwrap_or_default();
    let processes = state.pid.iter().chain(&instances);
    Grain {
        name: state.grain.clone(),
        state: state.state.clone(),
        waiting: bus.waiting,
        high_water: bus.high_water,
        taken: bus.taken,
        instances: instances.len(),
        events_per_s: rate_of("received", &bus, &old, seconds),
        restarts: state.restarts,
        memory: processes.map(|&pid| memory(pid)).sum(),
        wakes_per_s: rate_of("woken", &bus, &old, seconds),
    }
}

fn rate_of(name: &str, new: &BusCounts, old: &BusCounts, seconds: f64) -> f64 {
    let count = |of: &BusCounts| of.counts.get(name).copied().unwrap_or_default();
    rate(count(new), count(old), seconds)
}

/// Counts that begin anew, with a new sandbox, have no rate for one look.
fn rate(new: u64, old: u64, seconds: f64) -> f64 {
    if seconds <= 0.0 {
        return 0.0;
    }
    new.saturating_sub(old) as f64 / seconds
}

/// The processes that a worker has forked.
fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let text = text.unwrap_or_default();
    let pids = text.split_whitespace().filter_map(|pid| pid.parse().ok());
    pids.collect()
}

/// The proportional share of a process in bytes; 0 if it has ended or may not be looked at.
fn memory(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or_default() << 10
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::front_door::Latency;
    use std::time::Duration;

    fn status(received: u64, answered: u64) -> AgentStatus {
        let counts = |grain: &str| BusCounts {
            grain: grain.into(),
            counts: [("received".to_owned(), received), ("woken".to_owned(), 3)].into(),
            waiting: 2,
            high_water: 7,
            taken: 1,
            ..BusCounts::default()
        };
        let mut app = AppStatus {
            app: "a".into(),
            grains: vec![GrainState {
                grain: "g".into(),
                restarts: 4,
                ..GrainState::default()
            }],
            bus: vec![counts(BusCounts::AGENT), counts("g")],
            ..AppStatus::default()
        };
        app.counters.answered = answered;
        AgentStatus {
            apps: vec![app],
            latencies: vec![Latency {
                app: "a".into(),
                count: 9,
                p50_us: 10,
                p99_us: 20,
            }],
            ..AgentStatus::default()
        }
    }

    #[test]
    fn rates_are_what_was_counted_in_between() {
        let before = Looked::now(status(100, 10));
        let mut now = Looked::now(status(300, 30));
        now.at = before.at + Duration::from_secs(2);
        let sample = Sample::between(&before, &now);
        let app = &sample.apps[0];
        assert_eq!((app.answered_per_s, app.p50_us, app.p99_us), (10.0, 10, 20));
        assert_eq!((app.backup_queue, app.restarts), (2, 4));
        let grain = &app.grains[0];
        assert_eq!((grain.events_per_s, grain.wakes_per_s), (100.0, 0.0));
        assert_eq!((grain.waiting, grain.high_water, grain.taken), (2, 7, 1));
        // A new sandbox counts from zero.
        let again = Sample::between(&now, &Looked::now(status(0, 0)));
        assert_eq!(again.apps[0].grains[0].events_per_s, 0.0);
        assert!(memory(std::process::id()) > 100_000);
    }
}

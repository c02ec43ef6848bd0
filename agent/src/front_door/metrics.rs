//! `/metrics` in the OpenMetrics text format.

mod own;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry, Unit};

use super::AppDoor;
use super::connections::ConnectionCounts;
use super::recent::{Latency, Recent};
use crate::bridge::AppStatus;
use crate::telemetry::SpanCounts;

/// Seconds; from a warm local chain to the default deadline.
const BUCKETS: [f64; 14] = [
    0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0, 15.0, 60.0,
];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfApp {
    app: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfGrain {
    app: String,
    grain: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfLimit {
    app: String,
    limit: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfRefusal {
    app: String,
    grain: String,
    kind: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfCode {
    app: String,
    code: u16,
}

/// What the front door counts itself; the rest comes from the bus threads at each scrape.
#[derive(Debug)]
pub struct Metrics {
    requests: Family<OfCode, Counter>,
    seconds: Family<OfApp, Histogram>,
    latencies: Mutex<HashMap<String, Recent>>,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            requests: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            latencies: Mutex::default(),
        }
    }
}

impl Metrics {
    /// Counts one answered request.
    pub(super) fn request(&self, app: &str, status: StatusCode, took: Duration) {
        let code = status.as_u16();
        self.requests
            .get_or_create(&OfCode {
                app: app.into(),
                code,
            })
            .inc();
        self.seconds
            .get_or_create(&OfApp { app: app.into() })
            .observe(took.as_secs_f64());
        let mut all = self
            .latencies
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match all.get_mut(app) {
            Some(recent) => recent.record(took),
            None => {
                let mut recent = Recent::default();
                recent.record(took);
                all.insert(app.to_owned(), recent);
            }
        }
    }

    /// How long the requests of the last seconds took.
    pub(super) fn latencies(&self) -> Vec<Latency> {
        let mut all = self
            .latencies
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let latencies = all.iter_mut().map(|(app, recent)| recent.latency(app));
        latencies.collect()
    }

    /// An application has gone: only its counters stay.
    pub(super) fn forget(&self, app: &str) {
        let mut all = self
            .latencies
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        all.remove(app);
    }

    /// All metrics as text.
    pub(super) fn render<'a>(
        &self,
        apps: &[AppStatus],
        doors: impl Iterator<Item = &'a AppDoor>,
        connections: ConnectionCounts,
        spans: Option<SpanCounts>,
    ) -> String {
        let mut registry = Registry::with_prefix("sandpipe");
        let requests = self.requests.clone();
        registry.register(
            "http_requests",
            "Answered requests by status code",
            requests,
        );
        registry.register_with_unit(
            "http_request_duration",
            "From the request's head to its answer's head",
            Unit::Seconds,
            self.seconds.clone(),
        );
        own::connection_counts(&mut registry, connections);
        if let Some(counts) = spans {
            own::span_counts(&mut registry, counts);
        }
        own::held(&mut registry, doors);
        refusals(&mut registry, apps);
        gauges(&mut registry, apps);
        retries(&mut registry, apps);
        unbacked_age(&mut registry, apps);
        limits(&mut registry, apps);
        counters(&mut registry, apps);
        bus_counters(&mut registry, apps);
        pool_sizes(&mut registry, apps);
        let mut page = String::new();
        match text::encode(&mut page, &registry) {
            Ok(()) => page,
            Err(error) => format!("# the metrics cannot be written: {error}\n"),
        }
    }
}

/// A grain is quarantined for its first refusal, so each counts once in a sandbox's life.
fn refusals(registry: &mut Registry, apps: &[AppStatus]) {
    let family = Family::<OfRefusal, Counter>::default();
    for status in apps {
        for refused in &status.refused {
            let (app, grain) = (status.app.clone(), refused.grain.clone());
            let kind = refused.kind.clone();
            family.get_or_create(&OfRefusal { app, grain, kind }).inc();
        }
    }
    let help = "Grains quarantined for a word that no honest one writes, by its kind";
    registry.register("quarantined", help, family);
}

fn gauges(registry: &mut Registry, apps: &[AppStatus]) {
    type Read = fn(&AppStatus) -> u64;
    let all: [(&str, &str, Read); 7] = [
        ("ready", "1 if the application takes requests", |s| {
            u64::from(s.not_ready.is_none())
        }),
        ("in_flight", "Requests that are open", |s| {
            s.in_flight as u64
        }),
        ("kept_results", "Answers that can be collected", |s| {
            s.kept_results as u64
        }),
        ("dead_letters", "Dead letters", |s| s.dead_letters as u64),
        ("dead_letter_bytes", "Bytes of their events", |s| {
            s.dead_letter_bytes as u64
        }),
        (
            "unbacked_messages",
            "Records not yet acknowledged by the global bus",
            |s| s.unbacked_messages as u64,
        ),
        ("unbacked_bytes", "Bytes of those records", |s| {
            s.unbacked_bytes as u64
        }),
    ];
    for (name, help, read) in all {
        let family = Family::<OfApp, Gauge<u64, AtomicU64>>::default();
        for status in apps {
            family
                .get_or_create(&OfApp {
                    app: status.app.clone(),
                })
                .set(read(status));
        }
        register(registry, name, help, family);
    }
}

fn retries(registry: &mut Registry, apps: &[AppStatus]) {
    let family = Family::<OfGrain, Gauge<u64, AtomicU64>>::default();
    for status in apps {
        for counts in &status.bus {
            let (app, grain) = (status.app.clone(), counts.grain.clone());
            let gauge = family.get_or_create_owned(&OfGrain { app, grain });
            gauge.set(counts.resting as u64);
        }
    }
    let help = "Events whose instance died and that wait for their next attempt";
    registry.register("retries_waiting", help, family);
}

/// The limits that the agent keeps for each application, by their names in `app.toml`.
fn limits(registry: &mut Registry, apps: &[AppStatus]) {
    let hits = Family::<OfLimit, Counter>::default();
    let now = Family::<OfLimit, Gauge<u64, AtomicU64>>::default();
    let most = Family::<OfLimit, Gauge<u64, AtomicU64>>::default();
    for status in apps {
        for state in &status.limits {
            let (app, limit) = (status.app.clone(), state.name.clone());
            let labels = OfLimit { app, limit };
            let counter = hits.get_or_create_owned(&labels);
            counter.inner().store(state.hits, Ordering::Relaxed);
            if let Some(used) = state.now {
                now.get_or_create_owned(&labels).set(used);
            }
            most.get_or_create_owned(&labels).set(state.limit);
        }
    }
    registry.register("limit_hits", "How often a limit of app.toml held", hits);
    registry.register("limit_used", "What is used of a limit, in its unit", now);
    registry.register("limit", "A limit of app.toml, in its unit", most);
}

fn unbacked_age(registry: &mut Registry, apps: &[AppStatus]) {
    let family = Family::<OfApp, Gauge<f64, AtomicU64>>::default();
    for status in apps {
        let app = status.app.clone();
        let seconds = status.unbacked_age_ms as f64 / 1000.0;
        family.get_or_create(&OfApp { app }).set(seconds);
    }
    let help = "Age of the oldest record not yet acknowledged by the global bus";
    registry.register_with_unit("unbacked_age", help, Unit::Seconds, family);
}

fn counters(registry: &mut Registry, apps: &[AppStatus]) {
    type Read = fn(&AppStatus) -> u64;
    let all: [(&str, &str, Read); 14] = [
        ("accepted", "Requests that became a message", |s| {
            s.counters.accepted
        }),
        (
            "joined",
            "Requests that joined one of the same identity",
            |s| s.counters.joined,
        ),
        ("answered", "Workflows that ended with an output", |s| {
            s.counters.answered
        }),
        ("failed", "Workflows that ended with a failure", |s| {
            s.counters.failed
        }),
        ("busy", "Requests refused because the queue was full", |s| {
            s.counters.busy
        }),
        ("late", "Callers whose deadline passed", |s| s.counters.late),
        ("folded", "Messages that were known already", |s| {
            s.counters.folded
        }),
        (
            "redelivered",
            "Messages published again after a death",
            |s| s.counters.redelivered,
        ),
        ("dead", "Events whose attempts were used up", |s| {
            s.counters.dead
        }),
        ("redriven", "Dead letters sent again", |s| {
            s.counters.redriven
        }),
        (
            "dead_dropped",
            "Dead letters that made place for newer ones",
            |s| s.counters.dead_dropped,
        ),
        ("worker_restarts", "Grain workers started again", |s| {
            s.grains.iter().map(|grain| grain.restarts).sum()
        }),
        (
            "cold_starts",
            "Events that found their grain worker unloaded",
            |s| s.grains.iter().map(|grain| grain.cold_starts).sum(),
        ),
        ("sandbox_attachments", "Sandboxes made or adopted", |s| {
            s.attachments
        }),
    ];
    for (name, help, read) in all {
        // One family for all applications: a second one of the same name is no OpenMetrics.
        let family = Family::<OfApp, Counter>::default();
        for status in apps {
            let app = status.app.clone();
            family.get_or_create(&OfApp { app }).inc_by(read(status));
        }
        registry.register(name, help, family);
    }
}

/// A name that ends like a unit has that unit.
fn register(registry: &mut Registry, name: &str, help: &str, metric: impl Metric) {
    match name.strip_suffix("_bytes") {
        Some(name) => registry.register_with_unit(name, help, Unit::Bytes, metric),
        None => registry.register(name, help, metric),
    }
}

/// How large the payload pools are, by grain; the agent's own as grain `(agent)`.
fn pool_sizes(registry: &mut Registry, apps: &[AppStatus]) {
    let bytes = Family::<OfGrain, Gauge>::default();
    let extensions = Family::<OfGrain, Gauge>::default();
    for status in apps {
        for counts in &status.bus {
            let labels = OfGrain {
                app: status.app.clone(),
                grain: counts.grain.clone(),
            };
            let set = |family: &Family<OfGrain, Gauge>, value: u64| {
                let value = i64::try_from(value).unwrap_or(i64::MAX);
                family.get_or_create_owned(&labels).set(value);
            };
            set(&bytes, counts.pool_bytes);
            set(&extensions, counts.pool_extensions);
        }
    }
    let help = "Bytes that the payload pool may use";
    registry.register_with_unit("bus_pool", help, Unit::Bytes, bytes);
    let help = "Extensions that the payload pool has now";
    registry.register("bus_pool_extensions", help, extensions);
}

/// What the local buses count, by grain; the agent's own part as grain `(agent)`. They start anew
/// with a new sandbox, as a counter may.
fn bus_counters(registry: &mut Registry, apps: &[AppStatus]) {
    for (name, help, _) in sandpipe::Counters::default().rows() {
        let family = Family::<OfGrain, Counter>::default();
        for status in apps {
            for counts in &status.bus {
                let labels = OfGrain {
                    app: status.app.clone(),
                    grain: counts.grain.clone(),
                };
                let count = counts.counts.get(name).copied().unwrap_or_default();
                let counter = family.get_or_create_owned(&labels);
                counter.inner().store(count, Ordering::Relaxed);
            }
        }
        register(registry, &format!("bus_{name}"), help, family);
    }
}

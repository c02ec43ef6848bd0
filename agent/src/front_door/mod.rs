//! The HTTP entry of applications (HTTP/1.1 and HTTP/2, CloudEvents in binary and structured mode).
//!
//! | request | answer |
//! |---|---|
//! | `POST /{app}` | the last grain's output |
//! | `POST /{app}` with `Prefer: respond-async` or `?async=1` | 202, `Location: /results/{id}` |
//! | `GET /results/{id}` | 200, 202 while it runs, 404 if unknown or expired |
//! | `GET /metrics`, `/healthz`, `/readyz` | OpenMetrics; alive; ready |
//!
//! A client that hangs up cancels its waiting, not the work.

mod body;
mod cloud_events;
mod connections;
mod dead_letters;
mod invoke;
mod media;
mod metrics;
mod problem;
mod recent;
mod results;
mod serve;
mod server;
mod structured;
#[cfg(test)]
mod tests;
mod trace_context;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::bridge::{AppStatus, Mailbox, Post};
use crate::telemetry::Telemetry;
pub use body::HeldBytes;
pub use connections::ConnectionLimits;
use connections::Connections;
pub use dead_letters::{AppDeadLetter, AppDeadLetters, Redriven};
pub use metrics::Metrics;
pub use recent::Latency;
pub use serve::serve;
pub use server::{ServeError, bind, router};

/// Header that carries a traced request's times, as JSON, and asks for them.
pub const TRACE_HEADER: &str = "sandpipe-trace";

/// How long a bus thread may take to say how it is.
const STATUS_WAIT: Duration = Duration::from_secs(2);

/// What the front door knows of one application.
#[derive(Clone, Debug)]
pub struct AppDoor {
    /// Its name, the first part of its URL.
    pub name: Arc<str>,
    /// Its bus thread.
    pub mailbox: Arc<Mailbox>,
    /// The largest request body, in bytes.
    pub max_payload_bytes: usize,
    /// The most bytes that its open requests hold together.
    pub max_bytes_in_flight: usize,
    /// What they hold.
    pub held_bytes: Arc<HeldBytes>,
}

/// Everything behind the front door.
#[derive(Debug, Default)]
pub struct FrontDoor {
    apps: RwLock<BTreeMap<Arc<str>, AppDoor>>,
    metrics: Metrics,
    /// What clients may take their time for, and how many there may be.
    pub limits: ConnectionLimits,
    /// Who hears of the paths of requests.
    pub telemetry: Telemetry,
    connections: Arc<Connections>,
}

impl FrontDoor {
    /// A front door for these applications.
    #[must_use]
    pub fn new(apps: Vec<AppDoor>) -> FrontDoor {
        let door = FrontDoor::default();
        apps.into_iter().for_each(|app| door.open(app));
        door
    }

    /// Lets requests in to this application, in place of one of the same name.
    pub fn open(&self, app: AppDoor) {
        let mut apps = self.apps.write().unwrap_or_else(PoisonError::into_inner);
        apps.insert(Arc::clone(&app.name), app);
    }

    /// Lets no request in to this application any more.
    pub fn close(&self, app: &str) {
        let mut apps = self.apps.write().unwrap_or_else(PoisonError::into_inner);
        apps.remove(app);
        drop(apps);
        self.metrics.forget(app);
    }

    /// How long the requests of the last seconds took, by application.
    #[must_use]
    pub fn latencies(&self) -> Vec<Latency> {
        self.metrics.latencies()
    }

    /// The application of that name.
    #[must_use]
    pub fn app(&self, name: &str) -> Option<AppDoor> {
        let apps = self.apps.read().unwrap_or_else(PoisonError::into_inner);
        apps.get(name).cloned()
    }

    /// All of them, by name.
    #[must_use]
    pub fn apps(&self) -> Vec<AppDoor> {
        let apps = self.apps.read().unwrap_or_else(PoisonError::into_inner);
        apps.values().cloned().collect()
    }

    /// How each application is. One that does not answer in time says so.
    pub async fn status(&self) -> Vec<AppStatus> {
        let asked: Vec<_> = self
            .apps()
            .into_iter()
            .map(|app| {
                let (waiter, answer) = oneshot::channel();
                app.mailbox.post(Post::Status(waiter));
                (app, answer)
            })
            .collect();
        let mut all = Vec::new();
        for (app, answer) in asked {
            let status = match tokio::time::timeout(STATUS_WAIT, answer).await {
                Ok(Ok(status)) => status,
                _ => AppStatus {
                    app: app.name.to_string(),
                    not_ready: Some("its bus thread does not answer".into()),
                    ..AppStatus::default()
                },
            };
            all.push(status);
        }
        all
    }
}

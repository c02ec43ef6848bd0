//! The long-running agent: applications come, are replaced and go while it runs.
//!
//! What is deployed is written down ([`Registry`]), so the next agent goes on with it. A change is
//! made in the order that a death anywhere leaves either the state before or the one after:
//!
//! - deploy: the grains have loaded, it is written down, requests are let in;
//! - new version: its grains have loaded on the other side, requests wait, what is open ends, it is
//!   written down, it serves, the old sandbox ends;
//! - undeploy: what is open ends, the sandbox ends, it is forgotten.

mod change;
mod notify;
mod registry;
mod watch;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::application::{Application, BusChoice, Places};
use crate::config::{AgentSpec, LogLimits};
use crate::front_door::FrontDoor;
use crate::telemetry::Telemetry;

pub use change::{ChangeError, Deployed, Undeployed};
pub use notify::Notifier;
pub use registry::{Deployment, Registry};

/// All applications of one agent. Its methods block, some for as long as grains load or finish.
#[derive(Debug)]
pub struct Host {
    data: PathBuf,
    run: PathBuf,
    bus: BusChoice,
    registry: Registry,
    door: Arc<FrontDoor>,
    /// One change at a time: whoever changes anything holds this lock.
    running: Mutex<BTreeMap<String, Application>>,
    /// What is deployed, for whoever asks meanwhile.
    known: Mutex<BTreeMap<String, Known>>,
    settings: Mutex<Settings>,
    /// Where this process may read, if that is bounded.
    reach: Option<Vec<PathBuf>>,
}

/// A deployment, and why it does not run.
#[derive(Clone, Debug)]
struct Known {
    deployment: Deployment,
    trouble: Option<String>,
    /// Another agent runs it: it is not tried again.
    taken_over: bool,
}

/// What a reload may change.
#[derive(Clone, Debug)]
struct Settings {
    drain: Duration,
    logs: LogLimits,
    /// Applications that may have the host's network.
    allow_host_network: Vec<String>,
}

impl Settings {
    fn of(spec: &AgentSpec) -> Settings {
        Settings {
            drain: spec.drain,
            logs: spec.logs,
            allow_host_network: spec.allow_host_network.clone(),
        }
    }
}

/// One application as `sandpipe ps` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeploymentStatus {
    /// The application.
    pub app: String,
    /// Its version, from 1.
    pub version: u64,
    /// The `app.toml` that was deployed.
    pub file: PathBuf,
    /// When, in milliseconds of the Unix clock.
    pub since_unix_ms: u64,
    /// Why it does not run at all; a running one that takes no requests says so in its status.
    pub trouble: Option<String>,
    /// Where its grains' output is kept.
    pub logs: PathBuf,
}

impl Host {
    /// An agent without applications; `data` and `run` are absolute.
    #[must_use]
    pub fn new(spec: &AgentSpec, data: PathBuf, run: PathBuf, telemetry: Telemetry) -> Host {
        let mut door = FrontDoor::default();
        door.telemetry = telemetry;
        let bus = match &spec.kafka {
            Some(bootstrap) => BusChoice::Kafka(bootstrap.clone()),
            None => BusChoice::Embedded,
        };
        Host {
            registry: Registry::new(data.clone()),
            data,
            run,
            bus,
            door: Arc::new(door),
            running: Mutex::default(),
            known: Mutex::default(),
            settings: Mutex::new(Settings::of(spec)),
            reach: spec.own_rights.read.clone(),
        }
    }

    /// The entry of its applications.
    #[must_use]
    pub fn door(&self) -> &Arc<FrontDoor> {
        &self.door
    }

    /// Takes the settings that can change while it runs.
    pub fn set(&self, spec: &AgentSpec) {
        *lock(&self.settings) = Settings::of(spec);
    }

    /// What is deployed, by name.
    #[must_use]
    pub fn deployments(&self) -> Vec<DeploymentStatus> {
        let known = lock(&self.known);
        let status = |known: &Known| DeploymentStatus {
            app: known.deployment.app.clone(),
            version: known.deployment.version,
            file: known.deployment.file.clone(),
            since_unix_ms: known.deployment.since_unix_ms,
            trouble: known.trouble.clone(),
            logs: self.places(&known.deployment).log_dir(),
        };
        known.values().map(status).collect()
    }

    fn settings(&self) -> Settings {
        lock(&self.settings).clone()
    }

    fn places(&self, deployment: &Deployment) -> Places {
        let places = Places {
            data: self.data.join(&deployment.app),
            run: self.run.clone(),
            logs: Some(self.settings().logs),
        };
        places.on_side(deployment.side)
    }

    fn know(&self, deployment: &Deployment, trouble: Option<String>) {
        let known = Known {
            deployment: deployment.clone(),
            trouble,
            taken_over: false,
        };
        lock(&self.known).insert(deployment.app.clone(), known);
    }

    fn deployment(&self, app: &str) -> Option<Deployment> {
        let known = lock(&self.known);
        known.get(app).map(|known| known.deployment.clone())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

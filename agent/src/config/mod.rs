//! `app.toml`: what an application is made of, read, checked and turned into an [`AppSpec`].
//!
//! Everything that is wrong is said at once, each with its line and what to do about it.

mod agent;
mod check;
mod error;
mod graph;
mod instances;
mod keep_alive;
mod limits;
mod own_rights;
mod raw;
mod reach;
mod runtime;
mod sandbox;
mod shared;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sandpipe_grain::BackOff;
use serde::{Deserialize, Serialize};

pub use agent::{AgentSpec, LogLimits};
pub use error::{ConfigError, Problem};
pub use own_rights::{OwnRights, Restrict};

/// An application as its `app.toml` describes it, checked: every index is in range, every grain
/// is reachable, the graph has no cycle and the handlers' files exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppSpec {
    /// The application's name: in URLs, topics and directories.
    pub name: String,
    /// The directory of `app.toml`, absolute; the handlers' working directory.
    pub directory: PathBuf,
    /// The grains in the file's order; grain `i` is family `i + 1` of the sandbox.
    pub grains: Vec<GrainSpec>,
    /// Index of the grain that requests go to.
    pub entry: usize,
    /// Whether messages are backed up on the global bus.
    pub backup: Backup,
    /// Bounds on what the application may use.
    pub limits: Limits,
    /// What it may reach outside its sandbox.
    pub sandbox: Sandbox,
    /// How long an idle grain worker stays loaded.
    pub keep_alive: KeepAlive,
}

/// One grain: a function of the application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrainSpec {
    /// Its name, unique in the application.
    pub name: String,
    /// What runs it.
    pub runtime: Runtime,
    /// How its instances are made.
    pub mode: Mode,
    /// How many events it handles at the same time.
    pub concurrency: u16,
    /// How long one event may take before its instance is killed.
    pub time_limit: Duration,
    /// Memory of the worker and its instances together, in bytes.
    pub memory_limit_bytes: Option<u64>,
    /// Added to the worker's environment.
    pub env: BTreeMap<String, String>,
    /// Indices of the grains that come after it; empty for a last grain.
    pub next: Vec<usize>,
    /// Who chooses among [`GrainSpec::next`].
    pub route: Route,
}

/// What runs a grain's code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// An executable linked with `sandpipe-grain`.
    Rust {
        /// Its absolute path.
        executable: PathBuf,
    },
    /// A Python function.
    Python {
        /// `file.py:function` (relative to the application's directory) or `module:function`.
        handler: String,
        /// The interpreter, absolute, or a bare name that is looked up in PATH.
        interpreter: PathBuf,
    },
    /// Any executable: payload on its standard input, answer on its standard output.
    Exec {
        /// Its absolute path.
        executable: PathBuf,
        /// Its arguments.
        args: Vec<String>,
    },
}

/// How a grain worker makes instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A fresh process for each event, `spares` of them forked ahead; 0 forks on demand.
    Fork {
        /// How many instances wait for an event.
        spares: u16,
    },
    /// Processes that are used again.
    Pool,
}

/// Who chooses the next grain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// The workflow: an output goes to every next grain.
    Static,
    /// The handler: each output names its grain.
    ByOutput,
}

/// The level at which messages are backed up on the global bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backup {
    /// Local delivery first, the backup behind it (SAND's order).
    Async,
    /// No backup: what is in the sandbox dies with the host.
    None,
}

/// Bounds on what an application may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest request, output or answer, in bytes.
    pub max_payload_bytes: u64,
    /// By how many bytes the payload pools of all its grains and of the agent may grow together.
    pub pool_growth_bytes: u64,
    /// The most bytes that its queues and payload pools share in memory, extensions included.
    pub shared_bytes: Option<u64>,
    /// The most requests that are accepted and not yet answered; beyond it callers get 429.
    pub max_in_flight: usize,
    /// The most bytes of request bodies that are being received or not yet answered; beyond it
    /// callers get 429.
    pub max_bytes_in_flight: u64,
    /// The most messages from the agent that wait in front of a grain, a power of two; beyond it
    /// callers get 429. From each instance of another grain a quarter of it.
    pub queue_length: u32,
    /// How long a synchronous caller waits before it gets 504.
    pub deadline: Duration,
    /// How often a message is tried before it becomes a dead letter.
    pub max_attempts: u16,
    /// How long it rests between two attempts.
    pub back_off: BackOff,
    /// How long an answer can be collected at `/results/{id}`.
    pub result_ttl: Duration,
    /// The most bytes of its log on this host's disk; beyond it callers get 503.
    pub spool_bytes: u64,
    /// How often in a second its grains may wake its bus thread in the agent for nothing.
    pub empty_wakes_per_s: u64,
    /// How often in a second they, and its callers, may wake it at all.
    pub wakes_per_s: u64,
    /// Memory of the whole sandbox, in bytes.
    pub memory_limit_bytes: Option<u64>,
    /// Processes of the whole sandbox.
    pub pids_limit: Option<u64>,
    /// Instances of all grains together, at least one for each.
    pub instances: Option<u64>,
    /// Processor time of the whole sandbox, in thousandths of a core.
    pub cpu_limit_millicores: Option<u64>,
}

/// What the grains may reach, beside the system's programs and the application's directory, which
/// they read. The paths are absolute and were there when the file was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// Read and executed, with all that is below.
    pub read: Vec<PathBuf>,
    /// Read, written and executed, with all that is below.
    pub write: Vec<PathBuf>,
    /// How much fits into its own `/tmp` (and `/var/tmp`, and `/dev/shm`), in bytes.
    pub tmp_bytes: u64,
    /// Whether its system calls may go through io_uring, where no filter sees them.
    pub io_uring: bool,
    /// Which network it asks for.
    pub network: Network,
}

/// Which network the processes of an application see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// One of its own, of which loopback is all.
    #[default]
    Loopback,
    /// The host's, if the operator allows it to the application.
    Host,
}

/// Which policy of [`crate::keep_alive`] each grain worker has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepAlive {
    /// It is never stopped for being idle.
    NeverStop,
    /// It is stopped after this time.
    Fixed {
        /// How long it stays loaded without an event.
        idle: Duration,
    },
    /// The hybrid histogram of its idle times decides.
    Hybrid {
        /// What one of its 240 bins covers.
        bin: Duration,
    },
}

impl Default for Limits {
    fn default() -> Limits {
        let bounds = crate::bridge::Bounds::default();
        Limits {
            max_payload_bytes: 8 << 20,
            pool_growth_bytes: 0,
            shared_bytes: None,
            max_in_flight: 1024,
            max_bytes_in_flight: 256 << 20,
            queue_length: 1024,
            deadline: Duration::from_secs(60),
            max_attempts: 3,
            back_off: BackOff {
                first_ms: 50,
                max_ms: 5_000,
            },
            result_ttl: Duration::from_secs(600),
            spool_bytes: bounds.spool_bytes,
            empty_wakes_per_s: bounds.empty_wakes_per_s,
            wakes_per_s: bounds.wakes_per_s,
            memory_limit_bytes: None,
            // Far above what grains need, far below what a host has.
            pids_limit: Some(4096),
            instances: None,
            cpu_limit_millicores: None,
        }
    }
}

impl AppSpec {
    /// Reads and checks the file. Blocks on the disk.
    ///
    /// # Errors
    /// Everything that is wrong with the file, each with its line and a remedy.
    pub fn load(path: &Path) -> Result<AppSpec, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|reason| ConfigError::Read {
            path: path.to_path_buf(),
            reason,
        })?;
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        let directory = absolute.parent().unwrap_or(Path::new("/"));
        AppSpec::parse(&text, path, directory)
    }

    /// Checks a file's text; `file` is what errors call it and `directory` what paths start from.
    ///
    /// # Errors
    /// As [`AppSpec::load`].
    pub fn parse(text: &str, file: &Path, directory: &Path) -> Result<AppSpec, ConfigError> {
        let raw: raw::App = toml::from_str(text).map_err(|error| ConfigError::Invalid {
            path: file.to_path_buf(),
            problems: vec![Problem::from_toml(text, &error)],
        })?;
        let mut problems = error::Problems::new(text);
        let spec = check::application(&raw, directory, &mut problems);
        if let Some(spec) = &spec {
            shared::check(&raw, spec, &mut problems);
            instances::check(&raw, spec, &mut problems);
            reach::check(&raw, spec, &mut problems);
        }
        match (spec, problems.into_vec()) {
            (Some(spec), problems) if problems.is_empty() => Ok(spec),
            (_, problems) => Err(ConfigError::Invalid {
                path: file.to_path_buf(),
                problems,
            }),
        }
    }

    /// The index of the grain of that name.
    #[must_use]
    pub fn grain_index(&self, name: &str) -> Option<usize> {
        self.grains.iter().position(|grain| grain.name == name)
    }
}

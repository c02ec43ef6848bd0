//! What a grain worker is told when it starts: one JSON value in its environment.

use std::time::Duration;

use sandpipe::{FamilyIndex, MessageId};
use serde::{Deserialize, Serialize};

use crate::back_off::BackOff;

/// The environment variable that holds a worker's [`WorkerConfig`] as JSON.
pub const WORKER_VARIABLE: &str = "SANDPIPE_WORKER";

/// The environment variable that asks a grain to mark the lines of its output with their message,
/// as [`Context::log`](crate::Context::log) does.
pub const LOG_MARKS_VARIABLE: &str = "SANDPIPE_LOG_MARKS";

/// The file descriptor of the worker's socket to its guardian, inherited over exec.
pub const ATTACH_FD: i32 = 3;

/// The file descriptor of the file in which the grains of an application share instances, inherited
/// over exec where [`WorkerConfig::shared_instances`] says so.
pub const SEATS_FD: i32 = 4;

/// What a worker must know of its grain and of the workflow around it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerConfig {
    /// The application's name.
    pub app: String,
    /// The grain's name.
    pub grain: String,
    /// The grain's family in its sandbox: 1 and up.
    pub family: u16,
    /// How instances are made.
    pub mode: Mode,
    /// Events handled at once, at the most.
    pub concurrency: u16,
    /// Instances forked ahead of their event; 0 = on demand. Only for [`Mode::Fork`].
    #[serde(default)]
    pub spares: u16,
    /// How many instances all grains of the application may have beside one each; `None` = as many
    /// as the others' numbers allow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_instances: Option<u32>,
    /// How long one event may take, milliseconds; the instance is killed after it.
    pub time_limit_ms: u64,
    /// How often an event is tried before it counts as failed.
    pub max_attempts: u16,
    /// How long it rests between two attempts.
    #[serde(default)]
    pub back_off: BackOff,
    /// Bytes of one output at the most.
    pub max_payload_bytes: u64,
    /// The grains that may follow; none for the last grain.
    #[serde(default)]
    pub next: Vec<NextGrain>,
    /// Who gets an output.
    #[serde(default)]
    pub route: Route,
    /// What to run, in the runtime's own words: `file.py:handle`, or a program's path.
    pub handler: String,
    /// Arguments of the program (`exec` runtime only).
    #[serde(default)]
    pub args: Vec<String>,
    /// Whether outputs are copied to the agent.
    #[serde(default)]
    pub backup: Backup,
}

/// How a worker makes instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// A fresh process for each event.
    Fork,
    /// Processes made beforehand and used again.
    Pool,
}

/// Who gets an output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// Every grain of `next`.
    #[default]
    All,
    /// The one that the handler names.
    ByOutput,
}

/// Whether the agent gets a copy of what goes to the next grain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backup {
    /// A copy of each output, off the critical path.
    #[default]
    Async,
    /// No copies; the answer still goes to the agent.
    None,
}

/// A grain that may follow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NextGrain {
    /// Its name.
    pub grain: String,
    /// Its family, hence its queue.
    pub family: u16,
}

/// Why a worker's configuration is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The process was not started by a sandbox.
    #[error(
        "{WORKER_VARIABLE} is not set: a grain is started by its sandbox; \
         use `sandpipe run app.toml`"
    )]
    Missing,
    /// The JSON is not a configuration.
    #[error("{WORKER_VARIABLE}: {0}")]
    Malformed(#[from] serde_json::Error),
    /// The numbers contradict each other.
    #[error("{WORKER_VARIABLE}: grain {grain}: {what}")]
    Contradiction {
        /// The grain.
        grain: String,
        /// What is wrong and what is allowed.
        what: String,
    },
}

impl WorkerConfig {
    /// Reads the configuration that the sandbox put into the environment.
    ///
    /// # Errors
    /// [`ConfigError`] if there is none or it makes no sense.
    pub fn from_env() -> Result<WorkerConfig, ConfigError> {
        let json = std::env::var(WORKER_VARIABLE).map_err(|_| ConfigError::Missing)?;
        WorkerConfig::from_json(&json)
    }

    /// Parses and checks a configuration.
    ///
    /// # Errors
    /// [`ConfigError`] if it is malformed or contradicts itself.
    pub fn from_json(json: &str) -> Result<WorkerConfig, ConfigError> {
        let config: WorkerConfig = serde_json::from_str(json)?;
        config.check()?;
        Ok(config)
    }

    /// The configuration as the value of [`WORKER_VARIABLE`].
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers are always JSON")
    }

    /// Instance slots of the family, the worker's own slot 0 included: what the topology needs.
    #[must_use]
    pub fn slots(&self) -> u16 {
        1 + self.concurrency + self.spares
    }

    /// The family as the data plane names it.
    #[must_use]
    pub fn family(&self) -> FamilyIndex {
        FamilyIndex(self.family)
    }

    /// How long one event may take.
    #[must_use]
    pub fn time_limit(&self) -> Duration {
        Duration::from_millis(self.time_limit_ms)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let refuse = |what: String| {
            let grain = self.grain.clone();
            Err(ConfigError::Contradiction { grain, what })
        };
        let slots_max = sandpipe::layout::SLOTS_MAX;
        if self.family == 0 {
            return refuse("family 0 is the host agent; grains are 1 and up".into());
        }
        if self.concurrency == 0 {
            return refuse("concurrency 0; it must be at least 1".into());
        }
        if 1 + usize::from(self.concurrency) + usize::from(self.spares) > slots_max {
            return refuse(format!("concurrency + spares + 1 exceed {slots_max} slots"));
        }
        if self.mode == Mode::Pool && self.spares != 0 {
            return refuse("mode pool has no spares; set spares = 0 or mode = \"fork\"".into());
        }
        if self.max_attempts == 0 || self.time_limit_ms == 0 {
            return refuse("max_attempts and time_limit_ms must be at least 1".into());
        }
        if self.route == Route::ByOutput && self.next.is_empty() {
            return refuse("route by_output needs at least one grain in next".into());
        }
        if self.next.iter().any(|next| next.family == 0) {
            return refuse("next names family 0, the host agent".into());
        }
        Ok(())
    }
}

/// The idempotency key that a handler passes to outside services: the same in every attempt.
#[must_use]
pub fn idempotency_key(app: &str, grain: &str, event: MessageId) -> String {
    format!("{app}/{grain}/{event}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = r#"{"app": "hello", "grain": "greet", "family": 1, "mode": "fork",
        "concurrency": 4, "spares": 2, "time_limit_ms": 30000, "max_attempts": 3,
        "max_payload_bytes": 1048576, "next": [{"grain": "shout", "family": 2}],
        "route": "all", "handler": "target/release/greet", "backup": "async"}"#;

    #[test]
    fn a_configuration_survives_its_own_json() {
        let config = WorkerConfig::from_json(JSON).unwrap();
        assert_eq!((config.slots(), config.mode), (7, Mode::Fork));
        assert_eq!(WorkerConfig::from_json(&config.to_json()).unwrap(), config);
    }

    #[test]
    fn contradictions_are_refused_by_name() {
        let cases = [
            (r#""family": 1"#, r#""family": 0"#, "host agent"),
            (
                r#""concurrency": 4"#,
                r#""concurrency": 0"#,
                "concurrency 0",
            ),
            (
                r#""concurrency": 4"#,
                r#""concurrency": 1022"#,
                "exceed 1024",
            ),
            (r#""mode": "fork""#, r#""mode": "pool""#, "spares"),
            (
                r#""max_attempts": 3"#,
                r#""max_attempts": 0"#,
                "max_attempts",
            ),
            (r#""app": "hello""#, r#""ap": "hello""#, "unknown field"),
        ];
        for (from, to, expected) in cases {
            let error = WorkerConfig::from_json(&JSON.replace(from, to)).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}

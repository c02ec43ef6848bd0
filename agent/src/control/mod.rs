//! The agent's control socket: who is there, deploy, undeploy, stop. Only its own user may talk to
//! it.

mod client;
mod lock;
mod server;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::bridge::AppStatus;
use crate::front_door::{AppDeadLetter, AppDeadLetters, Latency, Redriven};
use crate::host::{Deployed, DeploymentStatus, Undeployed};

pub use client::{ControlError, ask, order};
pub use server::{Control, ListenError};

/// What can be asked: one JSON value on a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// How is everything?
    Status,
    /// Finish what is open, end the sandbox, then end.
    Shutdown,
    /// Deploy an application, or a new version of it.
    Deploy {
        /// Its `app.toml`, absolute.
        file: PathBuf,
        /// How long the running version may take with what is open, in milliseconds.
        drain_ms: Option<u64>,
    },
    /// End an application.
    Undeploy {
        /// Its name.
        app: String,
        /// How long it may take with what is open, in milliseconds.
        drain_ms: Option<u64>,
        /// Remove its messages too.
        purge: bool,
    },
    /// Which events died?
    DeadLetters {
        /// Of this application; `None`: of all.
        app: Option<String>,
    },
    /// What is in this dead letter?
    DeadLetter {
        /// Of this application; `None`: of any.
        app: Option<String>,
        /// Its id.
        letter: String,
    },
    /// Delete this dead letter.
    DeleteDeadLetter {
        /// Of this application; `None`: of any.
        app: Option<String>,
        /// Its id.
        letter: String,
    },
    /// Send dead letters again.
    Redrive {
        /// Of this application; `None`: of all.
        app: Option<String>,
        /// This one; `None`: all.
        letter: Option<String>,
    },
}

/// The answer: one JSON value on a line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To [`Question::Status`] and [`Question::Shutdown`].
    Status(Box<AgentStatus>),
    /// To [`Question::Deploy`].
    Deployed(Deployed),
    /// To [`Question::Undeploy`].
    Undeployed(Undeployed),
    /// To [`Question::DeadLetters`].
    DeadLetters(Vec<AppDeadLetters>),
    /// To [`Question::DeadLetter`].
    DeadLetter(Box<AppDeadLetter>),
    /// To [`Question::DeleteDeadLetter`]: it is gone, durably.
    DeletedDeadLetter {
        /// The application that had it.
        app: String,
    },
    /// To [`Question::Redrive`].
    Redriven(Vec<Redriven>),
    /// Nothing was changed.
    Refused {
        /// Why, and what to do.
        reason: String,
        /// The caller's file is wrong.
        wrong_file: bool,
    },
}

/// How an agent is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// The agent's process.
    pub pid: u32,
    /// Where its front door is.
    pub url: String,
    /// The same as an address, to call it.
    pub address: String,
    /// Its applications.
    pub apps: Vec<AppStatus>,
    /// How long requests took of late.
    #[serde(default)]
    pub latencies: Vec<Latency>,
    /// What is deployed on it; empty for a `sandpipe run`.
    #[serde(default)]
    pub deployments: Vec<DeploymentStatus>,
}

//! The agent's control socket: who is there, and stop. Only its own user may talk to it.

mod client;
mod server;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::bridge::AppStatus;

pub use client::{ControlError, ask};
pub use server::{Control, ListenError};

/// What can be asked: one JSON value on a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// How is everything?
    Status,
    /// Finish what is open, end the sandbox, then end.
    Shutdown,
}

/// The answer: one JSON value on a line.
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
}

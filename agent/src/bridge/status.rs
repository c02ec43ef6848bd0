//! What a bus thread says about itself.

use serde::{Deserialize, Serialize};

use crate::core::Counters;

/// How an application is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AppStatus {
    /// Its name.
    pub app: String,
    /// Why it takes no requests; `None` = it is ready.
    pub not_ready: Option<String>,
    /// How its grain workers are.
    pub grains: Vec<GrainState>,
    /// Requests that are open.
    pub in_flight: usize,
    /// Answers that can be collected.
    pub kept_results: usize,
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
    /// Whether the first of them found a sandbox of an agent before this one.
    pub adopted: bool,
}

/// How one grain worker is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrainState {
    /// The grain.
    pub grain: String,
    /// starting, running, clearing, backoff, failed or stopped.
    pub state: String,
    /// The worker's process, as this host sees it.
    pub pid: Option<u32>,
    /// How often it was started again.
    pub restarts: u64,
    /// Why it does not run, with its last words; `None` while it runs or starts.
    pub trouble: Option<String>,
    /// It will not run before somebody mends it.
    pub broken: bool,
}

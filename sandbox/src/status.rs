use serde::{Deserialize, Serialize};

use crate::IsolationItem;

/// What a sandbox's init says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxStatus {
    /// How many agents have owned this sandbox; the current one's number.
    pub epoch: u64,
    /// Since init was ready, in milliseconds.
    pub uptime_ms: u64,
    /// Processes that lost their parent and were reaped by init.
    pub orphans_reaped: u64,
    /// The grain workers in the spec's order.
    pub workers: Vec<WorkerStatus>,
    /// What is isolated, and why the rest is not.
    pub isolation: Vec<IsolationItem>,
}

/// One grain worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// The grain's name.
    pub grain: String,
    /// What it is doing.
    pub state: WorkerState,
    /// Its process id as the asking process sees it; `None` while there is no process, or where
    /// that cannot be told.
    pub pid: Option<u32>,
    /// How often it was started again after it had died.
    pub restarts: u64,
    /// How often a message found it unloaded and had it started.
    #[serde(default)]
    pub cold_starts: u64,
}

/// What one grain worker has to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerActivity {
    /// Messages that it and its instances have taken since the sandbox was made.
    pub received: u64,
    /// A message waits for it or is in an instance's hands.
    pub busy: bool,
}

/// The life of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum WorkerState {
    /// Started, not yet attached to the bus: it loads its grain.
    Starting,
    /// Attached to the bus.
    Running,
    /// Told to end since it is idle: its instances finish what they have.
    Unloading,
    /// Not running since it was idle: the next message has it started.
    Unloaded,
    /// Started after it was unloaded, not yet attached to the bus.
    Reloading,
    /// Dead; what is left of its family is being killed before its memory is repaired.
    Clearing,
    /// Waiting to be started again.
    Backoff {
        /// When, in milliseconds from now.
        retry_in_ms: u64,
        /// How it ended, for example `exit code 1`.
        last_exit: String,
        /// The last lines that it wrote, at most 8 KiB.
        stderr_tail: String,
    },
    /// It has ended several times in a row without ever attaching. It is still tried again, at
    /// the longest interval.
    Failed {
        /// When, in milliseconds from now.
        retry_in_ms: u64,
        /// How often in a row.
        attempts: u32,
        /// How it ended, for example `exit code 1`.
        last_exit: String,
        /// The last lines that it wrote, at most 8 KiB.
        stderr_tail: String,
    },
    /// It wrote what no honest worker writes: its processes were ended, and it is not started
    /// again before the sandbox is made anew.
    Quarantined {
        /// What it wrote.
        reason: String,
    },
    /// The sandbox is being shut down.
    Stopped,
}

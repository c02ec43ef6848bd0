use serde::{Deserialize, Serialize};

/// A limit that the kernel, or the workers together, keep for a sandbox, and how it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelLimit {
    /// What it limits.
    pub kind: KernelLimitKind,
    /// The limit: bytes, processes and threads, thousandths of a core, instances. Where only
    /// workers have a limit of memory, theirs together.
    pub limit: u64,
    /// How much is used now, where the kernel tells.
    pub now: Option<u64>,
    /// How often it held since the sandbox was made: processes that were ended for want of memory,
    /// forks or instances that were refused, periods of 100 ms in which the sandbox had to wait for
    /// its cores.
    pub hits: u64,
}

/// What the kernel limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelLimitKind {
    /// Memory.
    Memory,
    /// Processes and threads.
    Pids,
    /// Processor time.
    Cpu,
    /// Instances of all grains together, as their workers say.
    Instances,
}

//! What the kernel says of a sandbox's limits, in the words of `app.toml`.

use sandpipe_sandbox::{KernelLimit, KernelLimitKind};

use crate::bridge::LimitState;

/// The same in the unit of `[limits]`; `cpu` in thousandths of a core.
pub(super) fn told(limits: Vec<KernelLimit>) -> Vec<LimitState> {
    limits.into_iter().map(state).collect()
}

fn state(limit: KernelLimit) -> LimitState {
    let (name, shift) = match limit.kind {
        KernelLimitKind::Memory => ("memory_limit_mb", 20),
        KernelLimitKind::Pids => ("pids", 0),
        KernelLimitKind::Cpu => ("cpu", 0),
        KernelLimitKind::Instances => ("instances", 0),
    };
    LimitState {
        name: name.into(),
        limit: limit.limit >> shift,
        now: limit.now.map(|now| now >> shift),
        hits: limit.hits,
    }
}

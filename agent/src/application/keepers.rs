//! The keep-alive policies at work: which idle workers of a sandbox are ended, and started again
//! before their next event.
//!
//! The agent only advises. Init ends a worker only while it has nothing to do, and starts it when a
//! message comes, also without an agent; what a policy has learned dies with its agent.

use std::time::Instant;

use sandpipe_sandbox::{SandboxError, SandboxHandle, WorkerState, WorkerStatus};

use crate::config::KeepAlive;
use crate::keep_alive::{self, Fixed, Hybrid, Keeper, Never, Order, Seen};

/// A keeper for each worker of one sandbox.
#[derive(Debug)]
pub(super) struct Keepers {
    policy: KeepAlive,
    keepers: Vec<Keeper>,
}

impl Keepers {
    pub(super) fn new(policy: KeepAlive) -> Keepers {
        let keepers = Vec::new();
        Keepers { policy, keepers }
    }

    /// Looks at the workers and has init do what their policies say. One request to init and one
    /// for each order; none under a policy that never stops one.
    ///
    /// # Errors
    /// Init's: it is gone, or another agent's.
    pub(super) fn look(
        &mut self,
        handle: &SandboxHandle,
        workers: &[WorkerStatus],
    ) -> Result<(), SandboxError> {
        if self.policy == KeepAlive::NeverStop {
            return Ok(());
        }
        let policy = self.policy;
        self.keepers
            .resize_with(workers.len(), || Keeper::new(policy_of(policy)));
        let activity = handle.activity()?;
        let now = Instant::now();
        let all = self.keepers.iter_mut().zip(workers).zip(activity);
        for (index, ((keeper, worker), activity)) in all.enumerate() {
            let loaded = match worker.state {
                WorkerState::Running => true,
                WorkerState::Unloaded => false,
                _ => continue,
            };
            let seen = Seen {
                received: activity.received,
                busy: activity.busy,
                loaded,
            };
            match keeper.look(now, seen) {
                Some(Order::Unload) => handle.unload(index)?,
                Some(Order::Load) => handle.load(index)?,
                None => {}
            }
        }
        Ok(())
    }
}

fn policy_of(policy: KeepAlive) -> Box<dyn keep_alive::KeepAlive> {
    match policy {
        KeepAlive::NeverStop => Box::new(Never),
        KeepAlive::Fixed { idle } => Box::new(Fixed { idle }),
        KeepAlive::Hybrid { bin } => Box::new(Hybrid::with_bin(bin)),
    }
}

//! The isolated environment of one application on one host.
//!
//! A sandbox is one small process, its *init*, that outlives the host agent: pid 1 of the
//! application's namespaces, guardian of the shared memory of every family, parent of the grain
//! workers, which it starts, restarts and reaps. `RUN/APP/lock` is locked exactly as long as init
//! lives and `RUN/APP/sock` leads to it; so the next agent finds a living sandbox and adopts it,
//! or finds the leftovers of a dead one and cleans them up. What the machine refuses is named with
//! its reason, and the rest works.
//!
//! A program that creates sandboxes is executed again as their init: its `main` starts with
//! ```no_run
//! # use std::process::ExitCode;
//! # fn main() -> ExitCode {
//! if sandpipe_sandbox::is_sandbox_init() {
//!     return sandpipe_sandbox::sandbox_init_main();
//! }
//! # ExitCode::SUCCESS
//! # }
//! ```
#![deny(unsafe_code)]

mod boot;
mod cgroup;
mod confine;
mod create;
mod error;
mod handle;
mod init;
mod isolation;
mod kernel_limits;
mod launcher;
mod leftovers;
mod line;
mod namespaces;
mod probe;
mod run_dir;
mod spec;
mod status;
#[expect(
    unsafe_code,
    reason = "the system calls that neither std nor rustix wraps"
)]
mod sys;
mod wire;

#[doc(hidden)]
pub use confine::agent_system_calls;
pub use confine::is_readable;
pub use confine::{AgentRights, bound_calls, give_up_rights};
pub use create::create_or_adopt;
pub use error::SandboxError;
pub use handle::SandboxHandle;
pub use init::{is_sandbox_init, sandbox_init_main};
pub use isolation::{IsolationItem, IsolationState};
pub use kernel_limits::{KernelLimit, KernelLimitKind};
pub use launcher::{is_launcher, launcher_main, wait_for_launchers_end};
pub use leftovers::clean_up_dead;
pub use probe::{Probe, probe_isolation};
pub use spec::{Files, Isolation, LogLimits, SandboxSpec, WorkerSpec};
pub use status::{SandboxStatus, WorkerActivity, WorkerState, WorkerStatus};
#[doc(hidden)]
pub use wire::parse_packet;

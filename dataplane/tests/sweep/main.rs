//! Death at every single instruction of what the bus does.
//!
//! A process is stepped (ptrace) through an operation. The hot ones (`hot.rs`) are really killed
//! after each instruction; in the longer ones (`whole.rs`, `long.rs`, `recovery.rs`) the shared
//! memory is copied after each instruction that changed it, which is what a death there would
//! leave, and recovery runs twice on the copy; at a sample of the instructions the process is
//! really killed. Wherever it dies: outputs and acknowledgement are all there, or none is; a
//! payload is whole; no message is lost or doubled; no chunk, claim or entry is left over; the
//! survivors go on.
#![allow(
    unsafe_code,
    reason = "fork, ptrace, kill and waitpid of test processes"
)]

mod hot;
mod long;
mod recovery;
#[path = "../sandbox/mod.rs"]
mod sandbox;
mod stage;
mod steps;
mod whole;

/// Builds that take many more instructions are swept in larger steps.
const SLOW_BUILD: bool = cfg!(debug_assertions) || cfg!(feature = "pauses");

/// Instructions between two looks at the memory: every one in the build that matters.
const COPY_STRIDE: u64 = if SLOW_BUILD { 1009 } else { 1 };

/// Instructions between two real kills of a long operation; each steps from the start again.
const KILL_STRIDE: u64 = if SLOW_BUILD { 40_009 } else { 97 };

/// Instructions between two real kills of a hot operation.
const HOT_STRIDE: u64 = if SLOW_BUILD { 4001 } else { 1 };

//! Grain workers: a process that has loaded a grain's code once, and makes an instance for each
//! event of its queue.
//!
//! A grain in Rust is a program of one line:
//!
//! ```no_run
//! use sandpipe_grain::{Context, Event, HandlerError, Output};
//!
//! fn greet(event: &Event<'_>, _context: &mut Context<'_>) -> Result<Output, HandlerError> {
//!     let name = std::str::from_utf8(event.data())?;
//!     Ok(Output::from(format!("Hello, {name}!")))
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     sandpipe_grain::run(greet)
//! }
//! ```
//!
//! Other languages implement [`Runtime`] and call [`run_from_env`]; [`exec_worker_main`] runs any
//! program.
#![deny(unsafe_code)]

mod back_off;
mod board;
mod config;
mod event;
mod exec;
mod instance;
mod logging;
mod process;
mod publish;
mod runtime;
mod seats;
mod start;
mod watch;
mod worker;

pub use crate::back_off::BackOff;
pub use crate::config::{
    ATTACH_FD, Backup, ConfigError, LOG_MARKS_VARIABLE, Mode, NextGrain, Route, WORKER_VARIABLE,
    WorkerConfig, idempotency_key,
};
pub use crate::event::{Context, Event, HandlerError, Output};
pub use crate::exec::exec_worker_main;
pub use crate::process::{Fork, fork};
pub use crate::runtime::Runtime;
pub use crate::start::{EXIT_CONFIG, EXIT_LOAD, run, run_from_env, run_worker};

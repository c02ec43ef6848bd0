//! The host agent: joins an application's local bus to the global bus and serves its front door.
//!
//! - [`application`] puts the parts together.
//! - [`bridge`] is the thread between the two buses.
//! - [`cli`] is the `sandpipe` command.
//! - [`client`] calls a front door.
//! - [`config`] reads `app.toml`.
//! - [`control`] is the agent's own socket.
//! - [`core`] is the protocol, without I/O and clock.
//! - [`doctor`] checks the machine.
//! - [`front_door`] is the HTTP entry.
//! - [`host`] is the long-running form: several applications, deployed and replaced.
//! - [`keep_alive`] decides how long an idle grain worker stays loaded.
//! - [`open_files`] says what to raise when descriptors run out.
//! - [`own_rights`] gives up what the agent does not need itself.
//! - [`telemetry`] hands the paths of requests to OpenTelemetry.
#![forbid(unsafe_code)]

pub mod application;
pub mod bridge;
pub mod cli;
pub mod client;
pub mod config;
pub mod control;
pub mod core;
pub mod doctor;
pub mod front_door;
pub mod host;
pub mod keep_alive;
pub mod open_files;
pub mod own_rights;
pub mod telemetry;

//! The host agent: joins an application's local bus to the global bus and serves its front door.
//!
//! - [`config`] reads `app.toml`.
//! - [`core`] is the protocol, without I/O and clock.
#![forbid(unsafe_code)]

pub mod config;
pub mod core;

//! The host agent: joins an application's local bus to the global bus and serves its front door.
//!
//! - [`bridge`] is the thread between the two buses.
//! - [`client`] calls a front door.
//! - [`config`] reads `app.toml`.
//! - [`core`] is the protocol, without I/O and clock.
//! - [`front_door`] is the HTTP entry.
#![forbid(unsafe_code)]

pub mod bridge;
pub mod client;
pub mod config;
pub mod core;
pub mod front_door;

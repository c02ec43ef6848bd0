//! The host agent: joins an application's local bus to the global bus and serves its front door.
//!
//! - [`config`] reads `app.toml`.
#![forbid(unsafe_code)]

pub mod config;

//! Grain workers: a process that has loaded a grain's code once, and makes an instance for each
//! event of its queue.
#![deny(unsafe_code)]

mod config;

pub use crate::config::{
    ATTACH_FD, Backup, ConfigError, Mode, NextGrain, Route, WORKER_VARIABLE, WorkerConfig,
};

//! What two processes must agree on to share a bus: layouts, constants and ids, and nothing else.
#![no_std]
#![forbid(unsafe_code)]

mod id;
pub mod layout;

pub use id::MessageId;

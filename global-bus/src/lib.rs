//! The global bus: where a host agent backs up the event messages of its local bus, so that
//! another host can finish them.
//!
//! [`GlobalBus`] is what the agent knows. Two things implement it and pass the same
//! [`conformance`] suite: [`EmbeddedBus`], a durable log on the local disk that needs no server,
//! and `KafkaBus` (feature `kafka`), a real Apache Kafka.
//!
//! The crate has threads of its own but no async runtime: nothing here blocks the caller, except
//! where the documentation says so.
#![forbid(unsafe_code)]

mod bus;
mod codec;
pub mod conformance;
mod embedded;
mod fold;
mod intake;
#[cfg(feature = "kafka")]
mod kafka;
mod record;
mod shared;
mod window;

pub use bus::{
    AppendError, FlushError, GlobalBus, Health, Limits, Mark, MarkError, PrepareError, ReplayError,
    Replayed, Ticket, Unbacked, Waker,
};
pub use codec::{DecodeError, RECORD_VERSION};
pub use embedded::{Cut, EmbeddedBus, EmbeddedOptions, OpenError, OpenReport};
#[cfg(feature = "kafka")]
pub use kafka::{ConnectError, KafkaBus, KafkaOptions};
pub use record::{Flag, InvalidRecord, ObjectRef, Payload, RESULTS, Record, ReplyTo, check_name};

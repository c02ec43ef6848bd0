//! Sandpipe's data plane: the local bus of one application on one host.
//!
//! The grains of an application exchange messages over single-writer lanes in shared memory:
//! no copy beyond the payload's own, no system call while the receiver is awake, and nothing lost,
//! torn or invented when a process is killed at any instruction. `docs/ARCHITECTURE.md` draws the
//! layout; the modules below follow the path of one message:
//! [`Instance`] loans, stages and commits, [`Bell`] wakes, [`Claimer`] or [`Receiver`] takes,
//! [`recover`] repairs what the dead left, [`Guardian`] keeps the segments.
//!
//! The crate knows no runtime, no Kafka and no eBPF.
#![deny(unsafe_code)]

mod audit;
mod bell;
mod bus;
mod chunk;
mod claim;
mod claim_word;
mod counters;
mod extension;
mod family_layout;
mod instance;
mod lane;
mod memory;
mod message;
mod payload;
mod receive;
pub mod recover;
mod refusal;
mod sync;
mod topology;

#[cfg(not(loom))]
mod activity;
#[cfg(not(loom))]
pub mod attach;
#[cfg(not(loom))]
mod clock;
#[cfg(not(loom))]
pub mod futex;
#[cfg(not(loom))]
mod growth;
#[cfg(not(loom))]
mod guardian;
#[cfg(not(loom))]
pub mod huge_pages;
#[cfg(not(loom))]
pub mod lease;
#[cfg(not(loom))]
pub mod segment;
#[cfg(not(loom))]
pub mod socket;
#[cfg(not(loom))]
pub mod wait;
#[cfg(not(loom))]
mod wish;

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(loom)))]
mod tests;

pub use sandpipe_abi::{MessageId, layout};

pub use crate::audit::Audit;
pub use crate::bell::{Bell, PARK_MAX, Parking};
pub use crate::bus::Bus;
pub use crate::chunk::{Loan, LoanError};
pub use crate::claim::{Claimer, Delivery};
pub use crate::counters::{Count, Counters, Tally};
pub use crate::family_layout::{ChunkRange, FamilyLayout, IncomingLane};
pub use crate::instance::{Ack, Instance, Payload, StageError};
pub use crate::memory::{HeapMemory, Memory};
pub use crate::message::{
    Body, DEAD_OVERHEAD_MAX, FailureCode, Head, Kind, Message, MessageHeader, TraceStamps,
    derive_child, join_dead, split_dead,
};
pub use crate::payload::{DeliveredPayload, PayloadError};
pub use crate::receive::{Place, Receiver};
pub use crate::refusal::{Refusal, Refusals, Violation};
pub use crate::topology::{
    CHUNK_CLASSES_MAX, ChunkClass, FamilyIndex, FamilySpec, SlotIndex, Target, Topology,
    TopologyError,
};

#[cfg(not(loom))]
pub use crate::{
    activity::Activity,
    attach::{AttachError, Participant},
    clock::monotonic_ns,
    growth::RETIRE_AFTER,
    guardian::{Guardian, Reaction},
    lease::Lease,
    segment::{Mapping, SegmentError},
};

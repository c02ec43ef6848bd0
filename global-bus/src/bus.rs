//! What the agent knows of a global bus.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::record::{InvalidRecord, Record};

/// Called when [`GlobalBus::acknowledged`] has moved or [`GlobalBus::health`] has changed; not
/// again for an acknowledgement until `acknowledged` was read, so a busy bus costs few calls.
///
/// It runs on a thread of the bus: it must be short, must not block and must not call the bus.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// The number of an accepted append; the first is 1, each next one is greater.
///
/// A ticket is worth nothing after the bus is closed. The default, 0, is before every append.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// A durable log of event messages, shared by the hosts of an application (or private to one).
///
/// Everything but [`replay`](GlobalBus::replay), [`marks`](GlobalBus::marks),
/// [`flush`](GlobalBus::flush) and [`close`](GlobalBus::close) returns without waiting for a disk
/// or a network.
///
/// Order: the records of one topic partition keep the order in which they were appended. A record
/// that was accepted but not acknowledged when the process died is *unknown*: it may be there or
/// not; its successors are never there without it, in the same topic partition.
pub trait GlobalBus: Send + fmt::Debug {
    /// Announces an application, so that its first event need not wait for its topics. Optional,
    /// idempotent.
    ///
    /// # Errors
    /// [`PrepareError`]: a name that is not allowed, or the bus is closed.
    fn prepare(&mut self, app: &str, grains: &[&str]) -> Result<(), PrepareError>;

    /// Accepts all of `records`, emptying the vector (its room is kept for the next batch), or
    /// none, leaving it as it is: back pressure never drops silently. An empty vector is accepted.
    ///
    /// Cost on the calling thread: a lock, and the encoding (embedded) or a move (Kafka) of each
    /// record; no system call while the bus's own thread is awake. If the caller dies here, the
    /// records are unknown.
    ///
    /// # Errors
    /// [`AppendError`]; `Full` and `DiskFull` pass, the waker tells when.
    fn append(&mut self, records: &mut Vec<Record>) -> Result<Ticket, AppendError>;

    /// The newest ticket such that it and all before it are durable. Two atomic accesses.
    fn acknowledged(&self) -> Ticket;

    /// Hands each message of `app` that is not finished to `visitor`, as its newest record and in
    /// the order of those, and each answer that has not expired. Blocks for as long as reading
    /// takes; sees every acknowledged record.
    ///
    /// # Errors
    /// [`ReplayError`]; the visitor may have been called before.
    fn replay(
        &mut self,
        app: &str,
        visitor: &mut dyn FnMut(Record),
    ) -> Result<Replayed, ReplayError>;

    /// Where the contiguous finished prefix ends, for each topic partition of `app` that this bus
    /// has replayed or appended to. Counted from acknowledged records only. Costs a walk over the
    /// unfinished messages and may wait for a write that is under way: call it at human intervals.
    fn marks(&self, app: &str) -> Vec<Mark>;

    /// Makes the marks durable in the background, and lets go of what lies below them. Call it
    /// about once a second; if the caller dies before, the next replay reads more, nothing else.
    ///
    /// # Errors
    /// [`MarkError`]: the bus is closed.
    fn commit_marks(&mut self) -> Result<(), MarkError>;

    /// What has been accepted and is not yet acknowledged.
    fn window(&self) -> Unbacked;

    /// Bytes that the bus keeps on this host's disk, as of its last write or deletion; 0 where it
    /// keeps none there. One atomic access.
    fn spooled_bytes(&self) -> u64 {
        0
    }

    /// How the bus is. A degraded bus keeps what it accepted and goes on by itself.
    fn health(&self) -> Health;

    /// Sets what to call on news, in place of what was set before.
    fn set_waker(&mut self, waker: Waker);

    /// Waits until everything accepted is acknowledged, but not longer than `deadline`.
    ///
    /// # Errors
    /// [`FlushError`]; what is not yet acknowledged goes on being written.
    fn flush(&mut self, deadline: Instant) -> Result<(), FlushError>;

    /// Flushes, then ends the threads. Later appends are refused. Dropping a bus does the same
    /// without waiting for a disk or a network that does not answer.
    ///
    /// # Errors
    /// [`FlushError`]: what was not acknowledged by `deadline` is unknown; the bus is closed.
    fn close(&mut self, deadline: Instant) -> Result<(), FlushError>;
}

/// What every bus limits.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Records accepted but not acknowledged, at most.
    pub window_messages: usize,
    /// Bytes of them, encoded, at most. One append is taken whole if the window is empty.
    pub window_bytes: usize,
    /// The largest record, encoded, in bytes.
    pub record_bytes: usize,
    /// Partition indices of every topic.
    pub partitions: u32,
}

impl Default for Limits {
    /// A window of about a second of heavy traffic (100,000 messages, 128 MiB); records of up to
    /// 16 MiB (Kafka's topics are made with this limit); 4 partitions.
    fn default() -> Limits {
        Limits {
            window_messages: 100_000,
            window_bytes: 128 << 20,
            record_bytes: 16 << 20,
            partitions: 4,
        }
    }
}

/// The part of the bus's intake that a host's loss would take along.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unbacked {
    /// Records.
    pub messages: usize,
    /// Bytes, encoded.
    pub bytes: usize,
    /// How long the oldest has waited.
    pub oldest_age: Duration,
}

/// How a bus is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Records become durable.
    Healthy,
    /// Nothing is lost, but nothing becomes durable for now: the bus tries again by itself.
    Degraded {
        /// What is wrong and what to do about it.
        reason: String,
    },
    /// The bus has stopped for good.
    Closed {
        /// Why.
        reason: String,
    },
}

/// Where the finished prefix of a topic partition ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The grain (or [`RESULTS`](crate::RESULTS)).
    pub grain: Arc<str>,
    /// The partition index.
    pub partition: u32,
    /// All records below this position belong to finished messages. In the bus's own units (Kafka:
    /// the offset; embedded: the record's number in the log), comparable within one topic
    /// partition only.
    pub position: u64,
    /// Messages at or above it that are not finished.
    pub unfinished: u64,
}

/// What a replay found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Messages handed to the visitor.
    pub messages: u64,
    /// Answers handed to the visitor.
    pub results: u64,
    /// Records dropped because a newer epoch had already written.
    pub fenced: u64,
}

/// Why an append was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The window is full; try again when the waker was called.
    #[error(
        "the window of unacknowledged records is full ({messages} messages, {bytes} bytes): \
         slow down, or raise the limits"
    )]
    Full {
        /// Records in the window.
        messages: usize,
        /// Their bytes.
        bytes: usize,
    },
    /// The window is full because the disk does not take more.
    #[error("the log in {dir} cannot be written: {reason}; free some space, it goes on by itself")]
    DiskFull {
        /// The directory of the log.
        dir: String,
        /// What the system said.
        reason: String,
    },
    /// A record that no bus can take.
    #[error(transparent)]
    Invalid(#[from] InvalidRecord),
    /// The bus is closed, or has failed for good.
    #[error("the global bus is closed: {reason}")]
    Closed {
        /// Why.
        reason: String,
    },
}

/// Why an announcement was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PrepareError {
    /// A name that is not allowed.
    #[error(transparent)]
    Invalid(#[from] InvalidRecord),
    /// The bus is closed.
    #[error("the global bus is closed: {reason}")]
    Closed {
        /// Why.
        reason: String,
    },
}

/// Why marks were not committed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MarkError {
    /// The bus is closed.
    #[error("the global bus is closed: {reason}")]
    Closed {
        /// Why.
        reason: String,
    },
}

/// Why a replay ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// A record that cannot be read.
    #[error("cannot read the record at {place}: {reason}")]
    Unreadable {
        /// File and offset, or topic, partition and offset.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The disk or the broker failed.
    #[error("replay of {app} stopped: {reason}")]
    Failed {
        /// The application.
        app: String,
        /// What happened, and what to do about it.
        reason: String,
    },
}

/// Why not everything is acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FlushError {
    /// The time was over.
    #[error("{messages} messages ({bytes} bytes) are still not acknowledged; {health}")]
    Deadline {
        /// Records not acknowledged.
        messages: usize,
        /// Their bytes.
        bytes: usize,
        /// What holds them up, as far as it is known.
        health: String,
    },
    /// The bus is closed, or has failed for good.
    #[error("the global bus is closed: {reason}")]
    Closed {
        /// Why.
        reason: String,
    },
}

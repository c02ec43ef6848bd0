//! What goes into the core and what comes out of it.

use std::sync::Arc;

use sandpipe_abi::MessageId;
use sandpipe_global_bus::Record;

use super::root::Message;
use super::trace::{Path, Stamps, Trace};

/// The time, as the caller of the core sees it. Neither clock runs backwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds of the Unix clock, for deadlines and what is stored.
    pub unix_ms: u64,
    /// Nanoseconds of `CLOCK_MONOTONIC`, for traces.
    pub mono_ns: u64,
}

/// A request from the front door. `W` is whom to answer.
#[derive(Debug)]
pub struct Submit<W> {
    /// What makes the request the same as an earlier one.
    pub identity: Identity,
    /// When the caller wants to hear.
    pub wait: Wait,
    /// Whom to answer.
    pub waiter: W,
    /// The event's data.
    pub payload: Vec<u8>,
    /// The media type of the payload; empty = unknown.
    pub content_type: Arc<str>,
    /// The W3C trace context; empty = none.
    pub traceparent: Arc<str>,
    /// CloudEvents attributes, without the prefix `ce-`.
    pub attributes: Arc<[(String, String)]>,
    /// When the front door received it (nanoseconds of `CLOCK_MONOTONIC`), if it is traced.
    pub traced_since_ns: Option<u64>,
    /// The caller wants to see the trace, in its answer.
    pub shows_trace: bool,
}

impl<W> Submit<W> {
    /// The caller will come back for it, so it hears nothing before that is durable.
    #[must_use]
    pub fn must_be_durable(&self) -> bool {
        self.wait == Wait::Durable || self.identity != Identity::Fresh
    }
}

/// Which request it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A new one, each time.
    Fresh,
    /// The one of this `Idempotency-Key`.
    Key(String),
    /// The CloudEvent with this source and id.
    Event {
        /// `ce-source`.
        source: String,
        /// `ce-id`.
        id: String,
    },
    /// The event of this dead letter, sent again.
    Redriven(MessageId),
}

/// When a caller wants to hear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// When the answer is there.
    Answer,
    /// As soon as the request is durable; it collects the answer later.
    Durable,
}

/// A message that was read from `LQ(HA)`.
#[derive(Debug)]
pub struct Local {
    /// The reader's number for it, ascending from 1; [`Command::Release`] gives it back.
    pub number: u64,
    /// This message.
    pub id: MessageId,
    /// The request that it belongs to.
    pub root: MessageId,
    /// The message whose handling made it.
    pub parent: MessageId,
    /// Index of the grain that handled the parent: the owner of the lane.
    pub from: usize,
    /// What it tells.
    pub news: News,
    /// The parent is finished.
    pub last: bool,
    /// When the parent's handling passed each step, if it was traced.
    pub stamps: Option<Stamps>,
    /// Payload, answer, or the reason in words.
    pub payload: Vec<u8>,
    /// The parent's own data, if its attempts are used up.
    pub event: Option<Vec<u8>>,
}

impl Local {
    /// The number of a message that lies in no lane: nothing is given back.
    pub(super) const NOT_READ: u64 = 0;
}

/// What a message in `LQ(HA)` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// A copy of what also went to the queue of the grain with this index.
    Output {
        /// Index of the grain.
        grain: usize,
    },
    /// The output of a last grain.
    Final,
    /// The parent could not be handled.
    Failed(Cause),
}

/// Why a message could not be handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The handler raised, panicked or returned an error.
    HandlerError,
    /// Its instance passed the time limit, in every attempt.
    Timeout,
    /// Its instance ended without an answer, in every attempt.
    Crashed,
    /// Its output is over the application's limit.
    PayloadTooLarge,
    /// Its output names no grain that may follow.
    BadRoute,
    /// Its sandbox ended, and no backup of it exists.
    SandboxLost,
    /// Some other reason, in words only.
    Other,
}

impl Cause {
    /// The name in problem bodies and records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Cause::HandlerError => "handler_error",
            Cause::Timeout => "timeout",
            Cause::Crashed => "crashed",
            Cause::PayloadTooLarge => "payload_too_large",
            Cause::BadRoute => "bad_route",
            Cause::SandboxLost => "sandbox_lost",
            Cause::Other => "other",
        }
    }

    /// The cause of that [`Cause::name`].
    #[must_use]
    pub fn from_name(name: &str) -> Cause {
        use Cause::{BadRoute, Crashed, HandlerError, PayloadTooLarge, SandboxLost, Timeout};
        [
            HandlerError,
            Timeout,
            Crashed,
            PayloadTooLarge,
            BadRoute,
            SandboxLost,
        ]
        .into_iter()
        .find(|cause| cause.name() == name)
        .unwrap_or(Cause::Other)
    }
}

/// What the core wants done, in this order.
#[derive(Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "a command is moved twice and dropped; a box would cost each message an allocation"
)]
pub enum Command<W> {
    /// Append to the global bus. Numbers ascend by one; report them with [`super::Core::durable`].
    Append {
        /// The number of this append.
        number: u64,
        /// What to append.
        record: Record,
    },
    /// Publish into a grain's queue; report [`super::Core::published`], [`super::Core::full`] or
    /// [`super::Core::undeliverable`].
    Publish(Delivery),
    /// The message of that number need not be kept in `LQ(HA)` any longer.
    Release(u64),
    /// A traced request has ended: tell whoever keeps traces.
    Traced(Path),
    /// Tell whoever waits.
    Answer {
        /// Whom.
        waiter: W,
        /// What.
        reply: Reply,
    },
}

/// A message on its way into a grain's queue.
#[derive(Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Index of the grain.
    pub grain: usize,
    /// The message.
    pub id: MessageId,
    /// The request that it belongs to.
    pub root: MessageId,
    /// The message whose handling made it.
    pub parent: MessageId,
    /// Somebody wants to know when each step happened.
    pub traced: bool,
    /// Its backup is still to be written, once it is published.
    pub(crate) fresh: bool,
    /// The event's data.
    pub payload: Vec<u8>,
}

/// What a caller hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The request is durable under this id.
    Accepted(MessageId),
    /// The workflow has ended.
    Done(Arc<Answer>),
    /// The answer is not there yet.
    Pending(MessageId),
    /// No request of this id is known, or its answer has expired.
    Unknown,
    /// The caller's deadline has passed; the work goes on.
    Late(MessageId),
    /// The queue is full; nothing was accepted.
    Busy,
    /// Nothing is accepted for now.
    Unavailable(Arc<str>),
}

impl Delivery {
    pub(super) fn message(&self) -> Message {
        Message {
            id: self.id,
            parent: self.parent,
            grain: self.grain,
        }
    }
}

/// The end of a workflow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The request.
    pub root: MessageId,
    /// What came out.
    pub outcome: Outcome,
    /// CloudEvents attributes of the request.
    pub attributes: Arc<[(String, String)]>,
    /// The W3C trace context of the request; empty = none.
    pub traceparent: Arc<str>,
    /// Times of each step, if the request was traced.
    pub trace: Option<Box<Trace>>,
}

/// What came out of a workflow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The last grain's output.
    Output {
        /// Its media type; empty = to be judged by its bytes.
        content_type: Arc<str>,
        /// Its bytes.
        body: Vec<u8>,
    },
    /// A grain failed.
    Failed(Failure),
}

/// Which grain failed and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The grain's name; empty if it is not known.
    pub grain: Arc<str>,
    /// The message that it could not handle.
    pub message: MessageId,
    /// The class of the reason.
    pub cause: Cause,
    /// The reason in words.
    pub detail: String,
}

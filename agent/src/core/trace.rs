//! When one event passed each step of its path (design, section 3).

use std::sync::Arc;

use sandpipe_abi::MessageId;
use serde::{Deserialize, Serialize};

use super::message::Cause;

/// Times that the instance took; nanoseconds of `CLOCK_MONOTONIC`, 0 = not measured. An instance
/// writes what it likes: they are for people, nothing is decided by them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamps {
    /// The instance took the message from its queue.
    pub taken_ns: u64,
    /// The handler began.
    pub started_ns: u64,
    /// The handler ended.
    pub ended_ns: u64,
    /// The output was about to be committed to `LQ(next)` and `LQ(HA)`.
    pub published_ns: u64,
    /// The number of the attempt, from 1; 0 = not said.
    #[serde(default)]
    pub attempt: u64,
    /// The sandbox started the instance's worker; 0 = not said.
    #[serde(default)]
    pub worker_started_ns: u64,
    /// That worker had loaded the handler.
    #[serde(default)]
    pub worker_loaded_ns: u64,
}

/// Times of one event's whole path; nanoseconds of `CLOCK_MONOTONIC`, 0 = not measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// Step 0: the front door had the whole request.
    pub received_ns: u64,
    /// Step 1: the agent's bus thread took it.
    pub taken_ns: u64,
    /// Step 2: it was published into the first grain's queue.
    pub published_ns: u64,
    /// Step 0 on the global bus: its backup was acknowledged.
    pub backed_up_ns: u64,
    /// Steps 3 to 8, one for each message that was handled, in the order in which the agent heard.
    pub hops: Vec<Hop>,
    /// The answer was known: an untraced caller hears it now, a traced one when all of it is
    /// durable.
    pub known_ns: u64,
    /// Steps 9 and 10: the result and the last `finished` were durable.
    pub finished_ns: u64,
    /// Step 11: the agent gave the answer to the front door.
    pub answered_ns: u64,
    /// The caller wants to see all this: its answer waits until everything is known.
    #[serde(skip)]
    pub shown: bool,
    /// Each message that another one made: itself, then that other one.
    #[serde(skip)]
    pub made: Vec<(MessageId, MessageId)>,
}

/// How one grain handled one message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    /// The grain.
    pub grain: String,
    /// What the instance measured (steps 3, 4 and 5).
    pub stamps: Stamps,
    /// Step 6a or 9: the agent read its output from `LQ(HA)`.
    pub read_ns: u64,
    /// Step 6b: the output's backup was acknowledged.
    pub backed_up_ns: u64,
    /// The message that was handled.
    #[serde(skip)]
    pub message: MessageId,
    /// Why it could not be handled.
    #[serde(skip)]
    pub failed: Option<Cause>,
}

/// The path of a request that has ended, for whoever keeps traces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// The request.
    pub root: MessageId,
    /// The W3C trace context that it came with; empty = none.
    pub traceparent: Arc<str>,
    /// When it passed what.
    pub trace: Box<Trace>,
    /// Why it failed; `None` = it ended with an output.
    pub failed: Option<Cause>,
}

impl Trace {
    /// Notes when a backup was acknowledged: the request's own, or of a message's outputs.
    pub(super) fn backed_up(&mut self, message: Option<MessageId>, now_ns: u64) {
        let place = match message {
            None => &mut self.backed_up_ns,
            Some(id) => match self.hops.iter_mut().find(|hop| hop.message == id) {
                Some(hop) => &mut hop.backed_up_ns,
                None => return,
            },
        };
        *place = now_ns;
    }
}

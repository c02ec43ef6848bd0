//! One request: its open messages, what came out so far, and who waits.

use std::sync::Arc;

use sandpipe_abi::MessageId;

use super::message::{Answer, Failure, Submit, Wait};
use super::trace::Trace;

/// A request that has not ended.
#[derive(Debug)]
pub(super) struct Root<W> {
    pub id: MessageId,
    /// Accepted and not finished.
    pub open: Vec<Open>,
    /// Finished. A message may be heard of as finished before its own copy is read, since the
    /// lanes of two grains are not ordered among each other.
    pub finished: Vec<MessageId>,
    /// Outputs of last grains; emptied into the answer.
    pub finals: Vec<Final>,
    /// Outputs that were stored for themselves, to be forgotten once the answer is stored.
    pub stored_finals: Vec<Message>,
    pub failure: Option<Failure>,
    pub waiters: Vec<Waiter<W>>,
    /// Somebody may come back for the answer: it is stored, and told only once it is durable.
    pub keep: bool,
    /// It was accepted, by this agent or on the global bus; otherwise it may be forgotten.
    pub promised: bool,
    pub partition: u32,
    pub deadline_ms: u64,
    pub content_type: Arc<str>,
    pub traceparent: Arc<str>,
    pub attributes: Arc<[(String, String)]>,
    pub trace: Option<Box<Trace>>,
    /// The answer, once it is known; the root stays until nothing is open and that is durable.
    pub answer: Option<Arc<Answer>>,
    /// Nothing is open and the answer is known: whatever is heard now is told again.
    pub ended: bool,
}

/// Which message it is and whom it is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message {
    pub id: MessageId,
    pub parent: MessageId,
    pub grain: usize,
}

/// A message that is accepted and not finished.
#[derive(Debug)]
pub(super) struct Open {
    pub id: MessageId,
    pub parent: MessageId,
    pub grain: usize,
    /// Only during a recovery: what has to be published again.
    pub payload: Option<Vec<u8>>,
}

impl Open {
    pub(super) fn new(id: MessageId, parent: MessageId, grain: usize) -> Open {
        Open {
            id,
            parent,
            grain,
            payload: None,
        }
    }

    pub(super) fn message(&self) -> Message {
        Message {
            id: self.id,
            parent: self.parent,
            grain: self.grain,
        }
    }
}

#[derive(Debug)]
pub(super) struct Final {
    pub id: MessageId,
    pub grain: usize,
    pub payload: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Waiter<W> {
    pub who: W,
    pub wait: Wait,
    pub deadline_ms: u64,
}

impl<W> Root<W> {
    /// A request that is known only by its messages.
    pub(super) fn adopted(id: MessageId, partition: u32, deadline_ms: u64) -> Root<W> {
        Root {
            id,
            open: Vec::with_capacity(1),
            finished: Vec::new(),
            finals: Vec::new(),
            stored_finals: Vec::new(),
            failure: None,
            waiters: Vec::new(),
            keep: true,
            promised: true,
            partition,
            deadline_ms,
            content_type: Arc::default(),
            traceparent: Arc::default(),
            attributes: Arc::default(),
            trace: None,
            answer: None,
            ended: false,
        }
    }

    /// A request from the front door, without its waiter and its payload.
    pub(super) fn submitted(
        id: MessageId,
        submit: &Submit<W>,
        partition: u32,
        deadline_ms: u64,
    ) -> Root<W> {
        let trace = submit.traced_since_ns.map(|received_ns| {
            Box::new(Trace {
                received_ns,
                shown: submit.shows_trace,
                ..Trace::default()
            })
        });
        Root {
            content_type: Arc::clone(&submit.content_type),
            traceparent: Arc::clone(&submit.traceparent),
            attributes: Arc::clone(&submit.attributes),
            trace,
            ..Root::adopted(id, partition, deadline_ms)
        }
    }

    /// Whether the caller wants to see its trace.
    pub(super) fn shows_trace(&self) -> bool {
        self.trace.as_ref().is_some_and(|trace| trace.shown)
    }

    pub(super) fn is_open(&self, id: MessageId) -> bool {
        self.open.iter().any(|open| open.id == id)
    }

    pub(super) fn is_finished(&self, id: MessageId) -> bool {
        self.finished.contains(&id)
    }

    /// Whether a message is known to be handled by another grain than `from`.
    pub(super) fn is_of_another(&self, id: MessageId, from: usize) -> bool {
        let open = self.open.iter().find(|open| open.id == id);
        open.is_some_and(|open| open.grain != from)
    }

    /// Counts a message as finished; what was known of it.
    pub(super) fn finish(&mut self, id: MessageId) -> Option<Open> {
        self.finished.push(id);
        let index = self.open.iter().position(|open| open.id == id)?;
        Some(self.open.swap_remove(index))
    }

    /// Callers whose deadline has passed.
    pub(super) fn take_late(&mut self, now_ms: u64) -> Vec<W> {
        let (late, rest) = std::mem::take(&mut self.waiters)
            .into_iter()
            .partition(|waiter: &Waiter<W>| waiter.deadline_ms <= now_ms);
        self.waiters = rest;
        late.into_iter().map(|waiter| waiter.who).collect()
    }

    /// Callers that wait for this kind of news.
    pub(super) fn take_waiting(&mut self, wait: Wait) -> Vec<W> {
        let (told, rest) = std::mem::take(&mut self.waiters)
            .into_iter()
            .partition(|waiter: &Waiter<W>| waiter.wait == wait);
        self.waiters = rest;
        told.into_iter().map(|waiter| waiter.who).collect()
    }
}

//! The window: what a bus has accepted and not yet acknowledged, and its limits.

use std::collections::VecDeque;
use std::time::Instant;

use crate::bus::{AppendError, Limits, Ticket, Unbacked};
use crate::record::{InvalidRecord, Record};

/// Counts the unacknowledged appends, in order.
#[derive(Debug)]
pub(crate) struct Window {
    batches: VecDeque<Batch>,
    messages: usize,
    bytes: usize,
    last: Ticket,
}

/// One append.
#[derive(Debug)]
struct Batch {
    ticket: Ticket,
    messages: usize,
    bytes: usize,
    /// Records of it that are not durable yet.
    #[cfg(feature = "kafka")]
    outstanding: usize,
    since: Instant,
}

impl Window {
    pub(crate) fn new() -> Window {
        Window {
            batches: VecDeque::new(),
            messages: 0,
            bytes: 0,
            last: Ticket::default(),
        }
    }

    /// Whether an append of this size may enter. An oversized one may if it is alone.
    pub(crate) fn admit(
        &self,
        limits: &Limits,
        messages: usize,
        bytes: usize,
    ) -> Result<(), AppendError> {
        let fits = self.messages + messages <= limits.window_messages
            && self.bytes + bytes <= limits.window_bytes;
        if fits || self.messages == 0 {
            return Ok(());
        }
        Err(AppendError::Full {
            messages: self.messages,
            bytes: self.bytes,
        })
    }

    /// Lets an append in.
    pub(crate) fn enter(&mut self, messages: usize, bytes: usize) -> Ticket {
        debug_assert!(messages > 0, "an empty append has nothing to wait for");
        self.last = Ticket(self.last.0 + 1);
        self.messages += messages;
        self.bytes += bytes;
        self.batches.push_back(Batch {
            ticket: self.last,
            messages,
            bytes,
            #[cfg(feature = "kafka")]
            outstanding: messages,
            since: Instant::now(),
        });
        self.last
    }

    /// All appends up to `ticket` are durable.
    pub(crate) fn acknowledge_through(&mut self, ticket: Ticket) {
        while self
            .batches
            .front()
            .is_some_and(|batch| batch.ticket <= ticket)
        {
            self.pop();
        }
    }

    /// One record of `ticket` is durable; returns the newest ticket up to which all are.
    #[cfg(feature = "kafka")]
    pub(crate) fn acknowledge_one(&mut self, ticket: Ticket) -> Ticket {
        let index = self
            .batches
            .binary_search_by_key(&ticket, |batch| batch.ticket);
        let batch = &mut self.batches[index.expect("a record is acknowledged once")];
        batch.outstanding -= 1;
        while self
            .batches
            .front()
            .is_some_and(|batch| batch.outstanding == 0)
        {
            self.pop();
        }
        match self.batches.front() {
            Some(oldest) => Ticket(oldest.ticket.0 - 1),
            None => self.last,
        }
    }

    pub(crate) fn last(&self) -> Ticket {
        self.last
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    pub(crate) fn unbacked(&self) -> Unbacked {
        Unbacked {
            messages: self.messages,
            bytes: self.bytes,
            oldest_age: self
                .batches
                .front()
                .map(|batch| batch.since.elapsed())
                .unwrap_or_default(),
        }
    }

    fn pop(&mut self) {
        if let Some(batch) = self.batches.pop_front() {
            self.messages -= batch.messages;
            self.bytes -= batch.bytes;
        }
    }
}

/// Checks an append before anything of it is taken; returns its encoded size in bytes.
pub(crate) fn check(records: &[Record], limits: &Limits) -> Result<usize, InvalidRecord> {
    let mut total = 0;
    for record in records {
        record.check(limits.partitions)?;
        let bytes = record.encoded_bytes();
        if bytes > limits.record_bytes {
            return Err(InvalidRecord::TooLarge {
                id: record.id,
                bytes,
                limit_bytes: limits.record_bytes,
            });
        }
        total += bytes;
    }
    Ok(total)
}

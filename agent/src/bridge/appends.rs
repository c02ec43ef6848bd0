//! Appends on their way to the global bus: batched, numbered, never dropped.

use std::collections::VecDeque;

use sandpipe_global_bus::{AppendError, GlobalBus, InvalidRecord, Record, Ticket};

/// Records that may wait for room in the global bus's window before `LQ(HA)` is read no further.
const WAITING_MAX: usize = 1024;

/// The order of appends, and which of them are acknowledged.
#[derive(Debug, Default)]
pub(super) struct Appends {
    /// Not yet accepted by the bus.
    waiting: Vec<Record>,
    /// The number of the newest record in `waiting`.
    newest: u64,
    /// Accepted batches, each with the number of its newest record.
    accepted: VecDeque<(Ticket, u64)>,
}

impl Appends {
    /// Queues a record; numbers ascend.
    pub(super) fn push(&mut self, number: u64, record: Record) {
        self.newest = number;
        self.waiting.push(record);
    }

    /// Gives the bus what waits.
    ///
    /// # Errors
    /// The bus's; everything still waits then.
    pub(super) fn flush(&mut self, bus: &mut dyn GlobalBus) -> Result<bool, AppendError> {
        if self.waiting.is_empty() {
            return Ok(false);
        }
        let ticket = bus.append(&mut self.waiting)?;
        self.accepted.push_back((ticket, self.newest));
        Ok(true)
    }

    /// The number up to which all is durable, if that has moved.
    pub(super) fn acknowledged(&mut self, bus: &dyn GlobalBus) -> Option<u64> {
        if self.accepted.is_empty() {
            return None;
        }
        let ticket = bus.acknowledged();
        let mut durable = None;
        while let Some(&(accepted, number)) = self.accepted.front()
            && accepted <= ticket
        {
            durable = Some(number);
            self.accepted.pop_front();
        }
        durable
    }

    /// Whether so much waits that no more should be read.
    pub(super) fn is_congested(&self) -> bool {
        self.waiting.len() >= WAITING_MAX
    }

    /// Takes out the records that the bus can never take, so that they hold up nobody: neither the
    /// others, nor who waits until they are durable.
    pub(super) fn take_invalid(
        &mut self,
        error: &InvalidRecord,
        bus: &dyn GlobalBus,
        partitions: u32,
    ) -> Vec<Record> {
        let too_large = match error {
            InvalidRecord::TooLarge { id, .. } => Some(*id),
            _ => None,
        };
        let invalid = self
            .waiting
            .extract_if(.., |record| {
                too_large == Some(record.id) || record.check(partitions).is_err()
            })
            .collect();
        if self.waiting.is_empty() {
            let before = self.accepted.back().map(|&(ticket, _)| ticket);
            let ticket = before.unwrap_or_else(|| bus.acknowledged());
            self.accepted.push_back((ticket, self.newest));
        }
        invalid
    }
}

//! The side of a bus that reads what others write: a thread of the agent has it to itself.

use std::sync::Arc;
use std::time::Duration;

use crate::bus::{ReplayError, Replayed};
use crate::owners::OwnerRecord;
use crate::record::Record;

/// One topic partition to follow: requests that other hosts' front doors put into an index, or
/// answers that other hosts write.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Follow {
    /// The grain, or [`RESULTS`](crate::RESULTS).
    pub grain: Arc<str>,
    /// The partition index.
    pub index: u32,
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "it is handed over once; a box would cost each record an allocation"
)]
pub enum Read {
    /// A record of the ownership log.
    Owner(OwnerRecord),
    /// A record of a topic partition that is followed: of a newer epoch than every fence before
    /// it, or of epoch 0. The reader's own agent's records are among them.
    Record(Record),
}

/// Reads an application's part of a global bus. Dropping it ends its threads and connections.
///
/// The ownership log is read from its beginning, in order, without being asked for.
pub trait BusReader: Send {
    /// Hands what is new to `visitor`, waiting for the first of it up to `timeout`. Order: that of
    /// each topic partition. [`caught_up`](BusReader::caught_up) says how far the ownership log
    /// has been read.
    ///
    /// # Errors
    /// [`ReplayError`]: reading can be tried again; nothing is handed out twice or left out.
    fn next(&mut self, timeout: Duration, visitor: &mut dyn FnMut(Read))
    -> Result<(), ReplayError>;

    /// Whether the ownership log has been handed out as far as it went when the reader was made.
    fn caught_up(&self) -> bool;

    /// Follows a topic partition from its present end on, or if an earlier replay of its index by
    /// this reader ended before that, from there on. Idempotent.
    ///
    /// # Errors
    /// [`ReplayError`]: the end cannot be read now.
    fn follow(&mut self, what: Follow) -> Result<(), ReplayError>;

    /// Follows it no more. Idempotent.
    fn unfollow(&mut self, what: &Follow);

    /// Hands each message of the index that is not finished to `visitor`, as its newest record and
    /// in the order of those, and each answer that has not expired. Reads from the committed marks
    /// to the present end, folding by id and dropping what is fenced, whatever compaction has done
    /// so far. Blocks for as long as that takes.
    ///
    /// # Errors
    /// [`ReplayError`]; the visitor may have been called before.
    fn replay(
        &mut self,
        index: u32,
        visitor: &mut dyn FnMut(Record),
    ) -> Result<Replayed, ReplayError>;
}

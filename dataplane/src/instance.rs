//! What one instance slot does: loan, stage, commit.
//!
//! Everything that a commit writes lies in the instance's own family segment, so one cache line
//! holds the whole intent and one store makes it a fact. The order of stores is the protocol; see
//! [`Instance::commit`]. [`crate::recover`] carries out what a dead instance had committed.

use core::mem::{offset_of, size_of};

use sandpipe_abi::layout::{
    ACK_CURSOR, ACK_ENTRY, CommitLine, INLINE_MAX, ITEMS_MAX, InFlightEntry, InstanceSlot,
    LaneHead, SlotState,
};

use crate::bell::Bell;
use crate::bus::Bus;
use crate::chunk::{Holder, Loan, LoanError, Pool, join_item};
use crate::counters::{Count, Tally};
use crate::lane::LaneWriter;
use crate::memory::Memory;
use crate::message::{Kind, MessageHeader, TraceStamps};
use crate::refusal::Violation;
use crate::sync::{AtomicU64, Ordering, fence, full_fence, kill_point};
use crate::topology::{FamilyIndex, SlotIndex};

/// What a commit acknowledges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// `ACK_*` kind and index, as the commit record keeps it; 0: nothing.
    pub(crate) at: u64,
    /// Key of the entry, or the cursor's new value.
    pub(crate) key: u64,
    /// Offset of the word to change.
    pub(crate) word_at: usize,
}

impl Ack {
    /// Acknowledges nothing: the first message of a workflow, or a notice.
    pub const NOTHING: Ack = Ack {
        at: 0,
        key: 0,
        word_at: 0,
    };
}

/// Payload to stage.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    /// At most 64 bytes, copied into the lane slot.
    Inline(&'a [u8]),
    /// A chunk on loan, written before it is staged; the same loan may be staged for several
    /// queues.
    Loaned(&'a Loan),
}

/// Why a message could not be staged. Nothing is visible, the rest of the commit stays staged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StageError {
    /// The lane has no free slot: wait until the consumer has taken something.
    #[error("the lane to queue {0} is full; try again when its consumer has caught up")]
    Full(u16),
    /// The family does not publish to this queue.
    #[error("this family has no lane to queue {0}; name it as a target in the topology")]
    NoLane(u16),
    /// One commit makes at most 16 lane slots visible.
    #[error("one commit has at most {ITEMS_MAX} lane slots; split the outputs")]
    TooManyItems,
    /// The consumer's words cannot be believed; nothing is published to it by this process.
    #[error("queue {0} is not published to: its consumer wrote {1}")]
    Lied(u16, Violation),
    /// An inline payload has at most 64 bytes.
    #[error("{0} bytes do not fit into a lane slot; loan a chunk")]
    NotInline(usize),
}

/// One staged lane slot.
#[derive(Clone, Copy, Debug)]
struct Item {
    target: usize,
    position: u64,
    /// Whether its consumer is woken for it.
    rings: bool,
}

/// What leads to one queue.
#[derive(Debug)]
struct Outlet<M> {
    queue: FamilyIndex,
    lane: LaneWriter<M>,
    bell: Bell<M>,
}

/// One instance slot, held by one process. Not shared between threads.
#[derive(Debug)]
pub struct Instance<M> {
    own: M,
    slot: SlotIndex,
    slot_at: usize,
    outlets: Vec<Outlet<M>>,
    holders: Vec<Holder<M>>,
    pool: Pool<M>,
    sequence: u64,
    items: Vec<Item>,
    staged_chunks: Vec<u32>,
    staged_bytes: u64,
    tally: Tally<M>,
}

impl<M: Memory> Instance<M> {
    pub(crate) fn new(bus: &Bus<M>, slot: SlotIndex) -> Instance<M> {
        let own = bus.own_memory().clone();
        let slot_at = bus.own_layout().slot_at(slot);
        let spec = bus.topology().family(bus.family());
        let sequence = own
            .word(slot_at + offset_of!(InstanceSlot, commit))
            .load(Ordering::Relaxed);
        let outlets = spec
            .targets
            .iter()
            .enumerate()
            .map(|(index, target)| Outlet {
                queue: target.queue,
                lane: bus.lane_writer(slot, index),
                bell: bus.bell(target.queue),
            });
        Instance {
            slot,
            slot_at,
            outlets: outlets.collect(),
            holders: bus.holders(),
            pool: Pool::new(own.clone(), bus.layouts(), bus.family(), slot),
            own,
            sequence,
            items: Vec::with_capacity(ITEMS_MAX),
            staged_chunks: Vec::with_capacity(ITEMS_MAX),
            staged_bytes: 0,
            tally: bus.tally(slot),
        }
    }

    /// Which slot this is.
    #[must_use]
    pub fn slot(&self) -> SlotIndex {
        self.slot
    }

    /// How many commits of this slot have become facts, over all its holders.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.sequence
    }

    /// Takes a chunk for a payload of `len` bytes: a few loads and one locked exchange, no system
    /// call, does not block. If the caller dies, recovery of its slot gives the chunk back.
    ///
    /// # Errors
    /// [`LoanError::TooLarge`]; [`LoanError::Exhausted`] until a consumer releases a message.
    #[inline]
    pub fn loan(&mut self, len: usize) -> Result<Loan, LoanError> {
        let loan = self.pool.loan(len as u64, &self.holders);
        if let Err(LoanError::Exhausted { .. }) = loan {
            self.tally.add(Count::Exhausted, 1);
        }
        loan
    }

    /// Copies `bytes` into a loan at `at`.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn write(&self, loan: &Loan, at: usize, bytes: &[u8]) {
        assert!(
            at.is_multiple_of(8),
            "a loan is written from a multiple of 8 bytes, not {at}"
        );
        assert!(
            at + bytes.len() <= loan.len(),
            "{} bytes at {at} do not fit",
            bytes.len()
        );
        self.own.copy_in(loan.data_at + at, bytes);
    }

    /// The family's memory, for in-place writing through [`crate::Mapping::loan_bytes`].
    #[must_use]
    pub fn memory(&self) -> &M {
        &self.own
    }

    /// Gives an unpublished loan back.
    pub fn give_back(&mut self, loan: Loan) {
        self.pool.give_back(loan.chunk);
    }

    /// Chunks of the family that are (on loan, published and not yet released).
    #[must_use]
    pub fn chunks_in_use(&self) -> (usize, usize) {
        self.pool.in_use(&self.holders)
    }

    /// Writes a message behind the tail of its lane, invisible until the commit. Does not block.
    ///
    /// Stage a message's backup copy for the agent before the message itself.
    ///
    /// # Errors
    /// [`StageError`]; call [`Instance::discard`] to drop what was staged before.
    #[inline(always)]
    pub fn stage(
        &mut self,
        queue: FamilyIndex,
        header: &MessageHeader,
        payload: Payload<'_>,
        trace: TraceStamps,
    ) -> Result<(), StageError> {
        let target = self.outlets.iter().position(|outlet| outlet.queue == queue);
        let target = target.ok_or(StageError::NoLane(queue.0))?;
        if self.items.len() == ITEMS_MAX {
            return Err(StageError::TooManyItems);
        }
        let Outlet { lane, bell, .. } = &mut self.outlets[target];
        match lane.has_room() {
            Ok(true) => {}
            Ok(false) => {
                // Whoever sleeps over a full lane must hear of it.
                bell.ring_if_parked();
                self.tally.add(Count::Full, 1);
                return Err(StageError::Full(queue.0));
            }
            Err(violation) => return Err(StageError::Lied(queue.0, violation)),
        }
        let (len, position) = match payload {
            Payload::Inline(bytes) if bytes.len() > INLINE_MAX => {
                return Err(StageError::NotInline(bytes.len()));
            }
            Payload::Inline(bytes) => {
                let position = lane.stage(|slot| header.write_inline(slot, bytes));
                (bytes.len() as u32, position)
            }
            Payload::Loaned(loan) => {
                let beside = match header.traced {
                    true => trace.to_words(),
                    false => self.pool.head(loan),
                };
                let position =
                    lane.stage(|slot| header.write_chunk(slot, loan.len, loan.chunk, &beside));
                (loan.len, position)
            }
        };
        if let Payload::Loaned(loan) = payload {
            let earlier = self
                .staged_chunks
                .iter()
                .filter(|&&chunk| chunk == loan.chunk)
                .count();
            let item = join_item(target, position);
            self.pool.add_holder(loan, earlier, item, self.sequence + 1);
            self.staged_chunks.push(loan.chunk);
        }
        // A backup copy is no errand: each wake would cost this process microseconds, and the agent
        // looks by itself every few milliseconds while requests are open.
        self.staged_bytes += u64::from(len);
        let rings = queue != FamilyIndex::AGENT || header.kind != Kind::Event;
        self.items.push(Item {
            target,
            position,
            rings,
        });
        Ok(())
    }

    /// Forgets everything that was staged; loans stay with the caller.
    pub fn discard(&mut self) {
        self.items.clear();
        self.staged_bytes = 0;
        for chunk in self.staged_chunks.drain(..) {
            self.pool.forget_holders(chunk);
        }
        let lanes = self.outlets.iter_mut().map(|outlet| &mut outlet.lane);
        lanes.for_each(LaneWriter::discard_staged);
    }

    /// Makes everything staged and the acknowledgement of `ack` one fact, then carries it out.
    ///
    /// No system call while the receivers are awake; one wake for each message whose consumer is
    /// parked. The agent is woken for answers and failures, not for backup copies of events. If the
    /// caller dies before the commit word, nothing happened and its input is delivered again; if
    /// it dies after, recovery of its slot carries out the rest.
    #[inline(always)]
    pub fn commit(&mut self, ack: Ack) {
        self.commit_words(ack.at, ack.key, ack.word_at);
    }

    /// Word by word: whoever hands an `Ack` on has just written it so, and a wider copy would wait
    /// for those stores.
    #[inline(never)]
    fn commit_words(&mut self, at: u64, key: u64, word_at: usize) {
        let ack = Ack { at, key, word_at };
        self.sequence += 1;
        kill_point();
        self.write_intent(ack);
        kill_point();
        // The one word: from here on everything below happens, by this process or by recovery.
        // SYNC(fact): Release: who sees the fact sees its record.
        self.line()[offset_of!(CommitLine, commit) / 8].store(self.sequence, Ordering::Release);
        kill_point();
        if !self.staged_chunks.is_empty() {
            self.publish_chunks();
        }
        for &Item { target, .. } in &self.items {
            self.outlets[target].lane.publish_next();
        }
        self.acknowledge(ack);
        kill_point();
        // SYNC(park): the stamps above come before the look at the parked count below.
        full_fence();
        // The next grain first, the agent after it: each wake costs this process microseconds.
        for item in self.items.iter().rev().filter(|item| item.rings) {
            self.outlets[item.target].bell.ring_if_parked();
        }
        // Last: nobody waits for it.
        self.tally.add(Count::Bytes, self.staged_bytes);
        self.staged_bytes = 0;
        self.items.clear();
    }

    fn publish_chunks(&mut self) {
        for &chunk in &self.staged_chunks {
            self.pool.publish(chunk);
        }
        self.staged_chunks.clear();
    }

    /// Writes the record of the commit under a new sequence number. The number goes first, so that
    /// the previous record is void before it is overwritten.
    fn write_intent(&self, ack: Ack) {
        let line = self.line();
        let set = |field: usize, value: u64| line[field / 8].store(value, Ordering::Relaxed);
        set(offset_of!(CommitLine, seq), self.sequence);
        // SYNC(intent): keeps the number in front of the items; recovery reads after the death.
        fence(Ordering::Release);
        kill_point();
        set(offset_of!(CommitLine, count), self.items.len() as u64);
        set(offset_of!(CommitLine, ack_at), ack.at);
        set(offset_of!(CommitLine, ack_key), ack.key);
        for (index, item) in self.items.iter().enumerate() {
            let &Item {
                target, position, ..
            } = item;
            self.own
                .word(item_at(self.slot_at, index))
                .store(join_item(target, position), Ordering::Relaxed);
        }
    }

    /// The commit record, by words.
    #[inline(always)]
    fn line(&self) -> &[AtomicU64; size_of::<CommitLine>() / 8] {
        self.own
            .array(self.slot_at + offset_of!(InstanceSlot, commit))
    }

    pub(crate) fn acknowledge(&self, ack: Ack) {
        match ack.at & 0xff << 56 {
            ACK_ENTRY => {
                // SYNC(outputs): Release: no acknowledgement is seen without the outputs.
                // SYNC(key): And it pairs with the chunk owner's Acquire: our reads are over.
                self.own.word(ack.word_at).store(0, Ordering::Release);
            }
            ACK_CURSOR => {
                // SYNC(outputs): Release: no acknowledgement is seen without the outputs.
                self.own.word(ack.word_at).store(ack.key, Ordering::Release);
            }
            _ => {}
        }
    }

    /// When this slot's holder took its message, for the watchdog of time limits; 0: none.
    pub fn set_started(&self, ns: u64) {
        let at = self.slot_at + offset_of!(InstanceSlot, state) + offset_of!(SlotState, started_ns);
        self.own.word(at).store(ns, Ordering::Relaxed);
    }
}

/// Offset of item `index` of a slot's commit record.
pub(crate) fn item_at(slot_at: usize, index: usize) -> usize {
    let line = slot_at + offset_of!(InstanceSlot, commit) + offset_of!(CommitLine, item);
    match index.checked_sub(3) {
        None => line + index * 8,
        Some(more) => slot_at + offset_of!(InstanceSlot, more_items) + more * 8,
    }
}

/// Acknowledges an in-flight entry.
pub(crate) fn ack_of_entry(entry: usize, entry_at: usize, key: u64) -> Ack {
    let word_at = entry_at + offset_of!(InFlightEntry, key);
    Ack {
        at: ACK_ENTRY | entry as u64,
        key,
        word_at,
    }
}

/// Acknowledges a position of an exclusively received lane.
pub(crate) fn ack_of_cursor(lane: usize, head_at: usize, position: u64) -> Ack {
    let word_at = head_at + offset_of!(LaneHead, cursor);
    Ack {
        at: ACK_CURSOR | lane as u64,
        key: position + 1,
        word_at,
    }
}

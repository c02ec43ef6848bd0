//! The payload pool of one family: loan, write in place, publish, and back when every holder is
//! done.
//!
//! A chunk has no reference count, since no recovery can repair one. Its descriptor names the lane
//! slots that refer to it, and each consumer says in its own memory whether it still holds such a
//! message: not yet past the lane's head, or in an entry of its in-flight table. A chunk is free
//! when nobody says so any more.

use core::mem::{offset_of, size_of};
use std::sync::Arc;

use sandpipe_abi::layout::{ChunkDescriptor, HEAD_MAX, ITEMS_MAX, InFlightEntry, LaneHead};

use crate::family_layout::{ChunkRange, FamilyLayout};
use crate::memory::Memory;
use crate::message::Head;
use crate::sync::Ordering;
use crate::topology::{FamilyIndex, SlotIndex};

const PHASE_FREE: u64 = 0;
const PHASE_LOANED: u64 = 1;
const PHASE_PUBLISHED: u64 = 2;

/// The state word of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    generation: u32,
    slot: SlotIndex,
    phase: u64,
}

impl State {
    fn from_word(word: u64) -> State {
        let slot = SlotIndex((word >> 8 & 0xffff) as u16);
        State {
            generation: (word >> 32) as u32,
            slot,
            phase: word & 0xff,
        }
    }

    fn to_word(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.slot.0) << 8 | self.phase
    }
}

/// Why no chunk could be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoanError {
    /// The payload is larger than the largest chunk.
    #[error("a payload of {len} bytes; the largest chunk of this family has {max}")]
    TooLarge {
        /// Bytes asked for.
        len: u64,
        /// Bytes of the largest chunk.
        max: u64,
    },
    /// Every chunk that is large enough is held by somebody: try again after a release.
    #[error("all chunks for {len} bytes are held; wait until a consumer releases one")]
    Exhausted {
        /// Bytes asked for.
        len: u64,
    },
}

/// A chunk on loan: this process alone writes it until it is published or given back.
#[derive(Debug, PartialEq, Eq)]
pub struct Loan {
    pub(crate) chunk: u32,
    pub(crate) data_at: usize,
    pub(crate) len: u32,
}

impl Loan {
    /// Bytes of the payload.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether the payload is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the payload lies in the family's segment, bytes.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.data_at
    }
}

/// Where a consumer's words are, as the owner of chunks needs them.
#[derive(Clone, Debug)]
pub(crate) struct Holder<M> {
    /// The consumer's segment, once it is mapped.
    pub(crate) segment: Option<M>,
    pub(crate) layout: Arc<Vec<FamilyLayout>>,
    pub(crate) queue: FamilyIndex,
    /// Index of this family's slot 0 among the consumer's incoming lanes.
    pub(crate) first_lane: usize,
    /// Instance slots of this family.
    pub(crate) slots: u16,
}

impl<M: Memory> Holder<M> {
    /// Whether the consumer still holds the message at a position of the lane of `slot`. A slot
    /// that the publisher does not have holds nothing: others read its page too (audit).
    fn holds(&self, slot: SlotIndex, position: u64) -> bool {
        if slot.0 >= self.slots {
            return false;
        }
        let Some(segment) = &self.segment else {
            return true;
        };
        let layout = &self.layout[self.queue.index()];
        let lane = self.first_lane + usize::from(slot.0);
        let head_at = layout.lanes[lane].head_at + offset_of!(LaneHead, head);
        // SYNC(release): Acquire pairs with the consumer's Release of its head: an entry that
        // holds the message was written before the head passed it.
        if segment.word(head_at).load(Ordering::Acquire) <= position {
            return true;
        }
        let key = entry_key(lane, position);
        (0..layout.entries).any(|entry| {
            let at = layout.entry_at(entry) + offset_of!(InFlightEntry, key);
            // SYNC(key): Acquire pairs with the Release that clears the key: the consumer's reads
            // of the chunk are over.
            segment.word(at).load(Ordering::Acquire) == key
        })
    }
}

/// The key of an in-flight entry: which message of which lane it holds.
pub(crate) fn entry_key(lane: usize, position: u64) -> u64 {
    (lane as u64) << 48 | (position + 1)
}

/// The pool as one instance slot uses it.
#[derive(Clone, Debug)]
pub(crate) struct Pool<M> {
    own: M,
    layouts: Arc<Vec<FamilyLayout>>,
    family: FamilyIndex,
    slot: SlotIndex,
    descriptors_at: usize,
    /// The classes, smallest first, and where to look first in each.
    classes: Vec<(ChunkRange, u32)>,
}

impl<M: Memory> Pool<M> {
    pub(crate) fn new(
        own: M,
        layouts: Arc<Vec<FamilyLayout>>,
        family: FamilyIndex,
        slot: SlotIndex,
    ) -> Pool<M> {
        let layout = &layouts[family.index()];
        let descriptors_at = layout.descriptors_at;
        let ranges = layout.chunks.iter();
        let classes = ranges.map(|&range| (range, u32::from(slot.0))).collect();
        Pool {
            own,
            layouts,
            family,
            slot,
            descriptors_at,
            classes,
        }
    }

    pub(crate) fn memory(&self) -> &M {
        &self.own
    }

    pub(crate) fn layout(&self) -> &FamilyLayout {
        &self.layouts[self.family.index()]
    }

    /// Offset of a chunk's descriptor; that of a chunk which does not exist may lie anywhere in the
    /// own segment, or outside, which panics.
    #[inline]
    fn descriptor(&self, chunk: u32) -> usize {
        self.descriptors_at + chunk as usize * size_of::<ChunkDescriptor>()
    }

    /// Takes a chunk of at least `len` bytes. If the caller dies, recovery of its slot frees it.
    #[inline(always)]
    pub(crate) fn loan(&mut self, len: u64, holders: &[Holder<M>]) -> Result<Loan, LoanError> {
        let fits = |(range, _): &(ChunkRange, u32)| range.bytes >= len;
        let Some(class) = self.classes.iter().position(fits) else {
            let max = self.classes.last().map_or(0, |(range, _)| range.bytes);
            return Err(LoanError::TooLarge { len, max });
        };
        let (range, index) = self.classes[class];
        if index < range.count && self.take(range.first + index) {
            return Ok(self.lend(class, index, len));
        }
        match self.search(class, holders) {
            Some((class, index)) => Ok(self.lend(class, index, len)),
            None => self
                .loan_extended(len, holders)
                .ok_or(LoanError::Exhausted { len }),
        }
    }

    /// Takes the first free chunk of the class and those above it: class and index.
    #[cold]
    #[inline(never)]
    fn search(&self, smallest: usize, holders: &[Holder<M>]) -> Option<(usize, u32)> {
        (smallest..self.classes.len()).find_map(|class| {
            let (range, start) = self.classes[class];
            let found = self.take_any(&range, start).or_else(|| {
                // All at once: the consumers' words are foreign lines, dear to look at.
                self.reclaim(&range, holders);
                self.take_any(&range, start)
            });
            Some((class, found?))
        })
    }

    /// Looks behind the taken chunk first, the next time.
    #[inline(always)]
    fn lend(&mut self, class: usize, index: u32, len: u64) -> Loan {
        let (range, next) = &mut self.classes[class];
        *next = index + 1;
        Loan {
            chunk: range.first + index,
            data_at: range.data_at + index as usize * range.bytes as usize,
            len: len as u32,
        }
    }

    /// Takes the first free chunk of a range from `start` on, round to it; its index in the range.
    pub(crate) fn take_any(&self, range: &ChunkRange, start: u32) -> Option<u32> {
        let start = start.min(range.count);
        let mut indices = (start..range.count).chain(0..start);
        indices.find(|index| self.take(range.first + index))
    }

    #[inline(always)]
    fn take(&self, chunk: u32) -> bool {
        let state = self.state(chunk);
        let taken = state.phase == PHASE_FREE && self.change(chunk, state, self.slot, PHASE_LOANED);
        if taken {
            let at = self.descriptor(chunk);
            self.store(at + offset_of!(ChunkDescriptor, commit_seq), 0);
        }
        taken
    }

    /// Frees every chunk of a class that all its holders have released.
    pub(crate) fn reclaim(&self, range: &ChunkRange, holders: &[Holder<M>]) {
        for chunk in range.first..range.first + range.count {
            let state = self.state(chunk);
            if state.phase == PHASE_PUBLISHED && !self.is_held(chunk, state, holders) {
                self.change(chunk, state, state.slot, PHASE_FREE);
            }
        }
    }

    /// Whether any of the lane slots that name a published chunk is still held.
    fn is_held(&self, chunk: u32, state: State, holders: &[Holder<M>]) -> bool {
        let at = self.descriptor(chunk);
        let count = self.word(at + offset_of!(ChunkDescriptor, count));
        (0..count.min(ITEMS_MAX as u64) as usize).any(|index| {
            let word = self.word(at + offset_of!(ChunkDescriptor, holder) + index * 8);
            let (target, position) = split_item(word);
            holders
                .get(target)
                .is_some_and(|holder| holder.holds(state.slot, position))
        })
    }

    /// The generation makes the exchange fail if the chunk has changed hands since.
    fn change(&self, chunk: u32, seen: State, slot: SlotIndex, phase: u64) -> bool {
        let generation = seen.generation.wrapping_add(1);
        let next = State {
            generation,
            slot,
            phase,
        };
        let at = self.descriptor(chunk) + offset_of!(ChunkDescriptor, state);
        let (seen, next) = (seen.to_word(), next.to_word());
        let word = self.own.word(at);
        word.compare_exchange(seen, next, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// What the payload of a loan begins with.
    #[inline(always)]
    pub(crate) fn head(&self, loan: &Loan) -> Head {
        if cfg!(loom) {
            return [0; HEAD_MAX / 8]; // the models' chunks have no bytes to spare
        }
        let words = self.own.array::<{ HEAD_MAX / 8 }>(loan.data_at);
        core::array::from_fn(|index| words[index].load(Ordering::Relaxed))
    }

    /// Names a lane slot as a holder, for the commit `seq` that is being staged.
    pub(crate) fn add_holder(&self, loan: &Loan, index: usize, item: u64, seq: u64) {
        let at = self.descriptor(loan.chunk);
        self.store(at + offset_of!(ChunkDescriptor, holder) + index * 8, item);
        self.store(at + offset_of!(ChunkDescriptor, count), index as u64 + 1);
        self.store(at + offset_of!(ChunkDescriptor, len), u64::from(loan.len));
        self.store(at + offset_of!(ChunkDescriptor, commit_seq), seq);
    }

    /// Takes back what [`Pool::add_holder`] named for a commit that is not made.
    pub(crate) fn forget_holders(&self, chunk: u32) {
        let at = self.descriptor(chunk);
        self.store(at + offset_of!(ChunkDescriptor, commit_seq), 0);
    }

    /// After the commit word: the chunk belongs to its holders.
    pub(crate) fn publish(&self, chunk: u32) {
        self.set_phase(chunk, PHASE_PUBLISHED);
    }

    /// Gives an unpublished chunk back.
    pub(crate) fn give_back(&self, chunk: u32) {
        self.set_phase(chunk, PHASE_FREE);
    }

    fn set_phase(&self, chunk: u32, phase: u64) {
        let at = self.descriptor(chunk) + offset_of!(ChunkDescriptor, state);
        let state = State {
            phase,
            ..self.state(chunk)
        };
        self.own.word(at).store(state.to_word(), Ordering::Release);
    }

    /// Recovery of a dead slot: a loan whose commit became a fact is published, any other is free.
    /// Returns how many chunks came back.
    pub(crate) fn recover(&self, committed: Option<u64>) -> usize {
        let mut freed = 0;
        for chunk in 0..self.layout().chunk_count() {
            let state = self.state(chunk);
            if state.phase != PHASE_LOANED || state.slot != self.slot {
                continue;
            }
            let at = self.descriptor(chunk) + offset_of!(ChunkDescriptor, commit_seq);
            if committed.is_some() && committed == Some(self.word(at)) {
                self.publish(chunk);
            } else {
                self.give_back(chunk);
                freed += 1;
            }
        }
        freed
    }

    /// Chunks that are (on loan, published and still held by somebody). Changes nothing.
    pub(crate) fn in_use(&self, holders: &[Holder<M>]) -> (usize, usize) {
        self.in_use_of(0..self.layout().chunk_count(), holders)
    }

    /// [`Pool::in_use`] of some chunks.
    pub(crate) fn in_use_of(
        &self,
        chunks: core::ops::Range<u32>,
        holders: &[Holder<M>],
    ) -> (usize, usize) {
        let (mut loaned, mut held) = (0, 0);
        for chunk in chunks {
            let state = self.state(chunk);
            match state.phase {
                PHASE_LOANED => loaned += 1,
                PHASE_PUBLISHED => held += usize::from(self.is_held(chunk, state, holders)),
                _ => {}
            }
        }
        (loaned, held)
    }

    fn state(&self, chunk: u32) -> State {
        let at = self.descriptor(chunk) + offset_of!(ChunkDescriptor, state);
        State::from_word(self.own.word(at).load(Ordering::Acquire))
    }

    fn word(&self, at: usize) -> u64 {
        self.own.word(at).load(Ordering::Relaxed)
    }

    fn store(&self, at: usize, value: u64) {
        self.own.word(at).store(value, Ordering::Relaxed);
    }
}

/// Target index and position of a commit item or a holder word.
pub(crate) fn split_item(word: u64) -> (usize, u64) {
    ((word >> 48) as usize, word & 0xffff_ffff_ffff)
}

/// The reverse of [`split_item`].
pub(crate) fn join_item(target: usize, position: u64) -> u64 {
    (target as u64) << 48 | position
}

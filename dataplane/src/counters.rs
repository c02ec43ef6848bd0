//! What the bus counts, in shared memory: read at any time, without stopping anything.
//!
//! Each word has one writer, which adds by a plain load and a plain store on a line that nobody
//! polls. What the protocol's words tell is read from them and costs nothing at all: tails count
//! what was published, heads what was received, and both are exact whoever dies where. The other
//! counters may miss what their writer was doing when it died. All of them outlive restarts of a
//! family, since its next segment is a copy, and end with the sandbox.

use core::mem::{offset_of, size_of};

use sandpipe_abi::layout::{
    ACK_ENTRY, FamilyHeader, InFlightEntry, InstanceSlot, LaneHead, RecoveryCounters, SlotCounters,
};

use crate::bus::Bus;
use crate::claim::Delivery;
use crate::claim_word::split_owner;
use crate::memory::Memory;
use crate::recover::Repair;
use crate::sync::Ordering;
use crate::topology::{FamilyIndex, SlotIndex};

/// One counter of an instance slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Payload bytes of published messages.
    Bytes,
    /// Messages refused because a lane was full.
    Full,
    /// Loans refused because the pool was exhausted.
    Exhausted,
    /// Sleeps on a bell.
    Parked,
    /// Sleeps that a ring ended.
    Woken,
    /// Looks at the lanes that found nothing, before a sleep.
    Spins,
    /// Sleeps that ended by time-out: all lanes are looked at again.
    Rescans,
    /// Malformed messages and references that were refused.
    Quarantined,
}

impl Count {
    const fn offset(self) -> usize {
        match self {
            Count::Bytes => offset_of!(SlotCounters, bytes),
            Count::Full => offset_of!(SlotCounters, full),
            Count::Exhausted => offset_of!(SlotCounters, exhausted),
            Count::Parked => offset_of!(SlotCounters, parked),
            Count::Woken => offset_of!(SlotCounters, woken),
            Count::Spins => offset_of!(SlotCounters, spins),
            Count::Rescans => offset_of!(SlotCounters, rescans),
            Count::Quarantined => offset_of!(SlotCounters, quarantined),
        }
    }
}

/// The counters of one instance slot, as its only holder adds to them.
#[derive(Clone, Debug)]
pub struct Tally<M> {
    own: M,
    at: usize,
}

impl<M: Memory> Tally<M> {
    /// Adds to a counter: a plain load and a plain store, no system call, never blocks. If the
    /// caller dies in between, the counter stays as it was.
    #[inline]
    pub fn add(&self, count: Count, more: u64) {
        add(&self.own, self.at + count.offset(), more);
    }
}

fn add(own: &impl Memory, at: usize, more: u64) {
    let word = own.word(at);
    let now = word.load(Ordering::Relaxed).wrapping_add(more);
    word.store(now, Ordering::Relaxed);
}

/// Counts what a recovery mended. The recoverer is the family's only writer of these words: its
/// worker, or the guardian after the worker's end. If it dies before, they stay as they were.
pub(crate) fn add_repair<M: Memory>(bus: &Bus<M>, repair: &Repair) {
    let at = offset_of!(FamilyHeader, recovered);
    let messages = repair.orphaned + repair.returned;
    for (field, more) in [
        (offset_of!(RecoveryCounters, commits), repair.rolled_forward),
        (offset_of!(RecoveryCounters, lanes), repair.lanes),
        (offset_of!(RecoveryCounters, chunks), repair.freed_chunks),
        (offset_of!(RecoveryCounters, messages), messages),
    ] {
        if more != 0 {
            add(bus.own_memory(), at + field, more as u64);
        }
    }
}

/// What one family has counted since its sandbox was made; sums over its slots and incarnations.
/// Each number is exact at some instant while it was read; two of them need not be of the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages made visible in the family's outgoing lanes.
    pub published: u64,
    /// Messages that left the family's incoming lanes: copied out by an instance, or acknowledged
    /// in place by the agent.
    pub received: u64,
    /// See [`Count::Bytes`].
    pub bytes: u64,
    /// See [`Count::Full`].
    pub full: u64,
    /// See [`Count::Exhausted`].
    pub exhausted: u64,
    /// See [`Count::Parked`].
    pub parked: u64,
    /// See [`Count::Woken`].
    pub woken: u64,
    /// See [`Count::Spins`].
    pub spins: u64,
    /// See [`Count::Rescans`].
    pub rescans: u64,
    /// See [`Count::Quarantined`].
    pub quarantined: u64,
    /// Extensions that were opened for the family's pool.
    pub grown: u64,
    /// Commits of dead slots that recovery carried out.
    pub recovered_commits: u64,
    /// Lanes that a dead slot had left half done and recovery mended.
    pub recovered_lanes: u64,
    /// Chunks that recovery took back from dead slots.
    pub recovered_chunks: u64,
    /// Messages that a dead slot had taken and that are delivered again.
    pub recovered_messages: u64,
}

impl Counters {
    /// Every counter with its name and what it counts, in a fixed order: for status and metrics.
    #[must_use]
    pub fn rows(&self) -> [(&'static str, &'static str, u64); 15] {
        [
            ("published", "Messages published", self.published),
            (
                "received",
                "Messages taken out of their lanes",
                self.received,
            ),
            ("bytes", "Payload bytes published", self.bytes),
            ("full", "Messages refused by a full lane", self.full),
            ("exhausted", "Loans refused by a full pool", self.exhausted),
            ("parked", "Sleeps on a bell", self.parked),
            ("woken", "Sleeps that a ring ended", self.woken),
            ("spins", "Vain looks before a sleep", self.spins),
            ("rescans", "Sleeps that ended by time-out", self.rescans),
            (
                "quarantined",
                "Malformed messages and references refused",
                self.quarantined,
            ),
            ("grown", "Extensions opened for the pool", self.grown),
            (
                "recovered_commits",
                "Commits of the dead carried out",
                self.recovered_commits,
            ),
            (
                "recovered_lanes",
                "Lanes of the dead mended",
                self.recovered_lanes,
            ),
            (
                "recovered_chunks",
                "Chunks taken back from the dead",
                self.recovered_chunks,
            ),
            (
                "recovered_messages",
                "Messages of the dead delivered again",
                self.recovered_messages,
            ),
        ]
    }
}

impl<M: Memory> Bus<M> {
    /// The counters of an own slot, to be added to. The caller is the slot's only holder.
    #[must_use]
    pub fn tally(&self, slot: SlotIndex) -> Tally<M> {
        Tally {
            own: self.own_memory().clone(),
            at: self.own_layout().slot_at(slot) + offset_of!(InstanceSlot, counters),
        }
    }

    /// Loans refused to any slot of this bus's own family, ever.
    #[cfg(not(loom))]
    pub(crate) fn refused_loans(&self) -> u64 {
        let layout = self.own_layout();
        let counter = offset_of!(InstanceSlot, counters) + Count::Exhausted.offset();
        let slots = (0..layout.slots).map(|slot| layout.slot_at(SlotIndex(slot)) + counter);
        let load = |at: usize| self.own_memory().word(at).load(Ordering::Relaxed);
        slots.map(load).fold(0, u64::wrapping_add)
    }

    /// What `family` has counted; zeros while it is not mapped. Some ten loads a slot and one or
    /// two a lane; stops nobody, no system call.
    #[must_use]
    pub fn counters(&self, family: FamilyIndex) -> Counters {
        let mut sum = Counters::default();
        let Some(segment) = self.segment(family) else {
            return sum;
        };
        // What another family writes may be anything: sums wrap, they do not panic.
        let load = |at: usize| segment.word(at).load(Ordering::Relaxed);
        let layout = self.layout_of(family);
        for slot in 0..layout.slots {
            let at = layout.slot_at(SlotIndex(slot));
            for target in 0..self.topology().family(family).targets.len() {
                let tail = at + offset_of!(InstanceSlot, tail) + target * size_of::<u64>();
                sum.published = sum.published.wrapping_add(load(tail));
            }
            let at = at + offset_of!(InstanceSlot, counters);
            for (count, into) in [
                (Count::Bytes, &mut sum.bytes),
                (Count::Full, &mut sum.full),
                (Count::Exhausted, &mut sum.exhausted),
                (Count::Parked, &mut sum.parked),
                (Count::Woken, &mut sum.woken),
                (Count::Spins, &mut sum.spins),
                (Count::Rescans, &mut sum.rescans),
                (Count::Quarantined, &mut sum.quarantined),
            ] {
                *into = into.wrapping_add(load(at + count.offset()));
            }
        }
        for lane in &layout.lanes {
            // An exclusive receiver lets its head lag behind what it has acknowledged.
            let head = load(lane.head_at + offset_of!(LaneHead, head));
            let cursor = load(lane.head_at + offset_of!(LaneHead, cursor));
            sum.received = sum.received.wrapping_add(head.max(cursor));
        }
        sum.grown = load(offset_of!(FamilyHeader, grants));
        let at = offset_of!(FamilyHeader, recovered);
        sum.recovered_commits = load(at + offset_of!(RecoveryCounters, commits));
        sum.recovered_lanes = load(at + offset_of!(RecoveryCounters, lanes));
        sum.recovered_chunks = load(at + offset_of!(RecoveryCounters, chunks));
        sum.recovered_messages = load(at + offset_of!(RecoveryCounters, messages));
        sum
    }

    /// Counts a refused reference for the slot that took the message.
    #[cold]
    pub(crate) fn count_refused(&self, delivery: &Delivery) {
        let entry = (delivery.ack.at & 0xff_ffff) as usize;
        let layout = self.own_layout();
        let mut slot = 0;
        if delivery.ack.at & 0xff << 56 == ACK_ENTRY && entry < layout.entries {
            let at = layout.entry_at(entry) + offset_of!(InFlightEntry, owner);
            let (owner, _) = split_owner(self.own_memory().word(at).load(Ordering::Relaxed));
            slot = owner.saturating_sub(1);
        }
        if slot < u64::from(layout.slots) {
            self.tally(SlotIndex(slot as u16))
                .add(Count::Quarantined, 1);
        }
    }
}

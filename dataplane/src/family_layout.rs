//! Where every word of a family's segment lies. Each participant derives the same offsets from the
//! topology.

use core::mem::size_of;

use sandpipe_abi::layout::{
    ChunkDescriptor, FamilyHeader, InFlightEntry, InstanceSlot, LaneHead, LaneSlot, PAGE,
};

use crate::extension::{extension_bytes, extension_count};
use crate::topology::{ChunkClass, FamilyIndex, FamilySpec, SlotIndex, Topology};

/// One incoming lane of a queue, as its consumer and its producer find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IncomingLane {
    /// The family that publishes into it.
    pub source: FamilyIndex,
    /// The instance slot of that family.
    pub slot: SlotIndex,
    /// Which of the source's targets this queue is.
    pub target: usize,
    /// Offset of the [`LaneHead`] in the consumer's segment; the claim words follow it.
    pub head_at: usize,
    /// Offset of the first [`LaneSlot`] in the source's segment.
    pub slots_at: usize,
    /// Slots in the lane (a power of two).
    pub lane_slots: u32,
}

/// Where the chunks of one size class lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRange {
    /// Index of the first chunk.
    pub first: u32,
    /// How many.
    pub count: u32,
    /// Bytes of each.
    pub bytes: u64,
    /// Offset of the first chunk's data.
    pub data_at: usize,
}

/// Offsets of one family's segment, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FamilyLayout {
    /// Instance slots.
    pub slots: u16,
    /// Incoming lanes of the family's queue.
    pub lanes: Vec<IncomingLane>,
    /// First [`InFlightEntry`].
    pub entries_at: usize,
    /// In-flight entries: two a slot, since an instance may adopt an orphan beside its own.
    pub entries: usize,
    /// First outgoing lane; the lanes of one slot lie together.
    pub outgoing_at: usize,
    /// First [`ChunkDescriptor`].
    pub descriptors_at: usize,
    /// The payload pool by size class, without its extensions.
    pub chunks: Vec<ChunkRange>,
    /// How many extensions the pool can have; each repeats `chunks` in a file of its own.
    pub extensions: usize,
    /// Bytes of one extension. They follow one another behind the segment.
    pub extension_bytes: usize,
    /// Bytes that are mapped in at attach: everything but chunk data.
    pub control_bytes: usize,
    /// Bytes of the segment.
    pub bytes: usize,
}

impl FamilyLayout {
    pub(crate) fn new(topology: &Topology, family: FamilyIndex) -> FamilyLayout {
        let spec = topology.family(family);
        let slots = usize::from(spec.slots);
        let mut at = size_of::<FamilyHeader>() + slots * size_of::<InstanceSlot>();
        let mut lanes = Vec::new();
        for (index, source) in topology.families().iter().enumerate() {
            let Some(target) = source.targets.iter().position(|t| t.queue == family) else {
                continue;
            };
            let lane_slots = source.targets[target].lane_slots;
            for slot in 0..source.slots {
                let source = FamilyIndex(index as u16);
                let slots_at = outgoing_lane_at(topology, source, SlotIndex(slot), target);
                let slot = SlotIndex(slot);
                let head_at = at;
                lanes.push(IncomingLane {
                    source,
                    slot,
                    target,
                    head_at,
                    slots_at,
                    lane_slots,
                });
                at += size_of::<LaneHead>() + (lane_slots as usize * 8).next_multiple_of(64);
            }
        }
        let entries_at = at;
        let entries = 2 * slots;
        let outgoing_at = outgoing_at(topology, family);
        let descriptors_at = outgoing_at + slots * lane_bytes_of_a_slot(spec);
        let mut chunks = Vec::new();
        let extension_bytes = extension_bytes(&spec.chunks);
        let extensions = extension_count(topology.growth_bytes(), extension_bytes);
        let total: u32 = spec.chunks.iter().map(|class| class.count).sum();
        let descriptors = total as usize * (1 + extensions) * size_of::<ChunkDescriptor>();
        let control_bytes = (descriptors_at + descriptors).next_multiple_of(PAGE);
        let (mut first, mut data_at) = (0, control_bytes);
        for class in &spec.chunks {
            let ChunkClass { bytes, count } = *class;
            chunks.push(ChunkRange {
                first,
                count,
                bytes,
                data_at,
            });
            first += count;
            data_at = (data_at + bytes as usize * count as usize).next_multiple_of(PAGE);
        }
        let slots = spec.slots;
        FamilyLayout {
            slots,
            lanes,
            entries_at,
            entries,
            outgoing_at,
            descriptors_at,
            chunks,
            extensions,
            extension_bytes,
            control_bytes,
            bytes: data_at,
        }
    }

    /// Offset of an instance slot.
    #[must_use]
    pub fn slot_at(&self, slot: SlotIndex) -> usize {
        assert!(
            slot.0 < self.slots,
            "slot {} of a family that has {}",
            slot.0,
            self.slots
        );
        size_of::<FamilyHeader>() + usize::from(slot.0) * size_of::<InstanceSlot>()
    }

    /// Offset of an in-flight entry.
    #[must_use]
    pub fn entry_at(&self, entry: usize) -> usize {
        assert!(
            entry < self.entries,
            "entry {entry} of a family that has {}",
            self.entries
        );
        self.entries_at + entry * size_of::<InFlightEntry>()
    }

    /// Offset of a chunk's descriptor.
    #[must_use]
    pub fn descriptor_at(&self, chunk: u32) -> usize {
        assert!(
            chunk < self.chunk_count(),
            "chunk {chunk} of a family that has fewer"
        );
        self.descriptors_at + chunk as usize * size_of::<ChunkDescriptor>()
    }

    /// Offset and size of a chunk's data, `None` if the segment has no such chunk; an extension may
    /// ([`FamilyLayout::extended_data`]).
    #[must_use]
    pub fn chunk_data(&self, chunk: u32) -> Option<(usize, u64)> {
        self.chunks.iter().find_map(|range| {
            let index = chunk.checked_sub(range.first)?;
            let at = range.data_at + index as usize * range.bytes as usize;
            (index < range.count).then_some((at, range.bytes))
        })
    }
}

/// Bytes up to the end of the in-flight table, page-aligned: where the outgoing lanes begin.
fn outgoing_at(topology: &Topology, family: FamilyIndex) -> usize {
    let spec = topology.family(family);
    let slots = usize::from(spec.slots);
    let mut at = size_of::<FamilyHeader>() + slots * size_of::<InstanceSlot>();
    for source in topology.families() {
        if let Some(target) = source.targets.iter().find(|target| target.queue == family) {
            let lane =
                size_of::<LaneHead>() + (target.lane_slots as usize * 8).next_multiple_of(64);
            at += lane * usize::from(source.slots);
        }
    }
    (at + 2 * slots * size_of::<InFlightEntry>()).next_multiple_of(size_of::<LaneSlot>())
}

fn lane_bytes_of_a_slot(spec: &FamilySpec) -> usize {
    spec.targets
        .iter()
        .map(|target| target.lane_slots as usize * size_of::<LaneSlot>())
        .sum()
}

/// Offset of the lane of one instance slot to one target.
pub(crate) fn outgoing_lane_at(
    topology: &Topology,
    family: FamilyIndex,
    slot: SlotIndex,
    target: usize,
) -> usize {
    let spec = topology.family(family);
    let before: usize = spec.targets[..target]
        .iter()
        .map(|target| target.lane_slots as usize * size_of::<LaneSlot>())
        .sum();
    let of_earlier_slots = usize::from(slot.0) * lane_bytes_of_a_slot(spec);
    outgoing_at(topology, family) + of_earlier_slots + before
}

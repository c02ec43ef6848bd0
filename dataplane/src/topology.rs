//! Who is in a sandbox, who publishes to whom, and where every word of it lies.
//!
//! A topology is fixed when a sandbox is made. Every participant derives the same offsets from it.

use core::mem::size_of;

use sandpipe_abi::layout::{
    ChunkDescriptor, FAMILIES_MAX, FamilyHeader, InFlightEntry, InstanceSlot, LaneHead, LaneSlot,
    PAGE, SLOTS_MAX, TARGETS_MAX,
};

/// Index of a family in its sandbox: 0 is the host agent, 1.. are the grain workers. The queue that
/// a family consumes has the same index: `LQ(HA)` is queue 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FamilyIndex(pub u16);

impl FamilyIndex {
    /// The host agent.
    pub const AGENT: FamilyIndex = FamilyIndex(0);

    /// The index as an array index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Index of an instance slot in its family. Slot 0 is the worker's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotIndex(pub u16);

/// One queue that a family publishes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The queue.
    pub queue: FamilyIndex,
    /// Messages that one instance slot's lane to that queue holds; a power of two, 2 to 65,536.
    pub lane_slots: u32,
}

/// A size class of a family's payload pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkClass {
    /// Payload bytes of one chunk; a multiple of 64. Classes stand in ascending order.
    pub bytes: u64,
    /// How many chunks of this size.
    pub count: u32,
}

/// One family: a worker and the instances that it forks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FamilySpec {
    /// Instance slots: concurrency + spares, and slot 0 for the worker itself.
    pub slots: u16,
    /// Queues that this family publishes to, `LQ(HA)` first for every grain.
    pub targets: Vec<Target>,
    /// The payload pool.
    pub chunks: Vec<ChunkClass>,
}

/// All families of one sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    families: Vec<FamilySpec>,
}

/// Why a topology is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TopologyError {
    /// Too few or too many families.
    #[error("a sandbox has 2 to {FAMILIES_MAX} families (the agent and its grains), not {0}")]
    Families(usize),
    /// A family's numbers are out of range.
    #[error("family {family}: {what}")]
    Family {
        /// Index of the family.
        family: usize,
        /// What is wrong and what is allowed.
        what: String,
    },
    /// Encoded bytes end early, go on too long, or are no topology.
    #[error("the encoded topology is malformed at byte {0}")]
    Malformed(usize),
}

/// Bytes of one segment at the most: keeps every offset far from overflow.
const SEGMENT_BYTES_MAX: u64 = 64 << 30;

impl Topology {
    /// Checks every number and fixes the layout.
    ///
    /// # Errors
    /// [`TopologyError`] names the family and the bound.
    pub fn new(families: Vec<FamilySpec>) -> Result<Topology, TopologyError> {
        if families.len() < 2 || families.len() > FAMILIES_MAX {
            return Err(TopologyError::Families(families.len()));
        }
        for (family, spec) in families.iter().enumerate() {
            check_family(spec, families.len())
                .map_err(|what| TopologyError::Family { family, what })?;
        }
        Ok(Topology { families })
    }

    /// The families, the agent first.
    #[must_use]
    pub fn families(&self) -> &[FamilySpec] {
        &self.families
    }

    /// One family.
    ///
    /// # Panics
    /// If there is no such family.
    #[must_use]
    pub fn family(&self, family: FamilyIndex) -> &FamilySpec {
        &self.families[family.index()]
    }

    /// Where everything of one family lies in its segment.
    #[must_use]
    pub fn layout(&self, family: FamilyIndex) -> FamilyLayout {
        FamilyLayout::new(self, family)
    }

    /// The topology as bytes, for the attach handshake.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut put = |value: u64| bytes.extend_from_slice(&value.to_le_bytes());
        put(self.families.len() as u64);
        for family in &self.families {
            put(u64::from(family.slots));
            put(family.targets.len() as u64);
            for target in &family.targets {
                put(u64::from(target.queue.0));
                put(u64::from(target.lane_slots));
            }
            put(family.chunks.len() as u64);
            for class in &family.chunks {
                put(class.bytes);
                put(u64::from(class.count));
            }
        }
        bytes
    }

    /// The topology that [`Topology::encode`] wrote; checks everything, also of hostile bytes.
    ///
    /// # Errors
    /// [`TopologyError::Malformed`] with the place, or the bound that a number passes.
    pub fn decode(bytes: &[u8]) -> Result<Topology, TopologyError> {
        let mut reader = Reader { bytes, at: 0 };
        let mut families = Vec::new();
        for _ in 0..reader.number(FAMILIES_MAX as u64)? {
            let slots = reader.number(SLOTS_MAX as u64)? as u16;
            let mut targets = Vec::new();
            for _ in 0..reader.number(TARGETS_MAX as u64)? {
                let queue = FamilyIndex(reader.number(FAMILIES_MAX as u64)? as u16);
                targets.push(Target {
                    queue,
                    lane_slots: reader.number(1 << 16)? as u32,
                });
            }
            let mut chunks = Vec::new();
            for _ in 0..reader.number(CHUNK_CLASSES_MAX as u64)? {
                let bytes = reader.number(SEGMENT_BYTES_MAX)?;
                chunks.push(ChunkClass {
                    bytes,
                    count: reader.number(1 << 20)? as u32,
                });
            }
            families.push(FamilySpec {
                slots,
                targets,
                chunks,
            });
        }
        if reader.at != bytes.len() {
            return Err(TopologyError::Malformed(reader.at));
        }
        Topology::new(families)
    }
}

/// Size classes of one pool at the most.
pub const CHUNK_CLASSES_MAX: usize = 16;

fn check_family(spec: &FamilySpec, families: usize) -> Result<(), String> {
    if spec.slots == 0 || usize::from(spec.slots) > SLOTS_MAX {
        return Err(format!(
            "{} instance slots; allowed are 1 to {SLOTS_MAX}",
            spec.slots
        ));
    }
    if spec.targets.len() > TARGETS_MAX {
        return Err(format!(
            "{} targets; at most {TARGETS_MAX}",
            spec.targets.len()
        ));
    }
    for (index, target) in spec.targets.iter().enumerate() {
        let lane = target.lane_slots;
        if !lane.is_power_of_two() || !(2..=1 << 16).contains(&lane) {
            return Err(format!(
                "a lane of {lane} slots; use a power of two from 2 to 65536"
            ));
        }
        if target.queue.index() >= families {
            return Err(format!("target queue {} does not exist", target.queue.0));
        }
        if spec.targets[..index]
            .iter()
            .any(|earlier| earlier.queue == target.queue)
        {
            return Err(format!("target queue {} is named twice", target.queue.0));
        }
    }
    if spec.chunks.len() > CHUNK_CLASSES_MAX {
        return Err(format!(
            "{} chunk classes; at most {CHUNK_CLASSES_MAX}",
            spec.chunks.len()
        ));
    }
    let ascending = spec
        .chunks
        .windows(2)
        .all(|pair| pair[0].bytes < pair[1].bytes);
    let sized = spec.chunks.iter().all(|class| {
        class.bytes > 0 && class.bytes.is_multiple_of(64) && class.bytes <= u64::from(u32::MAX)
    });
    let counted = spec
        .chunks
        .iter()
        .all(|class| (1..=1 << 20).contains(&class.count));
    if !ascending || !sized || !counted {
        return Err("chunk classes: ascending multiples of 64 bytes, 1 to 1048576 of each".into());
    }
    let total: u64 = spec
        .chunks
        .iter()
        .map(|class| class.bytes * u64::from(class.count))
        .sum();
    if total > SEGMENT_BYTES_MAX {
        return Err(format!(
            "a payload pool of {total} bytes; at most {SEGMENT_BYTES_MAX}"
        ));
    }
    Ok(())
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn number(&mut self, max: u64) -> Result<u64, TopologyError> {
        let malformed = TopologyError::Malformed(self.at);
        let word = self
            .bytes
            .get(self.at..self.at + 8)
            .ok_or(malformed.clone())?;
        let value = u64::from_le_bytes(word.try_into().expect("the slice has 8 bytes"));
        self.at += 8;
        if value > max {
            Err(malformed)
        } else {
            Ok(value)
        }
    }
}

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
    /// The payload pool by size class.
    pub chunks: Vec<ChunkRange>,
    /// Bytes that are mapped in at attach: everything but chunk data.
    pub control_bytes: usize,
    /// Bytes of the segment.
    pub bytes: usize,
}

impl FamilyLayout {
    fn new(topology: &Topology, family: FamilyIndex) -> FamilyLayout {
        let spec = topology.family(family);
        let slots = usize::from(spec.slots);
        let mut at = size_of::<FamilyHeader>() + slots * size_of::<InstanceSlot>();
        let mut lanes = Vec::new();
        for (index, source) in topology.families.iter().enumerate() {
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
        let total: u32 = spec.chunks.iter().map(|class| class.count).sum();
        let control_bytes =
            (descriptors_at + total as usize * size_of::<ChunkDescriptor>()).next_multiple_of(PAGE);
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

    /// Offset and size of a chunk's data, `None` if there is no such chunk.
    #[must_use]
    pub fn chunk_data(&self, chunk: u32) -> Option<(usize, u64)> {
        self.chunks.iter().find_map(|range| {
            let index = chunk.checked_sub(range.first)?;
            let at = range.data_at + index as usize * range.bytes as usize;
            (index < range.count).then_some((at, range.bytes))
        })
    }

    /// Chunks of all classes.
    #[must_use]
    pub fn chunk_count(&self) -> u32 {
        self.chunks.iter().map(|range| range.count).sum()
    }
}

/// Bytes up to the end of the in-flight table, page-aligned: where the outgoing lanes begin.
fn outgoing_at(topology: &Topology, family: FamilyIndex) -> usize {
    let spec = topology.family(family);
    let slots = usize::from(spec.slots);
    let mut at = size_of::<FamilyHeader>() + slots * size_of::<InstanceSlot>();
    for source in &topology.families {
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

//! Who is in a sandbox, and who publishes to whom.
//!
//! A topology is fixed when a sandbox is made.

use sandpipe_abi::layout::{FAMILIES_MAX, SLOTS_MAX, TARGETS_MAX};

use crate::family_layout::FamilyLayout;

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
    pub(crate) growth_bytes: u64,
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
        Ok(Topology {
            families,
            growth_bytes: 0,
        })
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
        put(self.growth_bytes);
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
        let growth_bytes = reader.number(u64::MAX)?;
        if reader.at != bytes.len() {
            return Err(TopologyError::Malformed(reader.at));
        }
        Ok(Topology::new(families)?.with_growth(growth_bytes))
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

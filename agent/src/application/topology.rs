//! The sandbox's shape: who publishes to whom, how long the lanes are, how large the pools.

use sandpipe::{
    ChunkClass, DEAD_OVERHEAD_MAX, FamilyIndex, FamilySpec, Target, Topology, TopologyError,
};

use crate::config::{AppSpec, GrainSpec, Mode};

/// Messages in a lane from an instance to `LQ(HA)`: it must not fill while the backup lags, nor
/// within a second in which the agent is dead.
const BACKUP_LANE: u32 = 1024;

/// The topology of an application: family 0 is the agent, family `i + 1` grain `i`.
///
/// # Errors
/// What the data plane cannot do.
pub fn topology(spec: &AppSpec) -> Result<Topology, TopologyError> {
    let max = spec.limits.max_payload_bytes;
    let queue_length = spec.limits.queue_length;
    let mut families = vec![agent(spec.grains.len(), max, queue_length)];
    let of_grain = |grain| family(grain, max, queue_length / 4);
    families.extend(spec.grains.iter().map(of_grain));
    // The words for all the chunks that it may grow by are among what is made.
    let growth = spec.limits.pool_growth_bytes;
    let topology = Topology::new(families)?.with_growth(growth);
    let left = spec.limits.shared_bytes.map_or(u64::MAX, |limit| {
        limit.saturating_sub(made_bytes(&topology))
    });
    Ok(topology.with_growth(growth.min(left)))
}

/// Bytes that the families' segments take as they are made: queues and pools, none of them grown.
#[must_use]
pub fn made_bytes(topology: &Topology) -> u64 {
    let families = 0..topology.families().len();
    let layouts = families.map(|index| topology.layout(FamilyIndex(index as u16)));
    layouts.map(|layout| layout.bytes as u64).sum()
}

fn agent(grains: usize, max_payload_bytes: u64, queue_length: u32) -> FamilySpec {
    // Every queue: a recovery publishes into any of them.
    let targets = (0..grains)
        .map(|grain| target(grain + 1, queue_length))
        .collect();
    FamilySpec {
        slots: 1,
        targets,
        chunks: chunks(max_payload_bytes),
    }
}

fn family(grain: &GrainSpec, max_payload_bytes: u64, lane: u32) -> FamilySpec {
    let mut targets = vec![target(0, BACKUP_LANE)];
    targets.extend(grain.next.iter().map(|next| target(next + 1, lane)));
    FamilySpec {
        slots: slots(grain),
        targets,
        chunks: chunks(max_payload_bytes),
    }
}

fn slots(grain: &GrainSpec) -> u16 {
    let spares = match grain.mode {
        Mode::Fork { spares } => spares,
        Mode::Pool => 0,
    };
    1 + grain.concurrency + spares
}

fn target(family: usize, lane_slots: u32) -> Target {
    let queue = FamilyIndex(u16::try_from(family).expect("at most 31 grains"));
    Target { queue, lane_slots }
}

/// Chunks up to the payload limit. Memory is taken when a chunk is first used, so the numbers only
/// bound what can be on its way at once.
fn chunks(max_payload_bytes: u64) -> Vec<ChunkClass> {
    // An event that died goes to the agent with the reason.
    let max = max_payload_bytes + DEAD_OVERHEAD_MAX as u64;
    let max = max.next_multiple_of(64);
    // An answer of an error may be longer than a very small limit.
    let max = max.max(4096);
    let classes = [(256, 2048), (4096, 1024), (64 << 10, 128), (1 << 20, 16)];
    let smaller = classes.into_iter().filter(|&(bytes, _)| bytes < max);
    let count = if max <= 4096 { 1024 } else { 8 };
    smaller
        .chain([(max, count)])
        .map(|(bytes, count)| ChunkClass { bytes, count })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_payload_up_to_the_limit_has_a_chunk() {
        for max in [1, 64, 4096, 4097, 8 << 20, 64 << 20] {
            let classes = chunks(max);
            assert!(classes.last().unwrap().bytes >= max + DEAD_OVERHEAD_MAX as u64);
            assert!(
                classes.windows(2).all(|pair| pair[0].bytes < pair[1].bytes),
                "{classes:?}"
            );
        }
    }
}

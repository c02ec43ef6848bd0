//! Three families on the heap, of which one wrote what the fuzzer says.
#![allow(dead_code, reason = "each target uses a part")]

use std::sync::atomic::Ordering::Relaxed;

use sandpipe::{
    Bus, ChunkClass, FamilyIndex, FamilySpec, HeapMemory, Memory, Target, Topology,
};

pub const AGENT: FamilyIndex = FamilyIndex::AGENT;
pub const GRAIN: FamilyIndex = FamilyIndex(1);
pub const OTHER: FamilyIndex = FamilyIndex(2);

pub struct House {
    buses: Vec<Bus<HeapMemory>>,
    segments: Vec<HeapMemory>,
}

impl House {
    pub fn new() -> House {
        let family = |queues: &[FamilyIndex]| FamilySpec {
            slots: 2,
            targets: queues
                .iter()
                .map(|&queue| Target {
                    queue,
                    lane_slots: 4,
                })
                .collect(),
            chunks: vec![ChunkClass {
                bytes: 128,
                count: 4,
            }],
        };
        let families = vec![family(&[GRAIN, OTHER]), family(&[AGENT, OTHER]), family(&[AGENT])];
        let topology = Topology::new(families).expect("a sound topology");
        let families = [AGENT, GRAIN, OTHER];
        let segments = families.map(|family| HeapMemory::new(topology.layout(family).bytes));
        let hints = HeapMemory::new(4096);
        let view = |family: FamilyIndex| {
            let own = segments[family.index()].clone();
            let mut bus = Bus::new(topology.clone(), family, own, hints.clone());
            for peer in families.into_iter().filter(|peer| *peer != family) {
                bus.set_peer(peer, segments[peer.index()].clone());
            }
            bus
        };
        House {
            buses: families.map(view).to_vec(),
            segments: segments.to_vec(),
        }
    }

    pub fn bus(&self, family: FamilyIndex) -> &Bus<HeapMemory> {
        &self.buses[family.index()]
    }

    pub fn words(&self, family: FamilyIndex) -> Vec<u64> {
        let segment = &self.segments[family.index()];
        let offsets = (0..segment.len()).step_by(8);
        offsets.map(|at| segment.word(at).load(Relaxed)).collect()
    }

    /// Runs of words at places: two bytes of place, one of length, then the words. Everything
    /// behind the header counts; the places are dense where something is decided.
    pub fn scribble(&self, family: FamilyIndex, mut bytes: &[u8]) {
        let segment = &self.segments[family.index()];
        let words = (segment.len() - 4096) / 8;
        while let Some(([low, high, count], rest)) = bytes.split_first_chunk::<3>() {
            bytes = rest;
            let place = usize::from(u16::from_le_bytes([*low, *high])) % words;
            for index in 0..usize::from(count % 32) {
                let Some((word, rest)) = bytes.split_first_chunk::<8>() else {
                    return;
                };
                bytes = rest;
                let at = 4096 + (place + index) % words * 8;
                segment.word(at).store(u64::from_le_bytes(*word), Relaxed);
            }
        }
    }
}

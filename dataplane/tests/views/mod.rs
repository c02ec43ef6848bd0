//! A local bus over memories of the test's own.

use std::array;

use sandpipe::{Bus, FamilyIndex, Memory, Topology};

/// The memory of each family, made from its length.
pub fn memories<M, const N: usize>(topology: &Topology, make: impl Fn(usize) -> M) -> [M; N] {
    assert_eq!(topology.families().len(), N);
    array::from_fn(|family| make(topology.layout(FamilyIndex(family as u16)).bytes))
}

/// The bus as each family sees it, which maps all the others.
pub fn views<M: Memory, const N: usize>(
    topology: &Topology,
    memories: &[M; N],
    hints: &M,
) -> [Bus<M>; N] {
    array::from_fn(|own| {
        let family = FamilyIndex(own as u16);
        let memory = memories[own].clone();
        let mut bus = Bus::new(topology.clone(), family, memory, hints.clone());
        for (peer, memory) in (0..).zip(memories).filter(|&(peer, _)| peer != family.0) {
            bus.set_peer(FamilyIndex(peer), memory.clone());
        }
        bus
    })
}

//! One process's view of its application's local bus: its own family's segment, the others'
//! read-only, and the hint page.

use core::mem::{offset_of, size_of};
use std::sync::Arc;

use sandpipe_abi::layout::{FamilyHeader, InstanceSlot, LaneHead, SlotState};

use crate::bell::Bell;
use crate::chunk::Holder;
use crate::claim::Claimer;
use crate::family_layout::{FamilyLayout, IncomingLane};
use crate::instance::Instance;
use crate::lane::{LaneReader, LaneWriter};
use crate::memory::Memory;
use crate::receive::Receiver;
use crate::sync::{AtomicU64, Ordering};
use crate::topology::{FamilyIndex, SlotIndex, Topology};

/// The local bus as one family sees it.
#[derive(Clone, Debug)]
pub struct Bus<M> {
    topology: Arc<Topology>,
    layouts: Arc<Vec<FamilyLayout>>,
    family: FamilyIndex,
    /// By family index; the own one is writable, a missing one is not mapped yet.
    segments: Vec<Option<M>>,
    hints: M,
    epoch: u64,
}

impl<M: Memory> Bus<M> {
    /// A bus over segments that are mapped already.
    ///
    /// # Panics
    /// If the own segment or the hint page is shorter than the topology says.
    #[must_use]
    pub fn new(topology: Topology, family: FamilyIndex, own: M, hints: M) -> Bus<M> {
        let families = topology.families().len();
        let indices = 0..families;
        let layouts: Vec<_> = indices
            .map(|index| topology.layout(FamilyIndex(index as u16)))
            .collect();
        assert!(
            own.len() >= layouts[family.index()].bytes,
            "the own segment is too short"
        );
        let epoch = own.word(offset_of!(FamilyHeader, attach_epoch));
        let epoch = epoch.load(Ordering::Relaxed);
        let mut segments = vec![None; families];
        segments[family.index()] = Some(own);
        let (topology, layouts) = (Arc::new(topology), Arc::new(layouts));
        Bus {
            topology,
            layouts,
            family,
            segments,
            hints,
            epoch,
        }
    }

    /// Takes a peer's segment into use, in place of an older one. Processes forked earlier and
    /// receivers made earlier keep what they had.
    ///
    /// # Panics
    /// If the segment is shorter than the topology says, or is the own family's.
    pub fn set_peer(&mut self, family: FamilyIndex, segment: M) {
        assert!(
            family != self.family,
            "a family does not replace its own segment"
        );
        assert!(
            segment.len() >= self.layouts[family.index()].bytes,
            "a peer's segment is short"
        );
        self.segments[family.index()] = Some(segment);
    }

    /// Who is in the sandbox.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// This process's family.
    #[must_use]
    pub fn family(&self) -> FamilyIndex {
        self.family
    }

    /// The layout of the own segment.
    #[must_use]
    pub fn own_layout(&self) -> &FamilyLayout {
        self.layout_of(self.family)
    }

    pub(crate) fn layout_of(&self, family: FamilyIndex) -> &FamilyLayout {
        &self.layouts[family.index()]
    }

    pub(crate) fn layouts(&self) -> Arc<Vec<FamilyLayout>> {
        Arc::clone(&self.layouts)
    }

    pub(crate) fn own_memory(&self) -> &M {
        self.segments[self.family.index()]
            .as_ref()
            .expect("the own segment is always mapped")
    }

    /// The segment of any family, if it is mapped.
    #[must_use]
    pub fn segment(&self, family: FamilyIndex) -> Option<&M> {
        self.segments.get(family.index())?.as_ref()
    }

    /// The bell of a queue.
    #[must_use]
    pub fn bell(&self, queue: FamilyIndex) -> Bell<M> {
        Bell::new(self.hints.clone(), queue)
    }

    /// The sending side of an instance slot. The caller is the slot's only holder.
    #[must_use]
    pub fn instance(&self, slot: SlotIndex) -> Instance<M> {
        Instance::new(self, slot)
    }

    /// The receiving side of an instance slot that shares the queue with others of its family.
    #[must_use]
    pub fn claimer(&self, slot: SlotIndex) -> Claimer<M> {
        Claimer::new(self, slot)
    }

    /// The receiving side of a process that reads its family's queue alone.
    #[must_use]
    pub fn receiver(&self) -> Receiver<M> {
        Receiver::new(self)
    }

    pub(crate) fn lane_writer(&self, slot: SlotIndex, target: usize) -> LaneWriter<M> {
        let spec = self.topology.family(self.family).targets[target];
        let consumer = &self.layouts[spec.queue.index()];
        let lane = consumer
            .lanes
            .iter()
            .find(|lane| lane.source == self.family && lane.slot == slot)
            .expect("the topology gives each target a lane for each slot");
        let tail = offset_of!(InstanceSlot, tail) + target * size_of::<u64>();
        LaneWriter::new(
            self.own_memory().clone(),
            lane.slots_at,
            lane.lane_slots,
            self.own_layout().slot_at(slot) + tail,
            self.segments[spec.queue.index()].clone(),
            lane.head_at + offset_of!(LaneHead, head),
        )
    }

    pub(crate) fn lane_reader(&self, lane: &IncomingLane) -> Option<LaneReader<M>> {
        let source = self.segments[lane.source.index()].clone()?;
        Some(LaneReader::new(source, lane.slots_at, lane.lane_slots))
    }

    pub(crate) fn holders(&self) -> Vec<Holder<M>> {
        self.holders_of(self.family)
    }

    /// The consumers of a family's messages.
    pub(crate) fn holders_of(&self, family: FamilyIndex) -> Vec<Holder<M>> {
        let holder = |queue: FamilyIndex| {
            let lanes = &self.layouts[queue.index()].lanes;
            let first_lane = lanes
                .iter()
                .position(|lane| lane.source == family)
                .expect("the topology gives each target a lane");
            let segment = self.segments[queue.index()].clone();
            Holder {
                segment,
                layout: self.layouts(),
                queue,
                first_lane,
                slots: self.layouts[family.index()].slots,
            }
        };
        let targets = self.topology.family(family).targets.iter();
        targets.map(|target| holder(target.queue)).collect()
    }

    /// Records the holder of a slot; recovery and status read it.
    pub fn hold_slot(&self, slot: SlotIndex, pid: u32) {
        let state = self.own_layout().slot_at(slot) + offset_of!(InstanceSlot, state);
        let incarnation = self
            .own_memory()
            .word(state + offset_of!(SlotState, incarnation));
        incarnation.store(
            incarnation.load(Ordering::Relaxed).wrapping_add(1),
            Ordering::Relaxed,
        );
        let word = self.own_memory().word(state + offset_of!(SlotState, pid));
        word.store(u64::from(pid), Ordering::Release);
    }

    /// Reads a word of a slot, for a forked child that is about to publish: its memory is not
    /// mapped yet, and a first read brings the pages around with it, a first write its own alone.
    /// One page fault in the child, a load later; no system call.
    pub fn touch_slot(&self, slot: SlotIndex) {
        let commit = self.own_layout().slot_at(slot) + offset_of!(InstanceSlot, commit);
        core::hint::black_box(self.own_memory().word(commit).load(Ordering::Relaxed));
    }

    /// When a slot's holder took its message (`CLOCK_MONOTONIC` ns), 0 if it has none.
    #[must_use]
    pub fn slot_started_ns(&self, slot: SlotIndex) -> u64 {
        let state = self.own_layout().slot_at(slot) + offset_of!(InstanceSlot, state);
        self.own_memory()
            .word(state + offset_of!(SlotState, started_ns))
            .load(Ordering::Relaxed)
    }

    /// Whether the family's worker has mapped a peer anew since this process was forked: an idle
    /// instance that is stale retires, and another is forked from the worker. One load.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        // Relaxed: nothing is read under it; mappings are the process's own.
        self.shared_epoch().load(Ordering::Relaxed) != self.epoch
    }

    /// The attach epoch under which this process maps its peers. Process-local on purpose: a child
    /// that starts late must not take the shared word's newer value for its own.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// After [`Bus::set_peer`] in the worker: instances forked before are stale from now on.
    pub fn bump_attach_epoch(&mut self) {
        self.epoch = self.shared_epoch().load(Ordering::Relaxed).wrapping_add(1);
        self.shared_epoch().store(self.epoch, Ordering::Relaxed);
    }

    fn shared_epoch(&self) -> &AtomicU64 {
        self.own_memory()
            .word(offset_of!(FamilyHeader, attach_epoch))
    }

    /// Wakes everybody whom a recovered slot may have owed a wake: its targets and its family.
    pub fn ring_after_recovery(&self) {
        for target in &self.topology.family(self.family).targets {
            self.bell(target.queue).ring_all();
        }
        self.bell(self.family).ring_all();
    }
}

//! The chain under attack: a source, two grains with two instances each, the agent at the end.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use sandpipe::recover::Repair;
use sandpipe::{
    Bus, ChunkClass, FamilyIndex, FamilySpec, Mapping, Memory, SlotIndex, Target, Topology, segment,
};

use crate::roles;
use crate::sandbox::{Random, Sandbox};

pub const AGENT: FamilyIndex = FamilyIndex::AGENT;
pub const SOURCE: FamilyIndex = FamilyIndex(1);
pub const FIRST: FamilyIndex = FamilyIndex(2);
pub const SECOND: FamilyIndex = FamilyIndex(3);
pub const INSTANCES: u16 = 2;

pub fn topology() -> Topology {
    let chunks = vec![
        ChunkClass {
            bytes: 256,
            count: 24,
        },
        ChunkClass {
            bytes: 4096,
            count: 24,
        },
    ];
    let family = |slots: u16, queues: &[FamilyIndex]| FamilySpec {
        slots,
        targets: queues
            .iter()
            .map(|&queue| Target {
                queue,
                lane_slots: 16,
            })
            .collect(),
        chunks: chunks.clone(),
    };
    Topology::new(vec![
        family(1, &[SOURCE]),
        family(1, &[AGENT, FIRST]),
        family(1 + INSTANCES, &[AGENT, SECOND]),
        family(1 + INSTANCES, &[AGENT]),
    ])
    .unwrap()
}

/// The words that the test and its processes share outside the bus.
#[derive(Clone)]
pub struct Control(Mapping);

impl Control {
    pub fn new() -> Control {
        let fd = segment::create("kill-test-control", 4096).unwrap();
        Control(Mapping::new(fd, 4096, true, 4096).unwrap())
    }

    fn word(&self, what: Word) -> &AtomicU64 {
        self.0.word(what as usize * 8)
    }

    pub fn count(&self, what: Word) {
        self.word(what).fetch_add(1, Ordering::SeqCst);
    }

    pub fn read(&self, what: Word) -> u64 {
        self.word(what).load(Ordering::SeqCst)
    }
}

#[derive(Clone, Copy)]
pub enum Word {
    /// Not 0: the source publishes one more message, its last.
    Closing,
    /// Inputs whose payload an instance found torn.
    Torn,
    /// Inputs that came with an attempt above 1.
    Redelivered,
    /// Commits that recovery carried out.
    RolledForward,
}

pub struct Chain {
    pub sandbox: Sandbox,
    pub control: Control,
    pub groups: HashMap<FamilyIndex, i32>,
}

impl Chain {
    pub fn start(&mut self, family: FamilyIndex) {
        let control = self.control.clone();
        let pid = self.sandbox.spawn(family, |participant, bus| match family {
            SOURCE => roles::source(&control, participant, bus),
            _ => roles::worker(&control, u64::from(family.0 - 1), participant, bus),
        });
        self.groups.insert(family, pid);
    }

    pub fn restart(&mut self, family: FamilyIndex) {
        self.kill(family);
        self.start(family);
    }

    /// Ends a family and repairs what it left.
    pub fn kill(&mut self, family: FamilyIndex) {
        let Repair { rolled_forward, .. } = self.sandbox.kill_family(family, self.groups[&family]);
        (0..rolled_forward).for_each(|_| self.control.count(Word::RolledForward));
    }

    /// Ends the source; the next one publishes one message and stops.
    pub fn close(&mut self) {
        self.kill(SOURCE);
        self.control.count(Word::Closing);
        self.start(SOURCE);
    }

    /// One SIGKILL: mostly an instance, sometimes a whole worker or the source.
    pub fn kill_something(&mut self, random: &mut Random, view: &Bus<Mapping>) {
        let family = [SOURCE, FIRST, SECOND][random.below(3) as usize];
        if family == SOURCE || random.below(4) == 0 {
            return self.restart(family);
        }
        let slot = SlotIndex(1 + random.below(INSTANCES.into()) as u16);
        if let Some(sandpipe::lease::LeaseState::Held(pid)) =
            sandpipe::lease::lease_state(view, family, slot)
        {
            // SAFETY: the lease names a process of this test; a stale one belongs to its group,
            // so a reused number of a foreign process is excluded by the group check.
            unsafe {
                let pid = pid.cast_signed();
                if libc::getpgid(pid) == self.groups[&family] {
                    libc::kill(pid, libc::SIGKILL);
                }
            }
        }
    }
}

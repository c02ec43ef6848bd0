//! The agent's side of a real local bus, one of whose grains lies. The guardian runs in the test.

use std::mem::offset_of;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use sandpipe::attach::Participant;
use sandpipe::layout::LaneSlot;
use sandpipe::{
    Ack, Bus, ChunkClass, FamilyIndex, FamilySpec, Guardian, Mapping, Memory, MessageHeader,
    MessageId, Payload, Reaction, SlotIndex, Target, Topology, TraceStamps, Violation, socket,
};

use super::local::{LocalBus, Publish, Refused};
use super::sandbox_bus::SandboxBus;
use crate::core::{Delivery, Local};

const AGENT: FamilyIndex = FamilyIndex::AGENT;
const HOSTILE: FamilyIndex = FamilyIndex(1);
const INNOCENT: FamilyIndex = FamilyIndex(2);
const LANE: u64 = 8;

fn topology() -> Topology {
    let family = |queues: &[FamilyIndex]| FamilySpec {
        slots: 1,
        targets: queues
            .iter()
            .map(|&queue| Target {
                queue,
                lane_slots: 8,
            })
            .collect(),
        chunks: vec![ChunkClass {
            bytes: 4096,
            count: 16,
        }],
    };
    let families = vec![
        family(&[HOSTILE, INNOCENT]),
        family(&[AGENT, INNOCENT]),
        family(&[AGENT]),
    ];
    Topology::new(families).unwrap()
}

/// Attaches a family to a guardian in this process, which keeps the returned socket.
fn join(guardian: &mut Guardian, family: FamilyIndex) -> (OwnedFd, Participant, Bus<Mapping>) {
    guardian.make_family(family).unwrap();
    let kind = SocketType::SEQPACKET;
    let pair = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None);
    let (ours, theirs): (OwnedFd, OwnedFd) = pair.unwrap();
    let attach = move || Participant::attach(theirs, family, Duration::from_secs(20)).unwrap();
    let thread = std::thread::spawn(attach);
    loop {
        let (bytes, _) = socket::receive(&ours, true).unwrap();
        match guardian.handle(family, &bytes).unwrap() {
            Reaction::Reply(bytes, fds) => socket::send(&ours, &bytes, &fds).unwrap(),
            Reaction::Sealed => {
                let (bytes, fds) = guardian.peers_message(family);
                socket::send(&ours, &bytes, &fds).unwrap();
            }
            _ => break,
        }
    }
    let (participant, bus) = thread.join().unwrap();
    (ours, participant, bus)
}

struct House {
    bus: SandboxBus,
    hostile: Bus<Mapping>,
    innocent: sandpipe::Instance<Mapping>,
    sent: u128,
    /// The guardian's end of the agent's line.
    _line: OwnedFd,
}

impl House {
    fn new() -> House {
        let mut guardian = Guardian::new(topology()).unwrap();
        let members = [AGENT, HOSTILE, INNOCENT].map(|family| join(&mut guardian, family));
        let [agent, hostile, innocent] = members.map(|(line, mut participant, mut bus)| {
            let (bytes, fds) = guardian.peers_message(bus.family());
            socket::send(&line, &bytes, &fds).unwrap();
            participant.update(&mut bus).unwrap();
            (line, participant, bus)
        });
        let (hostile, innocent) = (hostile.2, innocent.2);
        let (line, participant, agent) = agent;
        House {
            bus: SandboxBus::new(participant, agent),
            innocent: innocent.instance(SlotIndex(0)),
            hostile,
            _line: line,
            sent: 0,
        }
    }

    /// Writes the words of a message into the hostile grain's lane to the agent, stamp last.
    fn forge(&self, position: u64, meta: u64, body: u64) {
        let layout = self.hostile.topology().layout(AGENT);
        let lane = layout.lanes.iter().find(|lane| lane.source == HOSTILE);
        let at = lane.unwrap().slots_at + (position % LANE) as usize * size_of::<LaneSlot>();
        let own = self.hostile.segment(HOSTILE).unwrap();
        own.word(at + offset_of!(LaneSlot, meta))
            .store(meta, SeqCst);
        own.word(at + offset_of!(LaneSlot, payload))
            .store(body, SeqCst);
        own.word(at).store(position + 1, SeqCst);
    }

    fn poll(&mut self, judge: &mut dyn FnMut(&Local) -> Result<(), Violation>) -> Vec<Local> {
        let mut got = Vec::new();
        self.bus.poll(100, &mut |local| {
            let judged = judge(&local);
            got.push(local);
            judged
        });
        for local in &got {
            self.bus.release(local.number);
        }
        got
    }

    /// Round after round around the lane: every message of the innocent grain comes once.
    fn innocent_loses_nothing(&mut self) {
        for _ in 0..5 * LANE {
            self.sent += 1;
            let id = MessageId(self.sent);
            let mut header = MessageHeader::event(id, id, MessageId::NONE, AGENT);
            header.kind = sandpipe::Kind::Final;
            let bytes = self.sent.to_le_bytes();
            let payload = Payload::Inline(&bytes);
            let staged = self
                .innocent
                .stage(AGENT, &header, payload, TraceStamps::default());
            staged.unwrap();
            self.innocent.commit(Ack::NOTHING);
            let got = self.poll(&mut |_| Ok(()));
            assert_eq!((got.len(), got[0].id, got[0].from), (1, id, 1));
            assert_eq!(got[0].payload, bytes);
        }
    }

    /// The lie is found out once, by name, and nothing of the hostile grain is read or written to
    /// any more.
    fn quarantined(&mut self, violation: Violation) {
        assert!(self.poll(&mut |_| Ok(())).is_empty(), "a lie was believed");
        let refused = Refused {
            grain: 0,
            violation,
        };
        assert_eq!(self.bus.take_refusal(), Some(refused));
        assert_eq!(self.bus.take_refusal(), None);
        for position in 0..LANE {
            self.forge(position, 8 | 2 << 32, 5);
        }
        assert!(self.poll(&mut |_| Ok(())).is_empty());
        assert_eq!(self.bus.publish(&delivery(0)), Publish::Full);
        assert_eq!(self.bus.publish(&delivery(1)), Publish::Done);
        self.innocent_loses_nothing();
    }
}

fn delivery(grain: usize) -> Delivery {
    Delivery {
        id: MessageId(1),
        root: MessageId(1),
        parent: MessageId::NONE,
        grain,
        traced: false,
        fresh: false,
        payload: b"x".to_vec(),
    }
}

#[test]
fn a_message_that_is_none_quarantines_its_grain() {
    let mut house = House::new();
    house.forge(0, 8 | 77 << 32, 5);
    house.quarantined(Violation::Kind(77));
}

#[test]
fn a_payload_that_is_not_there_quarantines_its_grain() {
    let mut house = House::new();
    house.forge(0, 4097 | 2 << 32 | 1 << 48, 3);
    let len = 4097;
    house.quarantined(Violation::Reference { chunk: 3, len });
}

#[test]
fn a_backup_copy_for_a_queue_without_a_lane_quarantines_its_grain() {
    for queue in [0, 1, 200] {
        let mut house = House::new();
        house.forge(0, 8 | 1 << 32 | queue << 40, 5);
        house.quarantined(Violation::Queue(queue as u16));
    }
}

#[test]
fn news_that_the_core_refuses_quarantine_their_grain() {
    let mut house = House::new();
    house.forge(0, 8 | 2 << 32, 5);
    let judged = house.poll(&mut |local| match local.from {
        0 => Err(Violation::Parent),
        _ => Ok(()),
    });
    assert_eq!(judged.len(), 1);
    house.quarantined(Violation::Parent);
}

#[test]
fn a_dead_event_whose_reason_ends_behind_it_quarantines_its_grain() {
    let mut house = House::new();
    house.forge(0, 8 | 4 << 32, 0xffff);
    house.quarantined(Violation::Reason(8));
}

#[test]
fn a_forged_acknowledgement_quarantines_its_grain() {
    let mut house = House::new();
    for _ in 0..LANE {
        assert_eq!(house.bus.publish(&delivery(0)), Publish::Done);
    }
    let layout = house.hostile.topology().layout(HOSTILE);
    let head = layout.lanes.iter().find(|lane| lane.source == AGENT);
    let own = house.hostile.segment(HOSTILE).unwrap();
    own.word(head.unwrap().head_at).store(1 << 40, SeqCst);
    assert_eq!(house.bus.publish(&delivery(0)), Publish::Full);
    house.quarantined(Violation::Head {
        head: 1 << 40,
        seen: 0,
        tail: LANE,
    });
}

//! One sandbox with an agent, a hostile family and two innocent ones, all in the test's process;
//! the hostile one writes raw words into its own segment.

use std::mem::offset_of;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use sandpipe::layout::LaneSlot;
use sandpipe::{
    Ack, Bus, ChunkClass, Claimer, Delivery, FamilyIndex, FamilySpec, IncomingLane, Instance,
    Mapping, Memory, MessageHeader, MessageId, Participant, Payload, Place, Receiver, Refusal,
    SlotIndex, Target, Topology, TraceStamps, Violation,
};

use crate::sandbox::{Sandbox, Watchdog, payload};

pub const AGENT: FamilyIndex = FamilyIndex::AGENT;
pub const HOSTILE: FamilyIndex = FamilyIndex(1);
pub const INNOCENT: FamilyIndex = FamilyIndex(2);
pub const CONSUMER: FamilyIndex = FamilyIndex(3);
/// A family that never attaches; with its descriptors the hint page can be mapped by hand.
pub const SPARE: FamilyIndex = FamilyIndex(4);
pub const S0: SlotIndex = SlotIndex(0);

/// Slots of every lane.
pub const LANE: u64 = 8;
/// Chunks of 4096 bytes of every family.
pub const CHUNKS: u32 = 32;

pub fn topology() -> Topology {
    let family = |queues: &[FamilyIndex]| FamilySpec {
        slots: 2,
        targets: queues
            .iter()
            .map(|&queue| Target {
                queue,
                lane_slots: LANE as u32,
            })
            .collect(),
        chunks: vec![ChunkClass {
            bytes: 4096,
            count: CHUNKS,
        }],
    };
    let families = vec![
        family(&[HOSTILE, INNOCENT, CONSUMER]),
        family(&[AGENT, CONSUMER]),
        family(&[AGENT, CONSUMER]),
        family(&[AGENT]),
        family(&[AGENT]),
    ];
    Topology::new(families).unwrap()
}

pub fn header(id: u128, queue: FamilyIndex) -> MessageHeader {
    MessageHeader::event(MessageId(id), MessageId(id), MessageId::NONE, queue)
}

/// Publishes one honest message; large payloads in a chunk. False if there is no room.
pub fn publish(instance: &mut Instance<Mapping>, to: &[FamilyIndex], id: u128) -> bool {
    let bytes = payload(id, 0);
    let Ok(loan) = instance.loan(bytes.len()) else {
        return false;
    };
    instance.write(&loan, 0, &bytes);
    let staged = to.iter().all(|&queue| {
        let header = header(id, CONSUMER);
        let payload = Payload::Loaned(&loan);
        let staged = instance.stage(queue, &header, payload, TraceStamps::default());
        staged.is_ok()
    });
    if staged {
        instance.commit(Ack::NOTHING);
    } else {
        instance.discard();
        instance.give_back(loan);
    }
    staged
}

pub struct House {
    pub sandbox: Sandbox,
    pub agent: Bus<Mapping>,
    pub hostile: Bus<Mapping>,
    pub receiver: Receiver<Mapping>,
    pub claimer: Claimer<Mapping>,
    consumer: Bus<Mapping>,
    consumer_instance: Instance<Mapping>,
    innocent: Instance<Mapping>,
    sent: u128,
    participants: Vec<Participant>,
    _watchdog: Watchdog,
}

/// Tells a test's other thread to end, also when the test fails: a scope waits for its threads.
pub struct Stop<'a>(pub &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

impl House {
    pub fn new() -> House {
        House::with_watchdog(Duration::from_secs(100))
    }

    pub fn with_growth(bytes: u64) -> House {
        House::of(topology().with_growth(bytes), Duration::from_secs(100))
    }

    pub fn with_watchdog(limit: Duration) -> House {
        House::of(topology(), limit)
    }

    fn of(topology: Topology, limit: Duration) -> House {
        let watchdog = Watchdog::new(limit);
        let mut sandbox = Sandbox::new(topology);
        let mut members = [AGENT, HOSTILE, INNOCENT, CONSUMER].map(|family| sandbox.join(family));
        for (participant, bus) in &mut members {
            participant.update(bus).unwrap();
        }
        let buses: Vec<_> = members.iter().map(|(_, bus)| bus.clone()).collect();
        let participants = members.into_iter().map(|(participant, _)| participant);
        House {
            sandbox,
            receiver: buses[0].receiver(),
            agent: buses[0].clone(),
            hostile: buses[1].clone(),
            innocent: buses[2].instance(S0),
            claimer: buses[3].claimer(S0),
            consumer_instance: buses[3].instance(S0),
            consumer: buses[3].clone(),
            sent: 1 << 64,
            participants: participants.collect(),
            _watchdog: watchdog,
        }
    }

    pub fn hint_page(&mut self, family: FamilyIndex) -> Mapping {
        hint_page(&mut self.sandbox, family)
    }

    /// Readers as after a restart of agent and consumer; whether the old ones had refused anything.
    pub fn renew_readers(&mut self) -> bool {
        let refused = self.receiver.refusals().count() + self.claimer.refusals().count();
        self.receiver = self.agent.receiver();
        self.claimer = self.consumer.claimer(S0);
        refused > 0
    }

    pub fn park(&self, family: FamilyIndex, timeout: Duration) {
        let bell = self.agent.bell(family);
        bell.prepare().sleep(timeout);
    }

    pub fn participant(&mut self, family: FamilyIndex) -> &mut Participant {
        &mut self.participants[family.index()]
    }

    /// The hostile family's own segment, which it may write as it likes.
    pub fn raw(&self) -> &Mapping {
        self.hostile.segment(HOSTILE).unwrap()
    }

    pub fn poke(&self, at: usize, value: u64) {
        self.raw().word(at).store(value, SeqCst);
    }

    pub fn peek(&self, at: usize) -> u64 {
        self.raw().word(at).load(SeqCst)
    }

    /// The hostile family's lane from slot 0 to `queue`, as its consumer finds it.
    pub fn lane(&self, queue: FamilyIndex) -> IncomingLane {
        let layout = self.agent.topology().layout(queue);
        let lane = layout.lanes.iter().find(|lane| lane.source == HOSTILE);
        *lane.unwrap()
    }

    /// Where the slot of a position of that lane lies.
    pub fn slot(&self, queue: FamilyIndex, position: u64) -> usize {
        let index = (position % LANE) as usize;
        self.lane(queue).slots_at + index * size_of::<LaneSlot>()
    }

    /// Writes a message as raw words, stamp last.
    pub fn forge(&self, queue: FamilyIndex, position: u64, words: Raw) {
        self.forge_stamped(queue, position, words, position + 1);
    }

    pub fn forge_stamped(&self, queue: FamilyIndex, position: u64, words: Raw, stamp: u64) {
        let at = self.slot(queue, position);
        for (index, word) in words.words().into_iter().enumerate() {
            self.poke(at + 8 + index * 8, word);
        }
        self.poke(at, stamp);
    }

    /// The innocent family publishes to the agent and to the consumer, round after round; both get
    /// every message once, in order, with every byte.
    pub fn innocents_lose_nothing(&mut self) {
        for round in 0..5 * LANE {
            self.sent += 1;
            let id = self.sent;
            let sent = publish(&mut self.innocent, &[AGENT, CONSUMER], id);
            assert!(sent, "round {round}: no room for an innocent message");
            let (delivery, place) = self.receive_honest();
            assert_eq!(delivery.message.header.id, MessageId(id));
            assert_eq!(self.agent.payload(&delivery).unwrap(), payload(id, 0));
            self.receiver.acknowledge(place);
            let delivery = loop {
                let claimed = self.claimer.claim(|| 1).expect("the consumer's message");
                if claimed.source == INNOCENT {
                    break claimed;
                }
                self.consumer_instance.commit(claimed.ack);
                self.claimer.finish();
            };
            assert_eq!(delivery.message.header.id, MessageId(id));
            assert_eq!(self.consumer.payload(&delivery).unwrap(), payload(id, 0));
            self.consumer_instance.commit(delivery.ack);
            self.claimer.finish();
        }
        assert!(self.receiver.receive().is_none(), "an invented message");
    }

    fn receive_honest(&mut self) -> (Delivery, Place) {
        loop {
            let (delivery, place) = self.receiver.receive().expect("the agent's message");
            if delivery.source == INNOCENT {
                return (delivery, place);
            }
            self.receiver.acknowledge(place);
        }
    }

    /// The agent reads what there is; the hostile family is found out for exactly this, once, and
    /// nothing that it writes afterwards is read.
    pub fn agent_refuses(&mut self, violation: Violation) {
        while let Some((delivery, place)) = self.receiver.receive() {
            assert_ne!(delivery.source, HOSTILE, "{delivery:?} was believed");
            self.receiver.acknowledge(place);
        }
        let refusal = Refusal {
            family: HOSTILE,
            violation,
        };
        assert_eq!(self.receiver.take_refusal(), Some(refusal));
        assert_eq!(self.receiver.take_refusal(), None, "said once");
        assert_eq!(self.receiver.refusals().count(), 1);
        assert_eq!(self.receiver.refusals().of(HOSTILE), Some(violation));
        assert_eq!(self.receiver.refusals().of(INNOCENT), None);
        for position in 0..LANE {
            self.forge(AGENT, position, Raw::event(99));
        }
        self.participants[0].update(&mut self.agent).unwrap();
        self.receiver.rebind(&self.agent);
        assert!(
            !self.receiver.has_message(),
            "a quarantined lane is looked at"
        );
        assert!(self.receiver.receive().is_none());
        self.innocents_lose_nothing();
        assert_eq!(self.receiver.refusals().count(), 1);
    }

    /// The same for an instance of the consumer, on the lane that leads to it.
    pub fn consumer_refuses(&mut self, violation: Violation) {
        assert_eq!(self.claimer.claim(|| 1), None);
        let refusal = Refusal {
            family: HOSTILE,
            violation,
        };
        assert_eq!(self.claimer.take_refusal(), Some(refusal));
        assert_eq!(self.claimer.refusals().count(), 1);
        assert!(
            !self.claimer.has_message(),
            "a quarantined lane is looked at"
        );
        assert_eq!(
            self.consumer.slot_started_ns(S0),
            0,
            "an idle instance is not timed"
        );
        self.innocents_lose_nothing();
        assert_eq!(self.claimer.refusals().count(), 1);
    }
}

/// The hint page, mapped by hand with the descriptors of a family that never attaches.
pub fn hint_page(sandbox: &mut Sandbox, family: FamilyIndex) -> Mapping {
    let socket = sandbox.admit(family);
    let hello = sandpipe::attach::AttachMessage::Hello {
        version: sandpipe::layout::LAYOUT_VERSION,
        hash: sandpipe::layout::layout_hash(),
        family,
    };
    sandpipe::socket::send(&socket, &hello.encode(), &[]).unwrap();
    sandbox.serve();
    let (_, fds) = sandpipe::socket::receive(&socket, true).unwrap();
    Mapping::new(&fds[1], 4096, true, 4096).unwrap()
}

/// The words of a message, each of which may be a lie.
#[derive(Clone, Copy, Debug)]
pub struct Raw {
    pub id: u64,
    pub len: u64,
    pub kind: u64,
    pub queue: u64,
    pub flags: u64,
    pub body: u64,
}

impl Raw {
    pub const CHUNK: u64 = 1;

    /// What an honest family would send.
    pub fn event(id: u64) -> Raw {
        Raw {
            id,
            len: 8,
            kind: 1,
            queue: u64::from(CONSUMER.0),
            flags: 0,
            body: 5,
        }
    }

    /// The word that says what it is.
    pub fn meta(self) -> u64 {
        self.len | self.kind << 32 | self.queue << 40 | self.flags << 48
    }

    pub fn words(self) -> [u64; 15] {
        let mut words = [0; 15];
        let mut put = |at: usize, word: u64| words[at / 8 - 1] = word;
        put(offset_of!(LaneSlot, id), self.id);
        put(offset_of!(LaneSlot, root), self.id);
        put(offset_of!(LaneSlot, meta), self.meta());
        put(offset_of!(LaneSlot, payload), self.body);
        words
    }
}

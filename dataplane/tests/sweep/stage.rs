//! What the sweeps are about: an agent, a grain and the next grain, in a known state.

use sandpipe::layout::HintBlock;
use sandpipe::{
    Ack, Bus, ChunkClass, Claimer, Delivery, FamilyIndex, FamilySpec, Instance, Mapping, Memory,
    MessageHeader, MessageId, Payload, Receiver, SlotIndex, StageError, Target, Topology,
    TraceStamps,
};
use std::mem::offset_of;
use std::sync::atomic::Ordering;

use crate::sandbox::{Sandbox, payload};

pub const AGENT: FamilyIndex = FamilyIndex::AGENT;
pub const GRAIN: FamilyIndex = FamilyIndex(1);
pub const NEXT: FamilyIndex = FamilyIndex(2);
pub const S0: SlotIndex = SlotIndex(0);

/// Messages that a lane holds.
pub const LANE: u64 = 8;

/// How the grain receives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    /// Through the in-flight table, shared with other instances.
    Claim,
    /// In place, alone.
    Exclusive,
}

/// How the payload travels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Carry {
    Inline,
    Chunk,
}

fn topology() -> Topology {
    let chunks = vec![ChunkClass {
        bytes: 256,
        count: 8,
    }];
    let family = |queues: &[FamilyIndex]| FamilySpec {
        slots: 1,
        targets: queues
            .iter()
            .map(|&queue| Target {
                queue,
                lane_slots: LANE as u32,
            })
            .collect(),
        chunks: chunks.clone(),
    };
    Topology::new(vec![
        family(&[GRAIN]),
        family(&[AGENT, NEXT]),
        family(&[AGENT]),
    ])
    .unwrap()
}

/// A grain with everything made beforehand, so that only the bus's own steps are swept.
pub struct Grain {
    pub instance: Instance<Mapping>,
    pub claimer: Claimer<Mapping>,
    pub receiver: Receiver<Mapping>,
    mode: Mode,
    carry: Carry,
}

/// An input in the grain's hands.
pub type Taken = (Delivery, Option<sandpipe::Place>);

impl Grain {
    pub fn new(bus: &Bus<Mapping>, mode: Mode, carry: Carry) -> Grain {
        Grain {
            instance: bus.instance(S0),
            claimer: bus.claimer(S0),
            receiver: bus.receiver(),
            mode,
            carry,
        }
    }

    /// The work on one message; false if there is none.
    pub fn handle_one(&mut self) -> bool {
        let Some(taken) = self.take() else {
            return false;
        };
        let input = taken.0.message.header;
        let bytes = answer_to(input.root);
        self.stage(input, &bytes);
        self.instance.commit(taken.0.ack);
        self.finish(&taken);
        true
    }

    pub fn take(&mut self) -> Option<Taken> {
        match self.mode {
            Mode::Claim => Some((self.claimer.claim(|| 1)?, None)),
            Mode::Exclusive => {
                let (delivery, place) = self.receiver.receive()?;
                Some((delivery, Some(place)))
            }
        }
    }

    /// Stages the answer for the agent and for the next grain.
    pub fn stage(&mut self, input: MessageHeader, bytes: &[u8]) {
        let header = MessageHeader::event(CHILD, input.root, input.id, NEXT);
        let loan = (self.carry == Carry::Chunk).then(|| {
            let loan = self.instance.loan(bytes.len()).expect("a chunk is free");
            self.instance.write(&loan, 0, bytes);
            loan
        });
        for queue in [AGENT, NEXT] {
            let body = loan
                .as_ref()
                .map_or(Payload::Inline(bytes), Payload::Loaned);
            self.instance
                .stage(queue, &header, body, TraceStamps::default())
                .expect("there is room");
        }
    }

    pub fn finish(&mut self, (_, place): &Taken) {
        match place {
            None => self.claimer.finish(),
            Some(place) => self.receiver.acknowledged(*place),
        }
    }
}

/// Every output has this id: deriving one is not the bus's work.
pub const CHILD: MessageId = MessageId(1);

/// Root of the message with this number; its payload has 60 bytes.
pub fn root_of(number: u64) -> MessageId {
    MessageId((number * 4 + 1).into())
}

pub fn answer_to(root: MessageId) -> Vec<u8> {
    payload(root.0, 1)
}

/// What all segments held when they were looked at last: an instruction that changed no shared
/// word leaves to recovery exactly what the instruction before it left.
pub struct Watch {
    segments: Vec<Mapping>,
    words: Vec<u64>,
}

impl Watch {
    pub fn new(world: &World) -> Watch {
        let segment = |family| world.view(family).segment(family).unwrap().clone();
        Watch {
            segments: [AGENT, GRAIN, NEXT].map(segment).to_vec(),
            words: Vec::new(),
        }
    }

    /// Whether anything has changed since the last call; true the first time.
    pub fn changed(&mut self) -> bool {
        let words = |segment: &Mapping| {
            let words = segment.words(0, segment.len() / 8).iter();
            words
                .map(|word| word.load(Ordering::Relaxed))
                .collect::<Vec<_>>()
        };
        let now = self.segments.iter().flat_map(words).collect();
        let before = std::mem::replace(&mut self.words, now);
        before != self.words
    }
}

/// A sandbox, and the hint page as everybody sees it.
pub struct World {
    pub sandbox: Sandbox,
    hints: Mapping,
}

impl World {
    /// Segments made and sealed, nothing in them.
    pub fn empty() -> World {
        let mut sandbox = Sandbox::new(topology());
        let pages = [AGENT, GRAIN, NEXT].map(|family| sandbox.make_sealed(family));
        World {
            sandbox,
            hints: pages[0].clone(),
        }
    }

    /// `before` messages went all the way, `unread` more wait at the agent and the next grain,
    /// and `waiting` wait for the grain.
    pub fn prepared(before: u64, unread: u64, waiting: u64, mode: Mode, carry: Carry) -> World {
        let world = World::empty();
        for number in 0..before + unread {
            assert!(world.send(root_of(number)));
            let bus = world.view(GRAIN);
            assert!(Grain::new(&bus, mode, carry).handle_one());
            if number < before {
                let root = root_of(number);
                assert_eq!(world.consume(), (vec![root], vec![root]));
            }
        }
        for number in before + unread..before + unread + waiting {
            assert!(world.send(root_of(number)));
        }
        world
    }

    pub fn view(&self, family: FamilyIndex) -> Bus<Mapping> {
        self.sandbox.guardian.view(family).unwrap()
    }

    /// The agent sends one message to the grain; false if the lane is full.
    pub fn send(&self, root: MessageId) -> bool {
        let header = MessageHeader::event(root, root, MessageId::NONE, GRAIN);
        let mut agent = self.view(AGENT).instance(S0);
        let bytes = payload(root.0, 0);
        let body = Payload::Inline(&bytes);
        let staged = agent.stage(GRAIN, &header, body, TraceStamps::default());
        assert!(matches!(staged, Ok(()) | Err(StageError::Full(_))));
        if staged.is_ok() {
            agent.commit(Ack::NOTHING);
        }
        staged.is_ok()
    }

    /// Takes everything that reached the agent and the next grain; their roots, in order.
    pub fn consume(&self) -> (Vec<MessageId>, Vec<MessageId>) {
        let take = |family: FamilyIndex| {
            let bus = self.view(family);
            let mut receiver = bus.receiver();
            let mut seen = Vec::new();
            while let Some((delivery, place)) = receiver.receive() {
                let root = delivery.message.header.root;
                assert_eq!(delivery.message.header.id, CHILD, "invented");
                assert_eq!(bus.payload(&delivery).unwrap(), answer_to(root), "torn");
                receiver.acknowledge(place);
                seen.push(root);
            }
            seen
        };
        (take(AGENT), take(NEXT))
    }

    /// The bell of a queue, and how many sleepers are announced (the count's low half).
    pub fn hint(&self, queue: FamilyIndex) -> (u64, u64) {
        let at = queue.index() * size_of::<HintBlock>();
        let word = |field: usize| self.hints.word(at + field).load(Ordering::SeqCst);
        (
            word(offset_of!(HintBlock, bell)),
            word(offset_of!(HintBlock, parked)) & 0xffff_ffff,
        )
    }

    /// A world whose segments hold what those of this one hold at this moment.
    pub fn copy(&self) -> World {
        let copy = World::empty();
        for family in [AGENT, GRAIN, NEXT] {
            let [from, to] = [self, &copy].map(|of| of.view(family));
            let [from, to] = [&from, &to].map(|bus| bus.segment(family).unwrap());
            for at in (0..from.len()).step_by(8) {
                let word = from.word(at).load(Ordering::Relaxed);
                to.word(at).store(word, Ordering::Relaxed);
            }
        }
        copy
    }

    /// Nobody holds anything any more.
    pub fn assert_at_rest(&self, what: &str) {
        for family in [AGENT, GRAIN, NEXT] {
            let audit = self.view(family).audit(family);
            assert_eq!(
                audit,
                sandpipe::Audit::default(),
                "{what}: family {}",
                family.0
            );
        }
    }

    /// The survivors go on: a whole lane of messages goes all the way, and not one more fits.
    pub fn assert_goes_on(&self, mode: Mode, carry: Carry, what: &str) {
        let roots: Vec<_> = (0..LANE).map(|number| root_of(1 << 40 | number)).collect();
        for &root in &roots {
            assert!(self.send(root), "{what}: a slot of the lane is lost");
        }
        assert!(!self.send(root_of(0)), "{what}: the lane has grown");
        let bus = self.view(GRAIN);
        let mut grain = Grain::new(&bus, mode, carry);
        while grain.handle_one() {}
        assert_eq!(self.consume(), (roots.clone(), roots), "{what}");
    }
}

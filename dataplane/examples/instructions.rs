//! The hot operations of the local bus, each in a function of its own, for counting instructions:
//! `cargo xtask instructions` runs this under callgrind. Both families are in one process.

use sandpipe::{
    Ack, Bus, ChunkClass, Claimer, Delivery, FamilyIndex, FamilySpec, Instance, Loan, Mapping,
    MessageHeader, MessageId, Payload, Place, Receiver, SlotIndex, Target, Topology, TraceStamps,
    segment,
};

const AGENT: FamilyIndex = FamilyIndex(0);
const SENDER: FamilyIndex = FamilyIndex(1);
const TAKER: FamilyIndex = FamilyIndex(2);
const POOL: FamilyIndex = FamilyIndex(3);
const TIMES: u64 = 1000;

fn main() {
    let buses = sandbox();
    let [_, sender, taker, pool] = &buses;
    let mut instance = sender.instance(SlotIndex(0));
    let mut answering = taker.instance(SlotIndex(0));
    let mut receiver = taker.receiver();
    let mut claimer = pool.claimer(SlotIndex(0));
    let mut pooled = pool.instance(SlotIndex(0));
    let (mut delivery, mut bytes) = (Delivery::default(), [0; 64]);
    for turn in 0..TIMES {
        publish(&mut instance, TAKER, turn);
        let place = receive(taker, &mut receiver, &mut delivery, &mut bytes);
        acknowledge(&mut answering, &mut receiver, &delivery, place);
        publish_with_copy(&mut instance, TAKER, turn);
        let place = receive(taker, &mut receiver, &mut delivery, &mut bytes);
        acknowledge(&mut answering, &mut receiver, &delivery, place);
        let loan = loan(&mut instance);
        release(&mut instance, loan);
        publish(&mut instance, POOL, turn);
        claim(&mut claimer, &mut delivery);
        commit(&mut pooled, &delivery);
        finish(&mut claimer);
        drain(&buses[0]);
    }
}

/// Publishes 64 bytes.
#[inline(never)]
fn publish(instance: &mut Instance<Mapping>, to: FamilyIndex, turn: u64) {
    stage(instance, to, to, turn);
    instance.commit(Ack::NOTHING);
}

/// The same together with the agent's copy.
#[inline(never)]
fn publish_with_copy(instance: &mut Instance<Mapping>, to: FamilyIndex, turn: u64) {
    stage(instance, AGENT, to, turn);
    stage(instance, to, to, turn);
    instance.commit(Ack::NOTHING);
}

#[inline(always)]
fn stage(instance: &mut Instance<Mapping>, queue: FamilyIndex, to: FamilyIndex, turn: u64) {
    let id = MessageId(u128::from(turn) + 1);
    let header = MessageHeader::event(id, id, MessageId::NONE, to);
    instance
        .stage(
            queue,
            &header,
            Payload::Inline(&[7; 64]),
            TraceStamps::default(),
        )
        .expect("the lane is emptied each turn");
}

/// Receives 64 bytes and copies them out.
#[inline(never)]
fn receive(
    bus: &Bus<Mapping>,
    receiver: &mut Receiver<Mapping>,
    delivery: &mut Delivery,
    bytes: &mut [u8; 64],
) -> Place {
    let place = receiver.receive_into(delivery).expect("published before");
    let payload = bus.payload_of(delivery).expect("inline");
    payload.copy_to(bytes);
    place
}

/// Commits nothing but a receiver's acknowledgement.
#[inline(never)]
fn acknowledge(
    instance: &mut Instance<Mapping>,
    receiver: &mut Receiver<Mapping>,
    delivery: &Delivery,
    place: Place,
) {
    instance.commit(delivery.ack);
    receiver.acknowledged(place);
}

/// Takes a chunk.
#[inline(never)]
fn loan(instance: &mut Instance<Mapping>) -> Loan {
    instance.loan(1024).expect("given back each turn")
}

/// Gives it back.
#[inline(never)]
fn release(instance: &mut Instance<Mapping>, loan: Loan) {
    instance.give_back(loan);
}

/// Claims through the in-flight table.
#[inline(never)]
fn claim(claimer: &mut Claimer<Mapping>, delivery: &mut Delivery) {
    assert!(claimer.claim_into(|| 1, delivery), "published before");
}

/// Commits nothing but a claimer's acknowledgement.
#[inline(never)]
fn commit(instance: &mut Instance<Mapping>, delivery: &Delivery) {
    instance.commit(delivery.ack);
}

/// Makes the slot idle again.
#[inline(never)]
fn finish(claimer: &mut Claimer<Mapping>) {
    claimer.finish();
}

/// Empties the agent's queue; not counted.
fn drain(bus: &Bus<Mapping>) {
    let mut receiver = bus.receiver();
    while let Some((_, place)) = receiver.receive() {
        receiver.acknowledge(place);
    }
    receiver.receive();
}

/// Every family's bus over fresh segments that this process maps once each.
fn sandbox() -> [Bus<Mapping>; 4] {
    let target = |queue| Target {
        queue,
        lane_slots: 64,
    };
    let family = |slots, targets| FamilySpec {
        slots,
        targets,
        chunks: vec![ChunkClass {
            bytes: 1024,
            count: 16,
        }],
    };
    let topology = Topology::new(vec![
        family(1, vec![]),
        family(1, vec![target(AGENT), target(TAKER), target(POOL)]),
        family(1, vec![target(AGENT)]),
        family(4, vec![target(AGENT)]),
    ])
    .expect("the numbers are in bounds");
    let map = |bytes: usize| {
        let fd = segment::create("sandpipe-instructions", bytes).expect("a memfd");
        Mapping::new(&fd, bytes, true, bytes).expect("a mapping")
    };
    let families = [AGENT, SENDER, TAKER, POOL];
    let segments = families.map(|family| map(topology.layout(family).bytes));
    let hints = map(sandpipe::layout::PAGE);
    families.map(|family| {
        let own = segments[usize::from(family.0)].clone();
        let mut bus = Bus::new(topology.clone(), family, own, hints.clone());
        for other in families.into_iter().filter(|&other| other != family) {
            bus.set_peer(other, segments[usize::from(other.0)].clone());
        }
        bus
    })
}

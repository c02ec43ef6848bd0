//! loom models: every schedule of the ring core's hand-overs, up to two preemptions.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release -p sandpipe --lib`

mod blocked;
pub(crate) mod death;
mod growth;
mod lease;
mod orderings;

use core::time::Duration;

use loom::thread;
use sandpipe_abi::MessageId;

use crate::memory::Memory;
use crate::recover::recover_slot;
use crate::sync::{Ordering, full_fence};
use crate::{
    Ack, Bell, Bus, ChunkClass, Delivery, FamilyIndex, FamilySpec, HeapMemory, Instance,
    MessageHeader, Payload, SlotIndex, Target, Topology, TraceStamps,
};

const AGENT: FamilyIndex = FamilyIndex::AGENT;
const GRAIN: FamilyIndex = FamilyIndex(1);
const S0: SlotIndex = SlotIndex(0);
const S1: SlotIndex = SlotIndex(1);

/// The agent publishes to one grain with `slots` instances.
fn pair(slots: u16, chunks: Vec<ChunkClass>) -> (Bus<HeapMemory>, Bus<HeapMemory>) {
    pair_of(slots, chunks, 0)
}

/// The same, with pools that may grow by so many bytes.
fn pair_of(
    slots: u16,
    chunks: Vec<ChunkClass>,
    growth_bytes: u64,
) -> (Bus<HeapMemory>, Bus<HeapMemory>) {
    let agent = FamilySpec {
        slots: 1,
        targets: vec![Target {
            queue: GRAIN,
            lane_slots: 2,
        }],
        chunks,
    };
    let grain = FamilySpec {
        slots,
        targets: vec![],
        chunks: vec![],
    };
    let topology = Topology::new(vec![agent, grain])
        .unwrap()
        .with_growth(growth_bytes);
    let segments = [AGENT, GRAIN].map(|family| HeapMemory::new(topology.layout(family).span()));
    let hints = HeapMemory::new(256);
    let view = |own: FamilyIndex, peer: FamilyIndex| {
        let memory = segments[own.index()].clone();
        let mut bus = Bus::new(topology.clone(), own, memory, hints.clone());
        bus.set_peer(peer, segments[peer.index()].clone());
        bus
    };
    (view(AGENT, GRAIN), view(GRAIN, AGENT))
}

/// The first word of a delivery's chunk; the copy in its head is not what the models watch.
fn in_chunk(bus: &Bus<HeapMemory>, delivery: &Delivery) -> u64 {
    let (segment, at) = bus.locate(delivery).unwrap();
    let mut bytes = [0; 8];
    segment.copy_out(at, &mut bytes);
    u64::from_le_bytes(bytes)
}

fn send(instance: &mut Instance<HeapMemory>, id: u64) -> bool {
    let header = MessageHeader::event(
        MessageId(id.into()),
        MessageId::NONE,
        MessageId::NONE,
        GRAIN,
    );
    let payload = id.to_le_bytes();
    let staged = instance
        .stage(
            GRAIN,
            &header,
            Payload::Inline(&payload),
            TraceStamps::default(),
        )
        .is_ok();
    if staged {
        instance.commit(Ack::NOTHING);
    }
    staged
}

fn model(check: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.max_branches = 20_000;
    builder.check(check);
}

#[test]
fn a_received_message_is_whole_and_its_slot_is_not_overwritten_before_it_is_free() {
    model(|| {
        let (agent, grain) = pair(1, vec![]);
        let producer = thread::spawn(move || {
            let mut instance = agent.instance(S0);
            let mut id = 1;
            while id <= 3 {
                if send(&mut instance, id) {
                    id += 1;
                } else {
                    thread::yield_now();
                }
            }
        });
        let mut receiver = grain.receiver();
        let mut seen = 0_u64;
        while seen < 3 {
            match receiver.receive() {
                Some((delivery, place)) => {
                    seen += 1;
                    assert_eq!(delivery.message.header.id, MessageId(seen.into()));
                    assert_eq!(grain.payload(&delivery).unwrap(), seen.to_le_bytes());
                    receiver.acknowledge(place);
                }
                None => thread::yield_now(),
            }
        }
        producer.join().unwrap();
    });
}

#[test]
fn a_parked_consumer_never_misses_the_bell() {
    model(|| {
        let (agent, grain) = pair(1, vec![]);
        let producer = thread::spawn(move || assert!(send(&mut agent.instance(S0), 1)));
        let mut receiver = grain.receiver();
        let bell = grain.bell(GRAIN);
        while receiver.receive().is_none() {
            let parking = bell.prepare();
            if receiver.has_message() {
                parking.cancel();
            } else {
                parking.sleep(Duration::MAX);
            }
        }
        producer.join().unwrap();
    });
}

/// A bell on a page of its own, and a counter beside it that stands for a lane.
fn bell_and_counter(parked: u64) -> (Bell<HeapMemory>, HeapMemory) {
    let page = HeapMemory::new(64);
    page.word(8).store(parked, Ordering::SeqCst);
    (Bell::new(page.clone(), FamilyIndex(0)), page)
}

/// Makes the counter 1, then 2, and rings for each.
fn publish_two(bell: &Bell<HeapMemory>, page: &HeapMemory) {
    for value in 1..=2 {
        page.word(COUNTER_AT).store(value, Ordering::Release);
        full_fence();
        bell.ring_if_parked();
    }
}

/// Waits for 1, then for 2.
fn await_two(bell: &Bell<HeapMemory>, page: &HeapMemory) {
    let arrived = |value| page.word(COUNTER_AT).load(Ordering::Acquire) >= value;
    for value in 1..=2 {
        while !arrived(value) {
            let parking = bell.prepare();
            if arrived(value) {
                parking.cancel();
            } else {
                parking.sleep(Duration::MAX);
            }
        }
    }
}

const COUNTER_AT: usize = 32;

#[test]
fn a_cancelled_announcement_takes_no_other_sleepers_bell() {
    model(|| {
        let (bell, page) = bell_and_counter(0);
        let (other, other_page) = (bell.clone(), page.clone());
        let (sleeper, sleepers_page) = (bell.clone(), page.clone());
        // Who cancels runs first: within two preemptions a ring can take its announcement off and
        // the sleeper make one of its own before it goes on.
        let publisher = thread::spawn(move || publish_two(&other, &other_page));
        let sleeper = thread::spawn(move || await_two(&sleeper, &sleepers_page));
        bell.prepare().cancel();
        publisher.join().unwrap();
        sleeper.join().unwrap();
    });
}

#[test]
fn the_count_that_the_dead_left_is_set_to_zero_and_no_bell_is_missed() {
    model(|| {
        let (bell, page) = bell_and_counter(2);
        let (other, other_page) = (bell.clone(), page.clone());
        let publisher = thread::spawn(move || publish_two(&other, &other_page));
        await_two(&bell, &page);
        publisher.join().unwrap();
    });
}

#[test]
fn ring_all_wakes_a_sleeper_and_takes_its_announcement_off() {
    model(|| {
        let (bell, page) = bell_and_counter(0);
        let (other, other_page) = (bell.clone(), page.clone());
        let ringer = thread::spawn(move || {
            other_page.word(COUNTER_AT).store(1, Ordering::SeqCst);
            other.ring_all();
            publish_two(&other, &other_page);
        });
        await_two(&bell, &page);
        ringer.join().unwrap();
        assert_eq!(
            page.word(8).load(Ordering::SeqCst) as u32,
            0,
            "nobody sleeps"
        );
    });
}

#[test]
fn two_instances_claim_two_messages_once_each() {
    model(|| {
        let (agent, grain) = pair(2, vec![]);
        let mut producer = agent.instance(S0);
        assert!(send(&mut producer, 1) && send(&mut producer, 2));
        let other = grain.clone();
        let claim_one = |bus: &Bus<HeapMemory>, slot: SlotIndex| {
            let mut claimer = bus.claimer(slot);
            let delivery = claimer
                .claim(|| 1)
                .expect("there are as many messages as claimers");
            assert_eq!(
                bus.payload(&delivery).unwrap(),
                (delivery.message.header.id.0 as u64).to_le_bytes()
            );
            bus.instance(slot).commit(delivery.ack);
            delivery.message.header.id.0
        };
        let thread = thread::spawn(move || claim_one(&other, S1));
        let first = claim_one(&grain, S0);
        assert_eq!(first + thread.join().unwrap(), 3);
        assert!(
            send(&mut producer, 3) && send(&mut producer, 4),
            "both slots are free again"
        );
    });
}

#[test]
fn a_chunk_is_not_loaned_again_while_its_consumer_reads_it() {
    model(|| {
        let (agent, grain) = pair(
            1,
            vec![ChunkClass {
                bytes: 64,
                count: 1,
            }],
        );
        let mut producer = agent.instance(S0);
        let publish = |producer: &mut Instance<HeapMemory>, id: u64| {
            let Ok(loan) = producer.loan(8) else {
                return false;
            };
            producer.write(&loan, 0, &id.to_le_bytes());
            let id = MessageId(id.into());
            let header = MessageHeader::event(id, MessageId::NONE, MessageId::NONE, GRAIN);
            let payload = Payload::Loaned(&loan);
            producer
                .stage(GRAIN, &header, payload, TraceStamps::default())
                .unwrap();
            producer.commit(Ack::NOTHING);
            true
        };
        assert!(publish(&mut producer, 1));
        let consumer = thread::spawn(move || {
            let delivery = grain.claimer(S0).claim(|| 1).unwrap();
            assert_eq!(in_chunk(&grain, &delivery), 1);
            grain.instance(S0).commit(delivery.ack);
        });
        while !publish(&mut producer, 2) {
            thread::yield_now();
        }
        consumer.join().unwrap();
    });
}

#[test]
fn an_orphan_is_adopted_once_while_recovery_and_another_claim_run() {
    model(|| {
        let (agent, grain) = pair(2, vec![]);
        assert!(send(&mut agent.instance(S0), 1));
        // Slot 0 takes the message and dies.
        assert!(grain.claimer(S0).claim(|| 1).is_some());
        let recovering = grain.clone();
        let recoverer = thread::spawn(move || recover_slot(&recovering, S0).orphaned);
        let mut claimer = grain.claimer(S1);
        let early = claimer.claim(|| 1);
        assert_eq!(recoverer.join().unwrap(), 1);
        let late = claimer.claim(|| 1);
        let taken: Vec<_> = [early, late].into_iter().flatten().collect();
        assert_eq!(taken.len(), 1, "exactly one of the two looks found it");
        assert_eq!(taken[0].attempt, 2);
    });
}

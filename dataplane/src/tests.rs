//! The ring core on heap memory: what Miri runs as well.

mod counters;
mod pool;
mod repeated;
mod resting;
mod turns;

use sandpipe_abi::MessageId;

use crate::recover::{recover_family, recover_slot};
use crate::sync::Ordering;
use crate::{
    Ack, Body, Bus, ChunkClass, Claimer, Delivery, FamilyIndex, FamilySpec, HeapMemory, Instance,
    LoanError, Memory, MessageHeader, Payload, SlotIndex, StageError, Target, Topology,
    TopologyError, TraceStamps, derive_child,
};

const AGENT: FamilyIndex = FamilyIndex::AGENT;
const FIRST: FamilyIndex = FamilyIndex(1);
const SECOND: FamilyIndex = FamilyIndex(2);
const S0: SlotIndex = SlotIndex(0);
const S1: SlotIndex = SlotIndex(1);

/// Times around a ring; Miri is slow.
const ROUNDS: u128 = if cfg!(miri) { 3 } else { 20 };

fn topology() -> Topology {
    let chunks = vec![
        ChunkClass {
            bytes: 256,
            count: 3,
        },
        ChunkClass {
            bytes: 1024,
            count: 1,
        },
    ];
    let grain = |next: Option<FamilyIndex>| FamilySpec {
        slots: 2,
        targets: [Some(AGENT), next]
            .into_iter()
            .flatten()
            .map(|queue| Target {
                queue,
                lane_slots: 4,
            })
            .collect(),
        chunks: chunks.clone(),
    };
    let to_grains = [FIRST, SECOND]
        .map(|queue| Target {
            queue,
            lane_slots: 4,
        })
        .to_vec();
    let agent = FamilySpec {
        slots: 1,
        targets: to_grains,
        chunks: chunks.clone(),
    };
    Topology::new(vec![agent, grain(Some(SECOND)), grain(None)]).unwrap()
}

/// All families on the heap, each with the view that its processes would have.
struct Sandbox {
    buses: Vec<Bus<HeapMemory>>,
}

impl Sandbox {
    fn new() -> Sandbox {
        let topology = topology();
        let families = (0..topology.families().len() as u16).map(FamilyIndex);
        let segments: Vec<_> = families
            .clone()
            .map(|family| HeapMemory::new(topology.layout(family).bytes))
            .collect();
        let hints = HeapMemory::new(4096);
        let view = |family: FamilyIndex| {
            let own = segments[family.index()].clone();
            let mut bus = Bus::new(topology.clone(), family, own, hints.clone());
            for (index, segment) in segments.iter().enumerate() {
                if index != family.index() {
                    bus.set_peer(FamilyIndex(index as u16), segment.clone());
                }
            }
            bus
        };
        Sandbox {
            buses: families.map(view).collect(),
        }
    }

    fn bus(&self, family: FamilyIndex) -> &Bus<HeapMemory> {
        &self.buses[family.index()]
    }
}

fn header(id: u128, queue: FamilyIndex) -> MessageHeader {
    MessageHeader::event(MessageId(id), MessageId(id), MessageId::NONE, queue)
}

fn send(
    instance: &mut Instance<HeapMemory>,
    queue: FamilyIndex,
    id: u128,
) -> Result<(), StageError> {
    let payload = id.to_le_bytes();
    instance.stage(
        queue,
        &header(id, queue),
        Payload::Inline(&payload),
        TraceStamps::default(),
    )?;
    instance.commit(Ack::NOTHING);
    Ok(())
}

fn claim(claimer: &mut Claimer<HeapMemory>) -> Option<Delivery> {
    claimer.claim(|| 1)
}

#[test]
fn messages_of_one_producer_arrive_in_order_over_many_wraps_and_full_is_told() {
    let sandbox = Sandbox::new();
    let mut agent = sandbox.bus(AGENT).instance(S0);
    let mut grain = sandbox.bus(FIRST).instance(S0);
    let mut receiver = sandbox.bus(AGENT).receiver();
    let (mut sent, mut seen) = (0_u128, 0_u128);
    for _ in 0..ROUNDS {
        while send(&mut grain, AGENT, sent + 1).is_ok() {
            sent += 1;
        }
        assert_eq!(send(&mut grain, AGENT, 0), Err(StageError::Full(0)));
        while let Some((delivery, place)) = receiver.receive() {
            seen += 1;
            assert_eq!(delivery.message.header.id, MessageId(seen));
            let payload = sandbox.bus(AGENT).payload(&delivery).unwrap();
            assert_eq!(payload, seen.to_le_bytes());
            receiver.acknowledge(place);
        }
    }
    assert_eq!((sent, seen), (ROUNDS * 4, ROUNDS * 4));
    assert!(send(&mut agent, FIRST, 1).is_ok());
    assert_eq!(send(&mut grain, FIRST, 1), Err(StageError::NoLane(1)));
}

#[test]
fn each_message_is_claimed_by_one_instance_and_acknowledged_in_any_order() {
    let sandbox = Sandbox::new();
    let mut agent = sandbox.bus(AGENT).instance(S0);
    let mut claimers = [S0, S1].map(|slot| sandbox.bus(FIRST).claimer(slot));
    let mut instances = [S0, S1].map(|slot| sandbox.bus(FIRST).instance(slot));
    for round in 0..ROUNDS {
        for id in 1..=4 {
            send(&mut agent, FIRST, round * 4 + id).unwrap();
        }
        let first = claim(&mut claimers[0]).unwrap();
        let second = claim(&mut claimers[1]).unwrap();
        assert_ne!(first.message.header.id, second.message.header.id);
        // The lane goes on although nothing is acknowledged yet.
        send(&mut agent, FIRST, 1000).unwrap();
        instances[1].commit(second.ack);
        claimers[1].finish();
        instances[0].commit(first.ack);
        claimers[0].finish();
        for _ in 0..3 {
            let delivery = claim(&mut claimers[0]).unwrap();
            instances[0].commit(delivery.ack);
            claimers[0].finish();
        }
        assert_eq!(claim(&mut claimers[1]), None);
        assert!(!claimers[0].has_message());
    }
}

#[test]
fn a_commit_shows_the_agents_copy_and_the_message_and_frees_the_input_together() {
    let sandbox = Sandbox::new();
    send(&mut sandbox.bus(AGENT).instance(S0), FIRST, 7).unwrap();
    let mut claimer = sandbox.bus(FIRST).claimer(S0);
    let mut instance = sandbox.bus(FIRST).instance(S0);
    let input = claim(&mut claimer).unwrap();
    let child = derive_child(MessageId(7), 0);
    let mut backup = MessageHeader::event(child, MessageId(7), MessageId(7), SECOND);
    let trace = TraceStamps::default();
    instance
        .stage(SECOND, &backup, Payload::Inline(b"out"), trace)
        .unwrap();
    backup.last = true;
    instance
        .stage(AGENT, &backup, Payload::Inline(b"out"), trace)
        .unwrap();
    let mut agent = sandbox.bus(AGENT).receiver();
    let mut next = sandbox.bus(SECOND).claimer(S0);
    assert!(
        agent.receive().is_none() && claim(&mut next).is_none(),
        "staged is not visible"
    );
    instance.commit(input.ack);
    claimer.finish();
    let (copy, _) = agent.receive().unwrap();
    let message = claim(&mut next).unwrap();
    assert_eq!(copy.message.header, backup);
    assert_eq!(message.message.header.id, child);
    assert_eq!(sandbox.bus(SECOND).payload(&message).unwrap(), b"out");
    assert!(claim(&mut claimer).is_none(), "the input is acknowledged");
}

#[test]
fn a_chunk_comes_back_only_when_every_holder_has_released_it() {
    let sandbox = Sandbox::new();
    let mut producer = sandbox.bus(FIRST).instance(S0);
    let mut agent = sandbox.bus(AGENT).receiver();
    let mut next = sandbox.bus(SECOND).claimer(S0);
    let mut next_instance = sandbox.bus(SECOND).instance(S0);
    let loan = producer.loan(1000).unwrap();
    producer.write(&loan, 0, &[7; 1000]);
    for queue in [AGENT, SECOND] {
        let payload = Payload::Loaned(&loan);
        producer
            .stage(queue, &header(1, queue), payload, TraceStamps::default())
            .unwrap();
    }
    producer.commit(Ack::NOTHING);
    assert_eq!(producer.loan(1000), Err(LoanError::Exhausted { len: 1000 }));
    assert_eq!(producer.chunks_in_use(), (0, 1));
    let (copy, place) = agent.receive().unwrap();
    assert_eq!(sandbox.bus(AGENT).payload(&copy).unwrap(), vec![7; 1000]);
    agent.acknowledge(place);
    assert_eq!(producer.loan(1000), Err(LoanError::Exhausted { len: 1000 }));
    let delivery = claim(&mut next).unwrap();
    assert_eq!(
        producer.loan(1000),
        Err(LoanError::Exhausted { len: 1000 }),
        "in flight"
    );
    next_instance.commit(delivery.ack);
    let again = producer.loan(1000).unwrap();
    producer.give_back(again);
    assert_eq!(producer.chunks_in_use(), (0, 0));
    assert_eq!(
        producer.loan(2000),
        Err(LoanError::TooLarge {
            len: 2000,
            max: 1024
        })
    );
}

#[test]
fn what_a_dead_instance_held_is_delivered_again_with_the_next_attempt() {
    let sandbox = Sandbox::new();
    send(&mut sandbox.bus(AGENT).instance(S0), FIRST, 7).unwrap();
    let bus = sandbox.bus(FIRST);
    let first = claim(&mut bus.claimer(S0)).unwrap();
    let loan = bus.instance(S0).loan(10).unwrap();
    assert_eq!((first.attempt, loan.len()), (1, 10));
    let repair = recover_slot(bus, S0);
    assert_eq!(
        (repair.orphaned, repair.freed_chunks, repair.rolled_forward),
        (1, 1, 0)
    );
    assert_eq!(
        recover_slot(bus, S0).orphaned,
        0,
        "recovery of a recovery changes nothing"
    );
    let mut claimer = bus.claimer(S1);
    assert!(claimer.has_message());
    let second = claim(&mut claimer).unwrap();
    assert_eq!((second.attempt, second.message), (2, first.message));
    bus.instance(S1).commit(second.ack);
    claimer.finish();
    assert_eq!(recover_family(bus).orphaned, 0);
    assert!(claim(&mut bus.claimer(S0)).is_none());
}

#[test]
fn an_instance_stopped_before_it_moved_the_head_blocks_nobody() {
    let sandbox = Sandbox::new();
    let mut agent = sandbox.bus(AGENT).instance(S0);
    let grain = sandbox.bus(FIRST);
    // Two slots with two entries each take a whole lane.
    for (id, slot) in [(1, S0), (2, S0), (3, S1), (4, S1)] {
        send(&mut agent, FIRST, id).unwrap();
        let delivery = claim(&mut grain.claimer(slot)).unwrap();
        grain.instance(slot).commit(delivery.ack);
    }
    // As if nobody had moved the head yet: each one looked at it before the first had its mark.
    let head = grain.own_layout().lanes[0].head_at;
    grain
        .own_memory()
        .word(head)
        .store(0, core::sync::atomic::Ordering::SeqCst);
    let mut agent = sandbox.bus(AGENT).instance(S0);
    assert_eq!(send(&mut agent, FIRST, 5), Err(StageError::Full(1)));
    assert!(!grain.claimer(S1).has_message());
    send(&mut agent, FIRST, 5).unwrap();
    assert!(claim(&mut grain.claimer(S1)).is_some());
}

#[test]
fn an_exclusive_receiver_gets_unacknowledged_messages_again_after_a_restart() {
    let sandbox = Sandbox::new();
    let mut producer = sandbox.bus(FIRST).instance(S0);
    for id in 1..=3 {
        send(&mut producer, AGENT, id).unwrap();
    }
    let mut receiver = sandbox.bus(AGENT).receiver();
    let (_, first) = receiver.receive().unwrap();
    receiver.receive().unwrap();
    assert_eq!(receiver.unacknowledged(), 2);
    receiver.acknowledge(first);
    let (again, _) = sandbox.bus(AGENT).receiver().receive().unwrap();
    assert_eq!((again.message.header.id, again.attempt), (MessageId(2), 2));
}

#[test]
fn a_topology_survives_its_encoding_and_malformed_ones_are_refused() {
    let topology = topology();
    let bytes = topology.encode();
    assert_eq!(Topology::decode(&bytes), Ok(topology));
    for len in 0..bytes.len() {
        assert!(
            Topology::decode(&bytes[..len]).is_err(),
            "{len} bytes of {}",
            bytes.len()
        );
    }
    assert_eq!(Topology::new(vec![]), Err(TopologyError::Families(0)));
    let odd = FamilySpec {
        slots: 1,
        targets: vec![Target {
            queue: FIRST,
            lane_slots: 3,
        }],
        chunks: vec![],
    };
    assert!(Topology::new(vec![odd.clone(), odd]).is_err());
}

#[test]
fn nothing_of_a_segment_overlaps_and_known_offsets_do_not_change() {
    let topology = topology();
    let layout = topology.layout(FIRST);
    assert_eq!(layout.slot_at(S1), 4096 + 640);
    // Two incoming lanes of 4 slots: the agent's one slot.
    assert_eq!(layout.lanes.len(), 1);
    assert_eq!(layout.lanes[0].head_at, 4096 + 2 * 640);
    assert_eq!(layout.entries_at, 4096 + 2 * 640 + 128 + 64);
    assert_eq!(
        layout.outgoing_at,
        (layout.entries_at + 4 * 192).next_multiple_of(128)
    );
    assert_eq!(layout.descriptors_at, layout.outgoing_at + 2 * 2 * 4 * 128);
    assert_eq!(layout.control_bytes % 4096, 0);
    assert!(layout.control_bytes >= layout.descriptors_at + 4 * 192);
    assert_eq!(
        layout.chunk_data(3),
        Some((layout.control_bytes + 4096, 1024))
    );
    assert_eq!(layout.chunk_data(4), None);
    let (own, at) = (HeapMemory::new(layout.bytes), layout.slot_at(S1));
    own.word(at + 576 + 7 * 8).store(5, Ordering::Relaxed); // the last counter of slot 1
    own.word(128 + 8).store(6, Ordering::Relaxed); // lanes that recovery mended
    let bus = Bus::new(topology.clone(), FIRST, own, HeapMemory::new(4096));
    let counters = bus.counters(FIRST);
    assert_eq!((counters.quarantined, counters.recovered_lanes), (5, 6));
    let second = topology.layout(SECOND);
    let lanes: Vec<_> = second
        .lanes
        .iter()
        .map(|lane| (lane.source.0, lane.slot.0))
        .collect();
    assert_eq!(lanes, [(0, 0), (1, 0), (1, 1)]);
    assert_eq!(second.lanes[2].slots_at, layout.outgoing_at + 3 * 4 * 128);
    assert_eq!(HeapMemory::new(12).len(), 16);
}

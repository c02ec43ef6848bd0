//! A slot and its lanes, leased again after a death: recovery and the next holder against those
//! who go on reading, claiming and publishing meanwhile.
//!
//! Two holders never compete for a slot: its worker alone leases it, after waitid. What races is
//! everybody else with what the dead one left and with what its successor does. They start before
//! the death: a thread that is spawned after it has seen all that the dead one did.

use loom::thread;
use sandpipe_abi::MessageId;

use super::death::dead_at;
use super::{GRAIN, S0, S1, in_chunk, model, pair, send};
use crate::recover::{recover_family, recover_slot};
use crate::{Ack, Bus, ChunkClass, HeapMemory, MessageHeader, Payload, SlotIndex, TraceStamps};

/// Kill points of a commit with one output.
const COMMIT_POINTS: usize = 7;
/// The first of them behind the commit word.
const IS_FACT: usize = 3;
/// Kill points of a claim.
const CLAIM_POINTS: usize = 6;

#[test]
fn the_next_holder_of_a_lane_goes_on_where_its_dead_one_ended() {
    for point in 0..=COMMIT_POINTS {
        model(move || {
            let (agent, grain) = pair(1, vec![]);
            let first: u64 = if point < IS_FACT { 2 } else { 1 };
            let consumer = thread::spawn(move || {
                let mut receiver = grain.receiver();
                for id in first..=3 {
                    let (delivery, place) = loop {
                        match receiver.receive() {
                            Some(received) => break received,
                            None => thread::yield_now(),
                        }
                    };
                    assert_eq!(delivery.message.header.id, MessageId(id.into()));
                    assert_eq!(grain.payload(&delivery).unwrap(), id.to_le_bytes(), "torn");
                    receiver.acknowledge(place);
                }
            });
            let former = agent.clone();
            let died = dead_at(point, move || _ = send(&mut former.instance(S0), 1));
            assert_eq!(died, point < COMMIT_POINTS);
            recover_slot(&agent, S0);
            let mut holder = agent.instance(S0);
            for id in 2..=3 {
                while !send(&mut holder, id) {
                    thread::yield_now();
                }
            }
            consumer.join().unwrap();
        });
    }
}

/// Claims one message: which, and at which attempt.
fn claim(bus: &Bus<HeapMemory>, slot: SlotIndex) -> Option<(u64, u16)> {
    let delivery = bus.claimer(slot).claim(|| 1)?;
    let id = delivery.message.header.id.0 as u64;
    assert_eq!(bus.payload(&delivery).unwrap(), id.to_le_bytes(), "torn");
    Some((id, delivery.attempt))
}

#[test]
fn the_next_holder_of_a_claimers_slot_and_its_neighbour_get_each_message_once() {
    for point in 0..=CLAIM_POINTS {
        model(move || {
            let (agent, grain) = pair(2, vec![]);
            let mut producer = agent.instance(S0);
            assert!(send(&mut producer, 1) && send(&mut producer, 2));
            let other = grain.clone();
            let neighbour = thread::spawn(move || claim(&other, S1));
            let former = grain.clone();
            let died = dead_at(point, move || _ = claim(&former, S0));
            assert!(died || point == CLAIM_POINTS);
            recover_slot(&grain, S0);
            let next = claim(&grain, S0);
            let before = [neighbour.join().unwrap(), next];
            // One that looked too early finds the rest now.
            let after = [claim(&grain, S0), claim(&grain, S1)];
            let mut got: Vec<_> = before.into_iter().chain(after).flatten().collect();
            got.sort_unstable();
            let ids: Vec<_> = got.iter().map(|&(id, _)| id).collect();
            assert_eq!(ids, [1, 2], "each once");
            let again = got.iter().filter(|&&(_, attempt)| attempt == 2).count();
            assert!(again <= 1, "the dead one held one at most");
            assert!(
                send(&mut producer, 3) && send(&mut producer, 4),
                "both positions are free again"
            );
        });
    }
}

/// A message with its payload in the only chunk of its publisher.
fn publish_chunk(bus: &Bus<HeapMemory>, number: u64) -> bool {
    let mut producer = bus.instance(S0);
    let Ok(loan) = producer.loan(8) else {
        return false;
    };
    producer.write(&loan, 0, &number.to_le_bytes());
    let id = MessageId(1);
    let header = MessageHeader::event(id, id, MessageId::NONE, GRAIN);
    let payload = Payload::Loaned(&loan);
    let staged = producer.stage(GRAIN, &header, payload, TraceStamps::default());
    assert!(staged.is_ok());
    producer.commit(Ack::NOTHING);
    true
}

fn one_chunk() -> Vec<ChunkClass> {
    let (bytes, count) = (64, 1);
    vec![ChunkClass { bytes, count }]
}

#[test]
fn a_chunk_that_recovery_acknowledges_for_the_dead_was_read_by_it_before() {
    model(|| {
        let (agent, grain) = pair(1, one_chunk());
        assert!(publish_chunk(&agent, 7));
        let publishing = thread::spawn(move || {
            while !publish_chunk(&agent, 8) {
                thread::yield_now();
            }
        });
        let former = grain.clone();
        let died = dead_at(CLAIM_POINTS + IS_FACT, move || {
            let delivery = former.claimer(S0).claim(|| 1).unwrap();
            assert_eq!(in_chunk(&former, &delivery), 7);
            former.instance(S0).commit(delivery.ack);
        });
        assert!(died);
        let repair = recover_slot(&grain, S0);
        assert_eq!((repair.rolled_forward, repair.orphaned), (1, 0));
        publishing.join().unwrap();
    });
}

#[test]
fn a_slot_that_the_guardian_frees_for_the_dead_was_read_by_it_before() {
    model(|| {
        let (agent, grain) = pair(1, vec![]);
        let mut producer = agent.instance(S0);
        assert!(send(&mut producer, 1) && send(&mut producer, 2));
        let publishing = thread::spawn(move || {
            while !send(&mut producer, 3) {
                thread::yield_now();
            }
        });
        let former = grain.clone();
        let died = dead_at(IS_FACT, move || {
            let (delivery, _) = former.receiver().receive().unwrap();
            former.instance(S0).commit(delivery.ack);
        });
        assert!(died);
        assert_eq!(recover_family(&grain).rolled_forward, 1);
        publishing.join().unwrap();
        let (delivery, _) = grain.receiver().receive().unwrap();
        assert_eq!(
            delivery.message.header.id,
            MessageId(2),
            "goes on behind it"
        );
    });
}

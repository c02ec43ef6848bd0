//! Lies in the lanes that the agent and a grain read.

use std::mem::offset_of;
use std::time::{Duration, Instant};

use sandpipe::Violation;
use sandpipe::layout::LaneSlot;

use crate::house::{AGENT, CONSUMER, HOSTILE, House, LANE, Raw, Stop};

/// The hostile family sends one honest message, then this one, to the agent and to the consumer.
fn both_refuse(lie: Raw, violation: Violation) {
    let mut house = House::new();
    house.forge(AGENT, 0, Raw::event(1));
    assert_eq!(house.receiver.receive().unwrap().0.source, HOSTILE);
    house.forge(AGENT, 1, lie);
    house.agent_refuses(violation);
    house.forge(CONSUMER, 0, lie);
    house.consumer_refuses(violation);
}

#[test]
fn a_message_of_an_unknown_kind_is_refused() {
    let lie = Raw {
        kind: 200,
        ..Raw::event(2)
    };
    both_refuse(lie, Violation::Kind(200));
}

#[test]
fn a_message_with_unknown_flags_is_refused() {
    let lie = Raw {
        flags: 0x80,
        ..Raw::event(2)
    };
    both_refuse(lie, Violation::Flags(0x80));
}

#[test]
fn a_length_beyond_the_slot_is_refused() {
    for len in [65, 0xffff_ffff] {
        let lie = Raw {
            len,
            ..Raw::event(2)
        };
        both_refuse(lie, Violation::Length(len as u32));
    }
}

#[test]
fn a_chunk_index_that_wraps_is_refused() {
    let lie = Raw {
        flags: Raw::CHUNK,
        body: u64::MAX,
        len: 0xffff_ffff,
        ..Raw::event(2)
    };
    let (chunk, len) = (u64::MAX, u32::MAX);
    both_refuse(lie, Violation::Reference { chunk, len });
}

#[test]
fn a_message_for_another_queue_than_its_lanes_is_refused_by_the_grain() {
    let mut house = House::new();
    let lie = Raw {
        queue: 0,
        ..Raw::event(2)
    };
    house.forge(CONSUMER, 0, lie);
    house.consumer_refuses(Violation::Queue(0));
}

#[test]
fn a_stamp_that_jumps_ahead_is_refused() {
    for stamp in [2, LANE + 1, u64::MAX, 1 << 48] {
        let mut house = House::new();
        house.forge_stamped(AGENT, 0, Raw::event(2), stamp);
        house.agent_refuses(Violation::Stamp { position: 0, stamp });
        house.forge_stamped(CONSUMER, 0, Raw::event(2), stamp);
        house.consumer_refuses(Violation::Stamp { position: 0, stamp });
    }
}

#[test]
fn a_stamp_that_goes_back_is_refused() {
    let mut house = House::new();
    for position in 0..LANE {
        house.forge(AGENT, position, Raw::event(7));
        let (_, place) = house.receiver.receive().unwrap();
        house.receiver.acknowledge(place);
    }
    // Position LANE is next; its slot says 1. It must not say that it was never used.
    house.forge_stamped(AGENT, LANE, Raw::event(8), 0);
    house.agent_refuses(Violation::Stamp {
        position: LANE,
        stamp: 0,
    });
}

#[test]
fn messages_that_name_themselves_as_parent_and_root_are_messages_like_others() {
    let mut house = House::new();
    for position in 0..LANE {
        // Id, root and parent in a circle: nothing in the data plane follows them.
        house.forge(AGENT, position, Raw::event(3));
        house.poke(
            house.slot(AGENT, position) + offset_of!(LaneSlot, parent),
            3,
        );
    }
    for _ in 0..LANE {
        let (delivery, place) = house.receiver.receive().unwrap();
        let header = delivery.message.header;
        assert_eq!((header.parent, header.root), (header.id, header.id));
        house.receiver.acknowledge(place);
    }
    house.innocents_lose_nothing();
    assert_eq!(house.receiver.take_refusal(), None);
}

#[test]
fn words_that_change_while_they_are_read_are_judged_and_used_as_one_copy() {
    let house = House::new();
    let honest = Raw::event(4);
    let lie = Raw {
        len: 0xffff,
        kind: 9,
        ..honest
    };
    let raw = house.raw().clone();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let meta_at: Vec<usize> = (0..LANE)
        .map(|p| house.slot(AGENT, p) + offset_of!(LaneSlot, meta))
        .collect();
    let (mut believed, mut rounds) = (0, 0);
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| {
            use sandpipe::Memory;
            use std::sync::atomic::Ordering::Relaxed;
            while !stop.load(Relaxed) {
                for value in [honest.meta(), lie.meta()] {
                    for &at in &meta_at {
                        raw.word(at).store(value, Relaxed);
                    }
                }
            }
        });
        // A reader made anew each time, as a new agent would be, so that one lie does not end it.
        // On a busy machine the racer may get no core at first.
        let watchdog = Instant::now() + Duration::from_secs(60);
        let decided = |believed, rounds| rounds >= 20_000 && believed > 0 && believed < rounds;
        while !decided(believed, rounds) && Instant::now() < watchdog {
            let mut receiver = house.agent.receiver();
            house.forge(AGENT, 0, honest);
            match receiver.receive() {
                Some((delivery, _)) => {
                    assert_eq!(delivery.message.len, 8);
                    assert_eq!(house.agent.payload(&delivery).unwrap(), 5_u64.to_le_bytes());
                    believed += 1;
                }
                None => {
                    let refused = receiver.take_refusal().unwrap().violation;
                    assert_eq!(refused, Violation::Kind(9));
                }
            }
            rounds += 1;
        }
    });
    assert!(
        believed > 0 && believed < rounds,
        "{believed} of {rounds}: the racer lost"
    );
}

//! Lies about payloads.

use sandpipe::layout::{ChunkDescriptor, LaneHead};
use sandpipe::{PayloadError, Violation};

use crate::house::{AGENT, CHUNKS, HOSTILE, House, LANE, Raw, Stop};

fn chunk(chunk: u64, len: u64) -> Raw {
    Raw {
        flags: Raw::CHUNK,
        body: chunk,
        len,
        ..Raw::event(2)
    }
}

/// The agent receives the message, finds its payload a lie, and refuses the family for it.
fn no_such_chunk(lie: Raw) {
    let mut house = House::new();
    house.forge(AGENT, 0, lie);
    let (delivery, place) = house.receiver.receive().unwrap();
    let (chunk, len) = (lie.body as u32, lie.len as u32);
    let family = HOSTILE.0;
    let bad = PayloadError::BadReference { family, chunk, len };
    assert_eq!(house.agent.payload(&delivery), Err(bad));
    house.receiver.acknowledge(place);
    let chunk = lie.body;
    let violation = Violation::Reference { chunk, len };
    house.receiver.refuse(HOSTILE, violation);
    house.agent_refuses(violation);
}

#[test]
fn a_chunk_that_does_not_exist_is_refused() {
    no_such_chunk(chunk(u64::from(CHUNKS), 8));
    no_such_chunk(chunk(u64::from(u32::MAX), u64::from(u32::MAX)));
}

#[test]
fn a_length_beyond_the_chunk_is_refused() {
    no_such_chunk(chunk(u64::from(CHUNKS - 1), 4097));
    // Offset and length together pass the end of the segment, and 32 bits.
    no_such_chunk(chunk(u64::from(CHUNKS - 1), u64::from(u32::MAX)));
}

#[test]
fn a_stale_or_shared_chunk_yields_the_senders_own_bytes_and_no_others() {
    let mut house = House::new();
    // A chunk of an old generation: freed, never published again; and one chunk for many messages.
    let layout = house.agent.topology().layout(HOSTILE);
    let (data_at, _) = layout.chunk_data(3).unwrap();
    house.poke(data_at, 0xa5a5);
    for position in 0..LANE {
        house.forge(AGENT, position, chunk(3, 4096));
    }
    for _ in 0..LANE {
        let (delivery, place) = house.receiver.receive().unwrap();
        let bytes = house.agent.payload(&delivery).unwrap();
        assert_eq!((bytes.len(), &bytes[..2]), (4096, &[0xa5, 0xa5][..]));
        house.receiver.acknowledge(place);
    }
    house.innocents_lose_nothing();
}

#[test]
fn bytes_that_change_while_they_are_copied_stay_within_the_copy() {
    let mut house = House::new();
    let layout = house.agent.topology().layout(HOSTILE);
    let (data_at, bytes) = layout.chunk_data(0).unwrap();
    house.forge(AGENT, 0, chunk(0, bytes));
    let (delivery, _) = house.receiver.receive().unwrap();
    let raw = house.raw().clone();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| {
            use sandpipe::Memory;
            use std::sync::atomic::Ordering::Relaxed;
            while !stop.load(Relaxed) {
                for value in [u64::MAX, 0] {
                    for word in raw.words(data_at, 512) {
                        word.store(value, Relaxed);
                    }
                }
            }
        });
        for _ in 0..2_000 {
            let copy = house.agent.payload(&delivery).unwrap();
            assert_eq!(copy.len(), 4096);
            let whole = copy.as_chunks::<8>().0;
            assert!(
                whole
                    .iter()
                    .all(|word| *word == [0; 8] || *word == [0xff; 8])
            );
        }
    });
    house.innocents_lose_nothing();
}

#[test]
fn forged_descriptors_cannot_lead_an_audit_or_a_copy_astray() {
    let mut house = House::new();
    let layout = house.agent.topology().layout(HOSTILE);
    for index in 0..CHUNKS {
        let at = layout.descriptor_at(index);
        // Published by slot 0xffff, named by 2^64 - 1 holders, of every target and position.
        let state = u64::from(u32::MAX) << 32 | 0xffff << 8 | 2;
        house.poke(at, state);
        for word in 1..size_of::<ChunkDescriptor>() / 8 {
            house.poke(at + word * 8, u64::MAX >> (word % 17));
        }
    }
    for lane in &layout.lanes {
        for word in 0..size_of::<LaneHead>() / 8 {
            house.poke(lane.head_at + word * 8, u64::MAX - word as u64 % 2);
        }
    }
    for entry in 0..layout.entries {
        for word in 0..24 {
            house.poke(layout.entry_at(entry) + word * 8, u64::MAX >> (word % 13));
        }
    }
    let audit = house.agent.audit(HOSTILE);
    assert_eq!(audit.chunks_loaned, 0);
    house.sandbox.guardian.repair_family(HOSTILE);
    house.sandbox.guardian.make_family(HOSTILE).unwrap();
    house.innocents_lose_nothing();
}

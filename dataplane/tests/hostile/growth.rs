//! Lies about a pool's extensions, and storms of wishes for them.

use core::mem::offset_of;
use std::time::{Duration, Instant};

use sandpipe::attach::AttachMessage;
use sandpipe::layout::{ChunkDescriptor, FamilyHeader};
use sandpipe::{PayloadError, Reaction, Violation};

use crate::house::{AGENT, CHUNKS, HOSTILE, House, INNOCENT, Raw};

/// Extensions that the hostile family's pool can have in this house.
const EXTENSIONS: u64 = 2;

fn house() -> House {
    let layout = House::new().agent.topology().layout(HOSTILE);
    let pool = (layout.bytes - layout.control_bytes) as u64;
    let house = House::with_growth(EXTENSIONS * pool);
    let layout = house.agent.topology().layout(HOSTILE);
    assert_eq!(layout.extensions as u64, EXTENSIONS);
    house
}

fn chunk(chunk: u64, len: u64) -> Raw {
    Raw {
        flags: Raw::CHUNK,
        body: chunk,
        len,
        ..Raw::event(2)
    }
}

/// The agent receives the message, finds its payload a lie, and refuses the family for it.
fn is_refused(house: &mut House, lie: Raw) {
    house.forge(AGENT, 0, lie);
    let (delivery, place) = house.receiver.receive().unwrap();
    let (chunk, len) = (lie.body as u32, lie.len as u32);
    let family = HOSTILE.0;
    let bad = PayloadError::BadReference { family, chunk, len };
    assert_eq!(house.agent.payload(&delivery), Err(bad));
    assert_eq!(house.agent.counters(AGENT).quarantined, 1);
    house.receiver.acknowledge(place);
    let chunk = lie.body;
    let violation = Violation::Reference { chunk, len };
    house.receiver.refuse(HOSTILE, violation);
    house.agent_refuses(violation);
}

#[test]
fn a_chunk_of_an_extension_that_does_not_exist_is_refused() {
    let chunks = u64::from(CHUNKS);
    is_refused(&mut house(), chunk((1 + EXTENSIONS) * chunks, 8));
    is_refused(
        &mut house(),
        chunk(u64::from(u32::MAX), u64::from(u32::MAX)),
    );
    is_refused(&mut house(), chunk(chunks, 4097));
    is_refused(
        &mut house(),
        chunk((1 + EXTENSIONS) * chunks - 1, u64::from(u32::MAX)),
    );
}

#[test]
fn a_chunk_of_a_closed_extension_yields_the_senders_own_bytes_and_no_others() {
    let mut house = house();
    let (_, at, _) = house
        .agent
        .topology()
        .layout(HOSTILE)
        .extended_data(CHUNKS)
        .unwrap();
    house.poke(at, 0xa5a5);
    house.forge(AGENT, 0, chunk(u64::from(CHUNKS), 4096));
    let (delivery, place) = house.receiver.receive().unwrap();
    let bytes = house.agent.payload(&delivery).unwrap();
    assert_eq!((bytes.len(), &bytes[..2]), (4096, &[0xa5, 0xa5][..]));
    house.receiver.acknowledge(place);
    house.innocents_lose_nothing();
}

#[test]
fn a_lie_about_which_file_an_extension_is_is_refused() {
    let mut house = house();
    for lie in [0, 2 << 8 | 1, u64::MAX] {
        house.poke(offset_of!(FamilyHeader, extension), lie);
        house.forge(AGENT, 0, chunk(u64::from(CHUNKS), 8));
    }
    is_refused(&mut house, chunk(u64::from(CHUNKS), 8));
    // Its successor finds what the guardian says.
    house.sandbox.guardian.repair_family(HOSTILE);
    let _ = house.sandbox.make_sealed(HOSTILE);
    let bus = house.sandbox.guardian.view(HOSTILE).unwrap();
    assert_eq!(bus.pool_size(HOSTILE).1, 0);
    assert!(house.sandbox.guardian.is_whole());
}

#[test]
fn a_storm_of_wishes_is_answered_up_to_the_limit_and_then_refused() {
    let mut house = house();
    let grow = AttachMessage::Grow.encode();
    let guardian = &mut house.sandbox.guardian;
    let mut done = 0;
    for _ in 0..100_000 {
        match guardian.handle(HOSTILE, &grow).unwrap() {
            Reaction::Done => done += 1,
            Reaction::Unknown => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(done, EXTENSIONS + 1, "one wish more is kept");
    assert_eq!(house.agent.pool_size(HOSTILE).1, EXTENSIONS);
    // The limit is the application's: the others' pools stay as they are.
    let reaction = house.sandbox.guardian.handle(INNOCENT, &grow).unwrap();
    assert!(matches!(reaction, Reaction::Done), "{reaction:?}");
    assert_eq!(house.agent.pool_size(INNOCENT).1, 0);
    house.innocents_lose_nothing();
}

#[test]
fn mapped_without_a_new_file_and_a_wish_before_the_segment_is_mapped_are_refused() {
    let mut house = house();
    let guardian = &mut house.sandbox.guardian;
    let mapped = AttachMessage::Mapped.encode();
    let reaction = guardian.handle(HOSTILE, &mapped).unwrap();
    assert!(matches!(reaction, Reaction::Unknown), "{reaction:?}");
    guardian.repair_family(HOSTILE);
    guardian.make_family(HOSTILE).unwrap();
    let reaction = guardian.handle(HOSTILE, &AttachMessage::Grow.encode());
    assert!(matches!(reaction.unwrap(), Reaction::Unknown));
    house.innocents_lose_nothing();
}

#[test]
fn a_new_file_that_is_sealed_too_early_ends_its_owners_family_only() {
    let mut house = house();
    let guardian = &mut house.sandbox.guardian;
    guardian.retire_after(Duration::ZERO);
    guardian
        .handle(HOSTILE, &AttachMessage::Grow.encode())
        .unwrap();
    guardian.look_after_pools(Instant::now());
    let (_, fds) = guardian.renewal(HOSTILE);
    sandpipe::segment::seal(fds[0]).unwrap();
    guardian.renewal_sent(HOSTILE);
    let error = guardian.handle(HOSTILE, &AttachMessage::Mapped.encode());
    assert_eq!(
        error.unwrap_err().kind(),
        std::io::ErrorKind::PermissionDenied
    );
    // Every chunk is said to be in use: the copy reads what the guardian maps of the new file.
    let layout = house.agent.topology().layout(HOSTILE);
    for chunk in 0..layout.chunk_count() {
        let at = layout.descriptor_at(chunk);
        house.poke(at + offset_of!(ChunkDescriptor, state), 2);
        house.poke(at + offset_of!(ChunkDescriptor, len), 4096);
    }
    house.sandbox.guardian.repair_family(HOSTILE);
    let _ = house.sandbox.make_sealed(HOSTILE);
    assert!(house.sandbox.guardian.is_whole());
    house.innocents_lose_nothing();
}

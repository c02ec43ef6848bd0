//! Storms and nonsense on the attach socket. The guardian answers each message once, when it is
//! due; the rest is refused and costs the others nothing.

use std::os::fd::AsFd;

use sandpipe::attach::AttachMessage;
use sandpipe::{Guardian, Reaction, layout, socket};

use crate::house::{AGENT, HOSTILE, House, INNOCENT, topology};
use crate::sandbox::Random;

/// Messages of one storm.
const STORM: usize = 100_000;

fn hello() -> Vec<u8> {
    let hello = AttachMessage::Hello {
        version: layout::LAYOUT_VERSION,
        hash: layout::layout_hash(),
        family: HOSTILE,
    };
    hello.encode()
}

pub fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn of_a_hundred_thousand_attaches_one_is_granted() {
    let mut guardian = Guardian::new(topology()).unwrap();
    guardian.make_family(HOSTILE).unwrap();
    let before = open_files();
    let (mut granted, mut refused) = (0, 0);
    for _ in 0..STORM {
        match guardian.handle(HOSTILE, &hello()).unwrap() {
            Reaction::Reply(..) => granted += 1,
            Reaction::Refuse(bytes) => {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                assert!(text.ends_with("the family's segment is in use"), "{text}");
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((granted, refused), (1, STORM - 1));
    // Other tests of this process open files too; a leak would be a hundred thousand.
    assert!(open_files() < before + 1000, "descriptors leak");
}

#[test]
fn a_storm_of_mapped_tells_the_others_once() {
    let mut house = House::new();
    let storm = AttachMessage::Mapped.encode();
    for _ in 0..STORM {
        let reaction = house.sandbox.guardian.handle(HOSTILE, &storm).unwrap();
        assert!(matches!(reaction, Reaction::Unknown), "{reaction:?}");
    }
    house.innocents_lose_nothing();
}

#[test]
fn mapped_before_it_was_given_anything_is_refused() {
    let mut guardian = Guardian::new(topology()).unwrap();
    let mapped = AttachMessage::Mapped.encode();
    let reaction = guardian.handle(HOSTILE, &mapped).unwrap();
    assert!(matches!(reaction, Reaction::Unknown), "no segment yet");
    guardian.make_family(HOSTILE).unwrap();
    let reaction = guardian.handle(HOSTILE, &mapped).unwrap();
    assert!(matches!(reaction, Reaction::Unknown), "not handed out yet");
    assert!(guardian.peers_message(AGENT).1.is_empty());
}

#[test]
fn a_family_that_asks_for_anothers_segment_is_refused_naming_both() {
    let mut guardian = Guardian::new(topology()).unwrap();
    guardian.make_family(INNOCENT).unwrap();
    let reaction = guardian.handle(INNOCENT, &hello()).unwrap();
    let Reaction::Refuse(bytes) = reaction else {
        panic!("{reaction:?}")
    };
    let text = String::from_utf8_lossy(&bytes).into_owned();
    assert!(text.contains("for family 2, not 1"), "{text}");
}

#[test]
fn the_guardians_own_messages_and_noise_are_refused() {
    let mut house = House::new();
    let mut random = Random(7);
    let own = AttachMessage::Own {
        family: HOSTILE,
        epoch: 9,
        topology: topology().encode(),
    };
    let peers = AttachMessage::Peers(vec![(INNOCENT, 9)]);
    for message in [own, peers] {
        let reaction = house.sandbox.guardian.handle(HOSTILE, &message.encode());
        assert!(matches!(reaction.unwrap(), Reaction::Unknown));
    }
    for _ in 0..10_000 {
        let len = random.below(64);
        // Never `Attached`, a lone 6, which is a message that may come at any time.
        let noise: Vec<u8> = (0..len + 2).map(|_| random.below(256) as u8).collect();
        let reaction = house.sandbox.guardian.handle(HOSTILE, &noise).unwrap();
        assert!(matches!(reaction, Reaction::Unknown | Reaction::Refuse(_)));
    }
    house.innocents_lose_nothing();
}

#[test]
fn descriptors_and_oversized_messages_sent_to_the_guardian_are_closed_and_cut() {
    let flags = rustix::net::SocketFlags::CLOEXEC;
    let kind = rustix::net::SocketType::SEQPACKET;
    let unix = rustix::net::AddressFamily::UNIX;
    let (ours, theirs) = rustix::net::socketpair(unix, kind, flags, None).unwrap();
    let before = open_files();
    for _ in 0..2_000 {
        let fds = [theirs.as_fd(); socket::FDS_MAX];
        socket::send(&theirs, &[6], &fds).unwrap();
        let (bytes, received) = socket::receive(&ours, true).unwrap();
        assert_eq!((bytes, received.len()), (vec![6], socket::FDS_MAX));
    }
    assert!(open_files() < before + 1000, "descriptors leak");
    socket::send(&theirs, &vec![0; 100_000], &[]).unwrap();
    let error = socket::receive(&ours, true).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
}

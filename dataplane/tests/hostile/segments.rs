//! System calls on the descriptors that a hostile family has.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::Errno;
use sandpipe::attach::AttachMessage;
use sandpipe::{AttachError, Guardian, Mapping, Memory, Participant, Reaction, SegmentError};
use sandpipe::{layout, segment, socket};

use crate::house::{AGENT, HOSTILE, House, INNOCENT, topology};

/// The descriptors that the guardian sends to the hostile family: its own segment, the hint page.
fn own_descriptors(guardian: &mut Guardian) -> [OwnedFd; 2] {
    guardian.make_family(HOSTILE).unwrap();
    let reaction = guardian.handle(HOSTILE, &hello().encode()).unwrap();
    let Reaction::Reply(_, fds) = reaction else {
        panic!("{reaction:?}")
    };
    [0, 1].map(|index| fds[index].try_clone_to_owned().unwrap())
}

fn hello() -> AttachMessage {
    AttachMessage::Hello {
        version: layout::LAYOUT_VERSION,
        hash: layout::layout_hash(),
        family: HOSTILE,
    }
}

const HOLE: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);

#[test]
fn neither_the_own_segment_nor_the_hint_page_can_be_cut() {
    let mut guardian = Guardian::new(topology()).unwrap();
    for fd in own_descriptors(&mut guardian) {
        for bytes in [0, 1, 1 << 40] {
            assert_eq!(rustix::fs::ftruncate(&fd, bytes), Err(Errno::PERM));
        }
    }
    // Whoever maps them now is not killed by its first access.
    guardian
        .handle(HOSTILE, &AttachMessage::Mapped.encode())
        .unwrap();
    guardian.ring_everybody();
    guardian.repair_family(HOSTILE);
}

#[test]
fn the_hint_page_cannot_be_sealed_against_the_others() {
    let mut guardian = Guardian::new(topology()).unwrap();
    let [_, hints] = own_descriptors(&mut guardian);
    for seal in [SealFlags::FUTURE_WRITE, SealFlags::WRITE, SealFlags::SEAL] {
        assert_eq!(rustix::fs::fcntl_add_seals(&hints, seal), Err(Errno::PERM));
    }
    Mapping::new(&hints, layout::PAGE, true, layout::PAGE).unwrap();
}

#[test]
fn a_hole_in_the_hint_page_is_a_page_of_zeroes() {
    let mut house = House::new();
    let mut guardian = Guardian::new(topology()).unwrap();
    let [_, hints] = own_descriptors(&mut guardian);
    rustix::fs::fallocate(&hints, HOLE, 0, layout::PAGE as u64).unwrap();
    guardian.ring_everybody();
    // And in the running sandbox, over the page that everybody uses.
    house.sandbox.guardian.ring_everybody();
    house.innocents_lose_nothing();
}

#[test]
fn a_segment_that_is_sealed_too_early_ends_its_owners_handshake_only() {
    let mut guardian = Guardian::new(topology()).unwrap();
    let [own, _] = own_descriptors(&mut guardian);
    rustix::fs::fcntl_add_seals(&own, SealFlags::SEAL).unwrap();
    let error = guardian.handle(HOSTILE, &AttachMessage::Mapped.encode());
    assert_eq!(
        error.unwrap_err().kind(),
        std::io::ErrorKind::PermissionDenied
    );
    let (_, fds) = guardian.peers_message(INNOCENT);
    assert!(
        fds.is_empty(),
        "nobody is told of a segment that is not sealed"
    );
}

#[test]
fn another_familys_segment_cannot_be_written_whatever_is_tried() {
    let mut house = House::new();
    let (_, fds) = house.sandbox.guardian.peers_message(HOSTILE);
    let before = house.agent.audit(INNOCENT);
    assert_eq!(fds.len(), 3);
    for fd in &fds {
        let fd = fd.as_fd();
        let bytes = rustix::fs::fstat(fd).unwrap().st_size.unsigned_abs() as usize;
        assert!(Mapping::new(fd, bytes, true, 0).is_err());
        assert_eq!(rustix::io::pwrite(fd, b"x", 0), Err(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(fd, 0), Err(Errno::PERM));
        assert_eq!(rustix::fs::fallocate(fd, HOLE, 0, 4096), Err(Errno::PERM));
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let again = std::fs::File::options().read(true).write(true).open(path);
        assert!(again.is_err() || Mapping::new(again.unwrap(), bytes, true, 0).is_err());
        // SAFETY: a fresh mapping of the attacker's own, never written through.
        unsafe {
            let flags = rustix::mm::MapFlags::SHARED;
            let read = rustix::mm::ProtFlags::READ;
            let at = rustix::mm::mmap(std::ptr::null_mut(), bytes, read, flags, fd, 0).unwrap();
            let both = rustix::mm::MprotectFlags::READ | rustix::mm::MprotectFlags::WRITE;
            assert_eq!(rustix::mm::mprotect(at, 4096, both), Err(Errno::ACCESS));
            rustix::mm::munmap(at, bytes).unwrap();
        }
    }
    assert_eq!(house.agent.audit(INNOCENT), before);
    house.innocents_lose_nothing();
}

/// A guardian that lies: it sends these two descriptors as own segment and hint page.
fn attach_with(own: OwnedFd, hints: OwnedFd) -> AttachError {
    let (ours, theirs) = pair();
    let message = AttachMessage::Own {
        family: HOSTILE,
        epoch: 1,
        topology: topology().encode(),
    };
    socket::send(&ours, &message.encode(), &[own.as_fd(), hints.as_fd()]).unwrap();
    Participant::attach(theirs, HOSTILE, Duration::from_secs(10)).unwrap_err()
}

fn pair() -> (OwnedFd, OwnedFd) {
    let flags = rustix::net::SocketFlags::CLOEXEC;
    let kind = rustix::net::SocketType::SEQPACKET;
    rustix::net::socketpair(rustix::net::AddressFamily::UNIX, kind, flags, None).unwrap()
}

fn good(bytes: usize) -> OwnedFd {
    segment::create("hostile-test", bytes).unwrap()
}

fn segment_error(error: AttachError) -> SegmentError {
    match error {
        AttachError::Segment { error, .. } => error,
        other => panic!("{other}"),
    }
}

#[test]
fn descriptors_of_the_wrong_type_are_refused() {
    let bytes = topology().layout(HOSTILE).bytes;
    let wrong: [OwnedFd; 4] = [
        std::fs::File::open("/").unwrap().into(),
        std::fs::File::open("/dev/null").unwrap().into(),
        std::io::pipe().unwrap().0.into(),
        pair().0,
    ];
    for fd in wrong {
        let again = fd.try_clone().unwrap();
        let error = segment_error(attach_with(fd, good(layout::PAGE)));
        assert!(matches!(error, SegmentError::NotMemory), "{error}");
        let error = segment_error(attach_with(good(bytes), again));
        assert!(matches!(error, SegmentError::NotMemory), "{error}");
    }
}

#[test]
fn an_unsealed_or_short_segment_is_refused_before_it_is_touched() {
    let bytes = topology().layout(HOSTILE).bytes;
    let unsealed = rustix::fs::memfd_create("x", MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&unsealed, bytes as u64).unwrap();
    let error = segment_error(attach_with(unsealed, good(layout::PAGE)));
    assert!(matches!(error, SegmentError::Unsealed { .. }), "{error}");
    for short in [0, layout::PAGE, bytes - layout::PAGE] {
        let error = segment_error(attach_with(good(short), good(layout::PAGE)));
        assert!(matches!(error, SegmentError::Short { .. }), "{error}");
    }
    let error = segment_error(attach_with(good(bytes), good(0)));
    assert!(matches!(error, SegmentError::Short { .. }), "{error}");
}

#[test]
fn a_segment_of_another_family_or_without_a_header_is_refused() {
    let bytes = topology().layout(HOSTILE).bytes;
    let error = segment_error(attach_with(good(bytes), good(layout::PAGE)));
    assert!(matches!(error, SegmentError::Header(1)), "{error}");
}

#[test]
fn peers_that_are_unsealed_short_or_no_memory_are_refused_and_the_older_mapping_stays() {
    let mut house = House::new();
    let layout = house.agent.topology().layout(INNOCENT);
    let unsealed = good(layout.bytes);
    let short = good(4096);
    segment::seal(&short).unwrap();
    let pipe: OwnedFd = std::io::pipe().unwrap().0.into();
    for (fd, what) in [
        (unsealed, "lacks seals"),
        (short, "has 4096 bytes"),
        (pipe, "no memory"),
    ] {
        let (ours, theirs) = pair();
        let thread = std::thread::spawn(move || {
            Participant::attach(theirs, AGENT, Duration::from_secs(10)).unwrap_err()
        });
        // An honest first half, then the lie about a peer.
        let mut guardian = Guardian::new(topology()).unwrap();
        guardian.make_family(AGENT).unwrap();
        let (hello, _) = socket::receive(&ours, true).unwrap();
        let Reaction::Reply(bytes, fds) = guardian.handle(AGENT, &hello).unwrap() else {
            panic!("not answered")
        };
        socket::send(&ours, &bytes, &fds).unwrap();
        socket::receive(&ours, true).unwrap();
        let peers = AttachMessage::Peers(vec![(INNOCENT, 1)]);
        socket::send(&ours, &peers.encode(), &[fd.as_fd()]).unwrap();
        let text = thread.join().unwrap().to_string();
        assert!(text.contains("family 2") && text.contains(what), "{text}");
    }
    house.innocents_lose_nothing();
}

#[test]
fn a_forged_header_is_made_right_by_the_guardians_next_copy() {
    let mut house = House::new();
    for word in 0..16 {
        house.poke(word * 8, u64::MAX);
    }
    house.innocents_lose_nothing();
    house.sandbox.guardian.repair_family(HOSTILE);
    let (_, hostile) = house.sandbox.join(HOSTILE);
    let header = hostile.segment(HOSTILE).unwrap();
    assert_eq!(header.word(0).load(SeqCst), layout::MAGIC);
    assert_eq!(header.word(24).load(SeqCst), u64::from(HOSTILE.0));
}

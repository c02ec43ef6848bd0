//! The attach handshake, the seals, and leases, between real processes.
#![allow(unsafe_code, reason = "fork and kill of test processes")]

mod sandbox;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use sandbox::{Sandbox, Watchdog};
use sandpipe::attach::AttachMessage;
use sandpipe::lease::{LeaseState, lease_state, wait_for_change};
use sandpipe::{
    Ack, AttachError, ChunkClass, FamilyIndex, FamilySpec, Guardian, Mapping, MessageHeader,
    MessageId, Participant, Payload, Reaction, SlotIndex, Target, Topology, TraceStamps, layout,
    segment,
};

const AGENT: FamilyIndex = FamilyIndex::AGENT;
const GRAIN: FamilyIndex = FamilyIndex(1);
const S0: SlotIndex = SlotIndex(0);

fn topology() -> Topology {
    let family = |queue: FamilyIndex| FamilySpec {
        slots: 2,
        targets: vec![Target {
            queue,
            lane_slots: 8,
        }],
        chunks: vec![ChunkClass {
            bytes: 1 << 20,
            count: 2,
        }],
    };
    Topology::new(vec![family(GRAIN), family(AGENT)]).unwrap()
}

#[test]
fn two_layout_versions_refuse_each_other_naming_both() {
    let mut guardian = Guardian::new(topology()).unwrap();
    guardian.make_family(GRAIN).unwrap();
    let hello = AttachMessage::Hello {
        version: layout::LAYOUT_VERSION + 1,
        hash: layout::layout_hash(),
        family: GRAIN,
    };
    let refusal = match guardian.handle(GRAIN, &hello.encode()).unwrap() {
        Reaction::Refuse(bytes) => bytes,
        other => panic!("not refused: {other:?}"),
    };
    // The participant's side of the same refusal.
    let (ours, theirs) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    sandpipe::socket::send(ours.as_fd(), &refusal, &[]).unwrap();
    let error = Participant::attach(theirs, GRAIN, Duration::from_secs(10)).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, AttachError::Refused { .. }), "{text}");
    for version in [layout::LAYOUT_VERSION, layout::LAYOUT_VERSION + 1] {
        assert!(text.contains(&format!("version {version}")), "{text}");
    }
    let other_sizes = AttachMessage::Hello {
        version: layout::LAYOUT_VERSION,
        hash: 1,
        family: GRAIN,
    };
    let reaction = guardian.handle(GRAIN, &other_sizes.encode()).unwrap();
    assert!(matches!(reaction, Reaction::Refuse(_)));
    assert!(matches!(
        guardian.handle(GRAIN, b"\x01nonsense").unwrap(),
        Reaction::Unknown
    ));
}

#[test]
fn a_silent_guardian_is_given_up_on_and_a_closed_one_noticed() {
    let (ours, theirs) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let error = Participant::attach(theirs, GRAIN, Duration::from_millis(50)).unwrap_err();
    assert!(matches!(error, AttachError::TimedOut(_)), "{error}");
    drop(ours);
}

#[test]
fn a_sealed_segment_cannot_be_mapped_writable_or_cut_and_the_older_mapping_goes_on() {
    let fd = segment::create("seal-test", 8192).unwrap();
    let writer = Mapping::new(&fd, 8192, true, 8192).unwrap();
    assert!(
        segment::check_sealed(&fd, 8192).is_err(),
        "an unsealed segment is refused"
    );
    segment::seal(&fd).unwrap();
    segment::check_sealed(&fd, 8192).unwrap();
    assert!(
        segment::check_sealed(&fd, 8193).is_err(),
        "a short segment is refused"
    );
    assert!(Mapping::new(&fd, 8192, true, 0).is_err());
    assert!(rustix::fs::ftruncate(&fd, 0).is_err());
    assert!(rustix::io::pwrite(&fd, b"x", 0).is_err());
    let hole = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    assert!(rustix::fs::fallocate(&fd, hole, 0, 4096).is_err());
    let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
    if let Ok(reopened) = std::fs::File::options().read(true).write(true).open(again) {
        assert!(Mapping::new(&reopened, 8192, true, 0).is_err());
    }
    let reader = Mapping::new(&fd, 8192, false, 8192).unwrap();
    let word = |mapping: &Mapping| sandpipe::Memory::word(mapping, 8).load(Ordering::Relaxed);
    use std::sync::atomic::Ordering;
    sandpipe::Memory::word(&writer, 8).store(7, Ordering::Relaxed);
    assert_eq!((word(&writer), word(&reader)), (7, 7));
}

#[test]
fn a_large_payload_is_written_in_place_and_read_by_another_process() {
    let _watchdog = Watchdog::new(Duration::from_secs(60));
    let mut sandbox = Sandbox::new(topology());
    let (mut agent, mut bus) = sandbox.join(AGENT);
    let pid = sandbox.spawn(GRAIN, |_, bus| {
        let mut instance = bus.instance(S0);
        let mut loan = instance.loan(1 << 20).unwrap();
        instance.memory().loan_bytes(&mut loan).fill(0xa5);
        let header = MessageHeader::event(MessageId(1), MessageId(1), MessageId::NONE, AGENT);
        let payload = Payload::Loaned(&loan);
        instance
            .stage(AGENT, &header, payload, TraceStamps::default())
            .unwrap();
        instance.commit(Ack::NOTHING);
        std::thread::sleep(Duration::from_secs(50));
    });
    let delivery = loop {
        sandbox.serve();
        agent.update(&mut bus).unwrap();
        if let Some((delivery, _)) = bus.receiver().receive() {
            break delivery;
        }
    };
    assert_eq!(bus.payload(&delivery).unwrap(), vec![0xa5; 1 << 20]);
    sandbox.kill_family(GRAIN, pid);
    assert_eq!(
        bus.payload(&delivery).unwrap(),
        vec![0xa5; 1 << 20],
        "also after its death"
    );
}

#[test]
fn a_lease_tells_of_its_holders_death_through_a_read_only_mapping() {
    let _watchdog = Watchdog::new(Duration::from_secs(60));
    let mut sandbox = Sandbox::new(topology());
    let (mut agent, mut bus) = sandbox.join(AGENT);
    for round in 0..20 {
        let pid = sandbox.spawn(GRAIN, |_, bus| {
            let _lease = sandpipe::lease::Lease::hold(&bus, S0).unwrap();
            std::thread::sleep(Duration::from_secs(50));
        });
        let until = Instant::now() + Duration::from_secs(20);
        while !matches!(lease_state(&bus, GRAIN, S0), Some(LeaseState::Held(_))) {
            sandbox.serve();
            agent.update(&mut bus).unwrap();
            assert!(
                Instant::now() < until,
                "round {round}: the lease is not held"
            );
        }
        assert_eq!(
            lease_state(&bus, GRAIN, S0),
            Some(LeaseState::Held(pid.cast_unsigned()))
        );
        // SAFETY: kills the child of this test.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        while lease_state(&bus, GRAIN, S0) != Some(LeaseState::Died) {
            wait_for_change(&bus, GRAIN, S0, Duration::from_secs(5));
            assert!(
                Instant::now() < until,
                "round {round}: the death is not seen"
            );
        }
        sandbox.kill_family(GRAIN, pid);
    }
}

//! A queue's bell as a descriptor, under event loops of others: epoll by level and by edge, tokio.
#![allow(unsafe_code, reason = "tokio asks for a promise about the descriptor")]

mod views;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use sandpipe::wait::{BellFd, Loop, WaiterKind};
use sandpipe::{
    Ack, Bus, FamilyIndex, FamilySpec, HeapMemory, Instance, Memory, MessageHeader, MessageId,
    Payload, Receiver, SlotIndex, Target, Topology, TraceStamps,
};
use views::{memories, views};

const GRAIN: FamilyIndex = FamilyIndex(1);
const MESSAGES: u64 = 20_000;
/// A poll that lasts so long has missed its bell: parks end by themselves much earlier, so the
/// tests count those instead.
const WATCHDOG: Duration = Duration::from_secs(30);

struct Line {
    producer: Instance<HeapMemory>,
    receiver: Receiver<HeapMemory>,
    grain: Bus<HeapMemory>,
    hints: HeapMemory,
}

fn line() -> Line {
    let target = Target {
        queue: GRAIN,
        lane_slots: 16,
    };
    let spec = |targets| FamilySpec {
        slots: 1,
        targets,
        chunks: vec![],
    };
    let topology = Topology::new(vec![spec(vec![target]), spec(vec![])]).unwrap();
    let (segments, hints) = (memories(&topology, HeapMemory::new), HeapMemory::new(4096));
    let [agent, grain] = views(&topology, &segments, &hints);
    Line {
        producer: agent.instance(SlotIndex(0)),
        receiver: grain.receiver(),
        grain,
        hints,
    }
}

fn publish(instance: &mut Instance<HeapMemory>, id: u64) {
    let (id, none) = (MessageId(id.into()), MessageId::NONE);
    let header = MessageHeader::event(id, none, none, GRAIN);
    let empty = Payload::Inline(&[]);
    while instance
        .stage(GRAIN, &header, empty, TraceStamps::default())
        .is_err()
    {
        thread::yield_now();
    }
    instance.commit(Ack::NOTHING);
}

/// Publishes everything; each time after a pause of another length, some after the consumer's word
/// that it is about to poll.
fn publish_all(mut producer: Instance<HeapMemory>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut random = 88_172_645_463_325_252_u64;
        for id in 1..=MESSAGES {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            if random & 3 == 0 {
                (0..random >> 52).for_each(|_| std::hint::spin_loop());
            }
            publish(&mut producer, id);
        }
    })
}

/// Receives until nothing is left; how many there were.
fn drain(receiver: &mut Receiver<HeapMemory>, seen: &mut u64) {
    while let Some((delivery, place)) = receiver.receive() {
        *seen += 1;
        assert_eq!(delivery.message.header.id, MessageId(u128::from(*seen)));
        receiver.acknowledge(place);
    }
}

/// Each kind that serves a foreign loop here.
fn kinds() -> impl Iterator<Item = WaiterKind> {
    [WaiterKind::IoUring, WaiterKind::Futex]
        .into_iter()
        .filter(|kind| {
            let opened = kind.open(Loop::Foreign);
            if let Err(error) = &opened {
                eprintln!("SKIP event loops on {}: {error}", kind.name());
            }
            opened.is_ok()
        })
}

fn is_readable(fd: impl AsFd) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
}

#[test]
fn the_descriptor_is_readable_exactly_while_there_may_be_something() {
    for kind in kinds() {
        let mut line = line();
        let mut bell = BellFd::new(line.grain.bell(GRAIN), Some(kind)).unwrap();
        for id in (1..=20).step_by(2) {
            assert!(bell.park(|| line.receiver.has_message()).unwrap());
            // A park ends by itself after 50 ms, which a crowded machine may spend elsewhere.
            let silent = (0..10).any(|_| {
                bell.park(|| line.receiver.has_message()).unwrap();
                !is_readable(&bell)
            });
            assert!(silent, "{kind:?} is readable and there is nothing");
            publish(&mut line.producer, id);
            let mut fds = [PollFd::from_borrowed_fd(bell.as_fd(), PollFlags::IN)];
            let watchdog = Timespec::try_from(WATCHDOG).unwrap();
            while poll(&mut fds, Some(&watchdog)) == Err(rustix::io::Errno::INTR) {}
            assert!(is_readable(&bell), "{kind:?} slept on");
            // There already when it is about to park.
            publish(&mut line.producer, id + 1);
            assert!(!bell.park(|| line.receiver.has_message()).unwrap());
            let mut fds = [PollFd::from_borrowed_fd(bell.as_fd(), PollFlags::IN)];
            while poll(&mut fds, Some(&watchdog)) == Err(rustix::io::Errno::INTR) {}
            assert!(is_readable(&bell), "{kind:?} forgot what was there");
            while let Some((_, place)) = line.receiver.receive() {
                line.receiver.acknowledge(place);
            }
            bell.unpark().unwrap();
            assert!(!is_readable(&bell), "{kind:?} is readable while awake");
        }
        let announced = line.hints.word(136).load(Ordering::SeqCst) as u32;
        assert_eq!(announced, 0, "{kind:?} is awake");
    }
}

fn under_epoll(kind: WaiterKind, how: epoll::EventFlags) {
    let mut line = line();
    let mut bell = BellFd::new(line.grain.bell(GRAIN), Some(kind)).unwrap();
    let set = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let data = epoll::EventData::new_u64(0);
    epoll::add(&set, &bell, data, epoll::EventFlags::IN | how).unwrap();
    let publisher = publish_all(line.producer);
    let mut seen = 0;
    let watchdog = Timespec::try_from(WATCHDOG).unwrap();
    while seen < MESSAGES {
        bell.park(|| line.receiver.has_message()).unwrap();
        let mut events = Vec::with_capacity(1);
        let buffer = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&set, buffer, Some(&watchdog)) {
            Err(rustix::io::Errno::INTR) => {}
            ready => assert_eq!(ready, Ok(1), "{kind:?} slept on at {seen}"),
        }
        drain(&mut line.receiver, &mut seen);
    }
    publisher.join().unwrap();
}

#[test]
fn epoll_by_level_delivers_every_message() {
    for kind in kinds() {
        under_epoll(kind, epoll::EventFlags::empty());
    }
}

#[test]
fn epoll_by_edge_delivers_every_message() {
    for kind in kinds() {
        under_epoll(kind, epoll::EventFlags::ET);
    }
}

#[test]
fn tokio_delivers_every_message_and_runs_other_tasks_meanwhile() {
    for kind in kinds() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut line = line();
            let bell = BellFd::new(line.grain.bell(GRAIN), Some(kind)).unwrap();
            // SAFETY: the descriptor is the bell's as long as it lives, and `AsyncFd` owns it.
            let registered = unsafe { tokio::io::unix::AsyncFd::register(bell) };
            let mut bell = registered.unwrap();
            let turns = Arc::new(AtomicU64::new(0));
            let others = Arc::clone(&turns);
            let other = tokio::spawn(async move {
                loop {
                    others.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            });
            let publisher = publish_all(line.producer);
            let mut seen = 0;
            while seen < MESSAGES {
                bell.get_mut().park(|| line.receiver.has_message()).unwrap();
                let ready = tokio::time::timeout(WATCHDOG, bell.readable()).await;
                ready.expect("slept on").unwrap().clear_ready();
                drain(&mut line.receiver, &mut seen);
            }
            publisher.join().unwrap();
            other.abort();
            assert!(
                turns.load(Ordering::Relaxed) > 1,
                "{kind:?} blocks the loop"
            );
        });
    }
}

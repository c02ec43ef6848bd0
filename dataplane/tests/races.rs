//! The bell against each waiter: nothing is missed, nobody is woken twice for one sleep.

mod sandbox;
mod views;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use sandpipe::wait::{Loop, Waiter, WaiterKind};
use sandpipe::{
    Ack, Bell, Bus, FamilyIndex, FamilySpec, HeapMemory, Instance, Memory, MessageHeader,
    MessageId, PARK_MAX, Payload, SlotIndex, Target, Topology, TraceStamps,
};

use sandbox::Watchdog;
use views::{memories, views};

const GRAIN: FamilyIndex = FamilyIndex(1);
/// Bell and count of the grain's queue in the hint page.
const BELL_AT: usize = 128;
const PARKED_AT: usize = 136;
/// No wait of these tests lasts a thousandth of it, unless its bell was missed.
const WATCHDOG: Duration = Duration::from_secs(30);

struct Line {
    producer: Instance<HeapMemory>,
    /// A producer whose bells ring elsewhere: as if it stopped right before each.
    stopping: Instance<HeapMemory>,
    grain: Bus<HeapMemory>,
    hints: HeapMemory,
}

/// The agent publishes to one grain, over a lane of 64.
fn line() -> Line {
    let target = Target {
        queue: GRAIN,
        lane_slots: 64,
    };
    let spec = |slots, targets| FamilySpec {
        slots,
        targets,
        chunks: vec![],
    };
    let families = vec![spec(2, vec![target]), spec(1, vec![])];
    let topology = Topology::new(families).unwrap();
    let (segments, hints) = (memories(&topology, HeapMemory::new), HeapMemory::new(4096));
    let [agent, grain] = views(&topology, &segments, &hints);
    let [elsewhere, _] = views(&topology, &segments, &HeapMemory::new(4096));
    Line {
        producer: agent.instance(SlotIndex(0)),
        stopping: elsewhere.instance(SlotIndex(1)),
        grain,
        hints,
    }
}

fn publish(instance: &mut Instance<HeapMemory>, id: u64) {
    let (id, none) = (MessageId(id.into()), MessageId::NONE);
    let header = MessageHeader::event(id, none, none, GRAIN);
    let empty = Payload::Inline(&[]);
    let staged = instance.stage(GRAIN, &header, empty, TraceStamps::default());
    staged.expect("the lane is long enough");
    instance.commit(Ack::NOTHING);
}

fn rounds() -> u64 {
    if std::env::var_os("SANDPIPE_FULL").is_some() {
        10_000_000
    } else {
        1_000_000
    }
}

/// Random pauses around the consumer's way from its last look into its sleep.
fn publish_all(mut producer: Instance<HeapMemory>, taken: &AtomicU64, rounds: u64) {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for id in 1..=rounds {
        let mut looks = 0_u32;
        while taken.load(Ordering::Acquire) != id - 1 {
            looks += 1;
            if looks.is_multiple_of(256) {
                thread::yield_now();
            }
            std::hint::spin_loop();
        }
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // Mostly within the park; now and then long enough for the sleep to have begun.
        let limit = if random & 0xff == 0 { 20_000 } else { 200 };
        (0..(random >> 16) % limit).for_each(|_| std::hint::spin_loop());
        publish(&mut producer, id);
    }
}

fn race(waiter: &mut dyn Waiter, rounds: u64) {
    // One at a time: each needs two cores, or its races are only those of the scheduler.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Line {
        producer, grain, ..
    } = line();
    let taken = Arc::new(AtomicU64::new(0));
    let theirs = Arc::clone(&taken);
    let publisher = thread::spawn(move || publish_all(producer, &theirs, rounds));
    let mut receiver = grain.receiver();
    let bell = grain.bell(GRAIN);
    for id in 1..=rounds {
        let (_, place) = loop {
            if let Some(received) = receiver.receive() {
                break received;
            }
            let parking = bell.prepare();
            if !receiver.has_message() {
                let begin = Instant::now();
                let words = [parking.watched()];
                waiter.wait(&words, WATCHDOG, &mut Vec::new()).unwrap();
                assert!(begin.elapsed() < WATCHDOG, "bell {id} was missed");
            }
            parking.cancel();
        };
        receiver.acknowledge(place);
        taken.store(id, Ordering::Release);
    }
    publisher.join().unwrap();
}

fn open(kind: WaiterKind) -> Option<Box<dyn Waiter>> {
    match kind.open(Loop::Own) {
        Ok(waiter) => Some(waiter),
        Err(error) => {
            eprintln!("SKIP races on {}: {error}", kind.name());
            None
        }
    }
}

fn socket_pair() -> (OwnedFd, OwnedFd) {
    let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
    (one.into(), other.into())
}

#[test]
fn io_uring_misses_no_bell_in_a_million_races() {
    if let Some(mut waiter) = open(WaiterKind::IoUring) {
        let (fd, _open) = socket_pair();
        waiter.watch(fd.as_fd(), 1).unwrap();
        race(&mut *waiter, rounds());
    }
}

#[test]
fn futex_misses_no_bell_in_a_million_races() {
    race(&mut *open(WaiterKind::Futex).unwrap(), rounds() / 2);
    // With a descriptor as well it sleeps on two words.
    let mut waiter = open(WaiterKind::Futex).unwrap();
    let (fd, _open) = socket_pair();
    waiter.watch(fd.as_fd(), 1).unwrap();
    race(&mut *waiter, rounds() / 2);
}

#[test]
fn spin_misses_no_bell_in_a_million_races() {
    race(&mut *open(WaiterKind::Spin).unwrap(), rounds());
}

/// How often the bell has moved, and how many are announced.
fn bell_of(line: &Line) -> (u64, u64) {
    let count = line.hints.word(PARKED_AT).load(Ordering::SeqCst);
    (
        line.hints.word(BELL_AT).load(Ordering::SeqCst),
        u64::from(count as u32),
    )
}

/// Until a thread of this process sleeps.
fn until_asleep(thread: rustix::process::Pid) {
    let path = format!("/proc/self/task/{thread}/stat");
    let begin = Instant::now();
    while !std::fs::read_to_string(&path).unwrap().contains(") S ") {
        assert!(begin.elapsed() < WATCHDOG, "it does not sleep");
        thread::yield_now();
    }
}

#[test]
fn many_messages_to_a_consumer_that_sleeps_ring_once() {
    let mut line = line();
    let bell = line.grain.bell(GRAIN);
    let (announced, sleeper) = mpsc::channel();
    let consumer = thread::spawn(move || {
        let mut waiter = open(WaiterKind::Futex).unwrap();
        let parking = bell.prepare();
        announced.send(rustix::thread::gettid()).unwrap();
        let rung = waiter.wait(&[parking.watched()], WATCHDOG, &mut Vec::new());
        parking.cancel();
        rung.unwrap()
    });
    until_asleep(sleeper.recv().unwrap());
    for id in 1..=50 {
        publish(&mut line.producer, id);
    }
    assert!(consumer.join().unwrap(), "it was woken by the bell");
    assert_eq!(bell_of(&line), (1, 0));
}

#[test]
fn however_a_sleep_ends_an_awake_consumer_costs_its_publisher_no_bell() {
    let mut line = line();
    let bell: Bell<HeapMemory> = line.grain.bell(GRAIN);
    let short = Duration::from_millis(1);
    type End<'e> = &'e dyn Fn(&Bell<HeapMemory>);
    let ends: [End<'_>; 5] = [
        &|bell| bell.prepare().sleep(short),
        &|bell| bell.prepare().cancel(),
        &|bell| {
            let parking = bell.prepare();
            bell.ring_all();
            parking.sleep(short);
        },
        &|bell| {
            let parking = bell.prepare();
            bell.touch();
            parking.sleep(short);
        },
        &|bell| {
            let (first, second) = (bell.prepare(), bell.prepare());
            second.cancel();
            first.sleep(short);
        },
    ];
    let mut id = 0;
    for end in ends {
        end(&bell);
        let (before, announced) = bell_of(&line);
        assert_eq!(announced, 0);
        id += 1;
        publish(&mut line.producer, id);
        assert_eq!(bell_of(&line).0, before, "a bell for nobody");
    }
}

#[test]
fn what_the_dead_left_announced_costs_one_bell_in_all() {
    let mut line = line();
    let bell = line.grain.bell(GRAIN);
    for _ in 0..5 {
        // Killed in its sleep.
        let _killed = bell.prepare();
    }
    for id in 1..=10 {
        publish(&mut line.producer, id);
    }
    assert_eq!(bell_of(&line), (1, 0));
}

#[test]
fn a_producer_stopped_between_commit_and_bell_delays_its_message_by_one_rescan() {
    let _watchdog = Watchdog::new(WATCHDOG);
    for kind in WaiterKind::ALL {
        let Some(mut waiter) = open(kind) else {
            continue;
        };
        let mut line = line();
        let mut receiver = line.grain.receiver();
        let bell = line.grain.bell(GRAIN);
        for id in 1..=3 {
            let parking = bell.prepare();
            assert!(!receiver.has_message());
            publish(&mut line.stopping, id);
            let words = [parking.watched()];
            waiter.wait(&words, PARK_MAX, &mut Vec::new()).unwrap();
            parking.cancel();
            let (_, place) = receiver.receive().expect("one rescan finds it");
            receiver.acknowledge(place);
        }
        // Continued, it rings, and nobody minds.
        publish(&mut line.producer, 4);
        assert!(receiver.receive().is_some());
    }
}

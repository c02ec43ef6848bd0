//! The ring core between threads, with plain accesses where the protocol says that nobody else
//! uses the place meanwhile: under ThreadSanitizer (`scripts/test --suite tsan`) an ordering that
//! is too weak is a reported race. Without it the same tests check contents and counts.
#![allow(unsafe_code, reason = "plain accesses that two threads may reach")]

mod views;

use std::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use sandpipe::{
    Ack, Bus, ChunkClass, Delivery, FamilyIndex, FamilySpec, HeapMemory, Instance, LoanError,
    Memory, MessageHeader, MessageId, Payload, SlotIndex, StageError, Target, Topology,
    TraceStamps,
};
use views::{memories, views};

const GRAIN: FamilyIndex = FamilyIndex(1);
const LANE: u32 = 8;
/// Messages of one producer: a hundred thousand under the sanitizer take some seconds.
const MESSAGES: u64 = 100_000;
const WATCHDOG: Duration = Duration::from_secs(100);

/// Memory whose messages and payloads have a plain word beside each cache line.
#[derive(Clone, Debug)]
struct WatchedMemory {
    words: HeapMemory,
    plain: Arc<Plain>,
}

#[derive(Debug)]
struct Plain(Vec<UnsafeCell<u64>>);

// SAFETY: that threads use a word one after the other is what these tests are about.
unsafe impl Sync for Plain {}

impl WatchedMemory {
    fn new(len: usize) -> WatchedMemory {
        let lines = (0..len.div_ceil(64)).map(|_| UnsafeCell::new(0));
        WatchedMemory {
            words: HeapMemory::new(len),
            plain: Arc::new(Plain(lines.collect())),
        }
    }

    fn line(&self, offset: usize) -> *mut u64 {
        self.plain.0[offset / 64].get()
    }
}

impl Memory for WatchedMemory {
    fn words(&self, offset: usize, count: usize) -> &[AtomicU64] {
        self.words.words(offset, count)
    }

    fn len(&self) -> usize {
        self.words.len()
    }

    fn note_read(&self, offset: usize) {
        // SAFETY: in bounds; the protocol keeps writers away.
        std::hint::black_box(unsafe { self.line(offset).read() });
    }

    fn note_write(&self, offset: usize) {
        // SAFETY: in bounds; the protocol keeps others away.
        unsafe { self.line(offset).write(1) };
    }
}

/// The agent with two producing slots, a grain with two instances and two chunks to loan.
fn pair() -> [Bus<WatchedMemory>; 2] {
    let agent = FamilySpec {
        slots: 2,
        targets: vec![Target {
            queue: GRAIN,
            lane_slots: LANE,
        }],
        chunks: vec![ChunkClass {
            bytes: 128,
            count: 2,
        }],
    };
    let grain = FamilySpec {
        slots: 2,
        targets: vec![],
        chunks: vec![],
    };
    let topology = Topology::new(vec![agent, grain]).unwrap();
    let segments = memories(&topology, WatchedMemory::new);
    views(&topology, &segments, &WatchedMemory::new(4096))
}

/// Publishes the numbers below [`MESSAGES`], every third one in a chunk.
fn publish_all(mut producer: Instance<WatchedMemory>) {
    let until = Instant::now() + WATCHDOG;
    for number in 0..MESSAGES {
        while !publish(&mut producer, number) {
            assert!(Instant::now() < until, "no room at {number}");
            thread::yield_now();
        }
    }
}

fn publish(producer: &mut Instance<WatchedMemory>, number: u64) -> bool {
    let (id, none) = (MessageId(u128::from(number) + 1), MessageId::NONE);
    let header = MessageHeader::event(id, none, none, GRAIN);
    let bytes = [number.to_le_bytes(); 16].concat();
    let mut loan = None;
    if number.is_multiple_of(3) {
        match producer.loan(bytes.len()) {
            Ok(chunk) => loan = Some(chunk),
            Err(LoanError::Exhausted { .. }) => return false,
            Err(error) => panic!("{error}"),
        }
    }
    if let Some(loan) = &loan {
        producer.write(loan, 0, &bytes);
    }
    let payload = loan
        .as_ref()
        .map_or(Payload::Inline(&bytes[..64]), Payload::Loaned);
    let staged = producer.stage(GRAIN, &header, payload, TraceStamps::default());
    match (&staged, loan) {
        (Ok(()), _) => producer.commit(Ack::NOTHING),
        (Err(StageError::Full(_)), Some(loan)) => producer.give_back(loan),
        (Err(StageError::Full(_)), None) => {}
        (Err(error), _) => panic!("{error}"),
    }
    staged.is_ok()
}

/// The number of a message, which its whole payload says.
fn number_of(bus: &Bus<WatchedMemory>, delivery: &Delivery) -> u64 {
    let number = delivery.message.header.id.0 as u64 - 1;
    let payload = bus.payload(delivery).unwrap();
    let words = payload.as_chunks::<8>().0;
    assert!(
        words.iter().all(|word| *word == number.to_le_bytes()),
        "torn"
    );
    number
}

#[test]
fn what_one_thread_publishes_another_receives_in_order_and_nothing_races() {
    let [agent, grain] = pair();
    let producer = agent.instance(SlotIndex(0));
    let publisher = thread::spawn(|| publish_all(producer));
    let mut receiver = grain.receiver();
    let until = Instant::now() + WATCHDOG;
    let mut next = 0;
    while next < MESSAGES {
        if let Some((delivery, place)) = receiver.receive() {
            assert_eq!(number_of(&grain, &delivery), next);
            receiver.acknowledge(place);
            next += 1;
        } else {
            assert!(Instant::now() < until, "nothing comes after {next}");
            thread::yield_now();
        }
    }
    publisher.join().unwrap();
}

/// Claims, parks where nothing is there, and acknowledges until all are taken; those it had.
fn consume(bus: &Bus<WatchedMemory>, slot: SlotIndex, taken: &AtomicU64, all: u64) -> Vec<u64> {
    let (mut claimer, mut instance) = (bus.claimer(slot), bus.instance(slot));
    let bell = bus.bell(GRAIN);
    let until = Instant::now() + WATCHDOG;
    let mut had = Vec::new();
    while taken.load(Ordering::Relaxed) < all {
        assert!(Instant::now() < until, "slot {} waits for ever", slot.0);
        // The clock stands still: no claim is taken back because a thread had to wait.
        if let Some(delivery) = claimer.claim(|| 1) {
            had.push(number_of(bus, &delivery));
            instance.commit(delivery.ack);
            claimer.finish();
            taken.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let parking = bell.prepare();
        if claimer.has_message() {
            parking.cancel();
        } else {
            parking.sleep(Duration::MAX);
        }
    }
    had
}

#[test]
fn two_producers_and_two_instances_share_lanes_chunks_and_a_bell_and_nothing_races() {
    let [agent, grain] = pair();
    let all = 2 * MESSAGES;
    let taken = AtomicU64::new(0);
    let mut had = thread::scope(|scope| {
        for slot in [0, 1].map(SlotIndex) {
            let producer = agent.instance(slot);
            scope.spawn(|| publish_all(producer));
        }
        let other = scope.spawn(|| consume(&grain, SlotIndex(1), &taken, all));
        let own = consume(&grain, SlotIndex(0), &taken, all);
        [own, other.join().unwrap()].concat()
    });
    had.sort_unstable();
    let twice = (0..MESSAGES).flat_map(|number| [number, number]);
    assert!(had.into_iter().eq(twice), "lost or doubled");
}

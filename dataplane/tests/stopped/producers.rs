//! A producer that is stopped in the middle of publishing.

use std::time::{Duration, Instant};

use sandpipe::{MessageId, SlotIndex};

use crate::house::{AGENT, Child, House, S1, S2, WATCHDOG, Worker, publish_bytes, stop_time};
use crate::sandbox::{self, payload};
use crate::steps::stay_on_one_core;

/// Instructions between two stops.
const STRIDE: u64 = if cfg!(debug_assertions) { 251 } else { 7 };

/// What the producer publishes: before it is stepped, meanwhile (60 bytes, in the slot; 200 bytes,
/// in a chunk), and afterwards.
const IDS: [MessageId; 4] = [MessageId(4), MessageId(5), MessageId(6), MessageId(8)];

/// The producer, stopped `steps` instructions into the publishing of the second and third.
fn producer(house: &House, steps: u64) -> (Child, bool) {
    let grain = house.grain.clone();
    let bytes = IDS.map(|id| payload(id.0, u64::from(S1.0)));
    let publish = |worker: &mut Worker, index: usize| {
        let (id, bytes) = (IDS[index], &bytes[index]);
        publish_bytes(
            &mut worker.instance,
            AGENT,
            (id, MessageId::NONE),
            S1,
            bytes,
        )
    };
    Child::stopped_at(
        steps,
        || {
            let mut worker = Worker::new(&grain, S1);
            assert!(publish(&mut worker, 0));
            worker
        },
        |mut worker| {
            assert!(publish(&mut worker, 1) && publish(&mut worker, 2));
            crate::steps::stop();
            assert!(publish(&mut worker, 3));
        },
    )
}

fn from_slot(answers: &[(MessageId, SlotIndex)], slot: SlotIndex) -> Vec<MessageId> {
    let of_slot = answers.iter().filter(|answer| answer.1 == slot);
    of_slot.map(|answer| answer.0).collect()
}

/// Another producer publishes `count` messages, the first with this id.
fn others(house: &mut House, from: u128, count: u128) -> Vec<MessageId> {
    let mut other = house.grain.instance(S2);
    let ids: Vec<_> = (from..from + count).map(MessageId).collect();
    for id in &ids {
        let bytes = payload(id.0, u64::from(S2.0));
        let until = Instant::now() + WATCHDOG;
        while !publish_bytes(&mut other, AGENT, (*id, MessageId::NONE), S2, &bytes) {
            assert!(
                Instant::now() < until,
                "the lane of another producer is full"
            );
        }
    }
    ids
}

/// One stop; false if the work takes fewer instructions.
fn stop_once(house: &mut House, steps: u64, seen_early: &mut [u64; 4]) -> bool {
    let what = format!("instruction {steps}");
    let agent = house.agent.clone();
    let bell = agent.bell(AGENT);
    // The reader is asleep, as far as producers can tell, and nothing is there.
    let parking = bell.prepare();
    assert!(!house.receiver.has_message());
    let (child, reached) = producer(house, steps);
    if !reached {
        // It was let go: nothing is stopped, and all of its messages come.
        child.join();
        parking.cancel();
        assert_eq!(from_slot(&house.answers(), S1), IDS, "{what}: lost");
        return false;
    }
    let begin = Instant::now();
    parking.sleep(Duration::MAX);
    assert!(begin.elapsed() < WATCHDOG, "{what}: no rescan");
    // One rescan finds all that is visible, whether its bell was rung or not.
    let mut answers = house.answers();
    seen_early[answers.len()] += 1;
    let other = others(house, 1000, 5);
    let rest = house.answers();
    assert_eq!(
        from_slot(&rest, S2),
        other,
        "{what}: the other does not go on"
    );
    answers.extend(rest);
    let early = from_slot(&answers, S1);
    assert_eq!(early, IDS[..early.len()], "{what}: out of order");
    assert!(!early.is_empty() && early.len() <= 3, "{what}: {early:?}");
    child.go_on();
    child.join();
    answers.extend(house.answers());
    assert_eq!(from_slot(&answers, S1), IDS, "{what}: lost or out of order");
    house.assert_at_rest(&what);
    true
}

#[test]
fn a_producer_stopped_at_any_step_of_publishing_delays_its_own_message_only() {
    let _watchdog = sandbox::Watchdog::new(20 * WATCHDOG);
    stay_on_one_core(1);
    let mut house = House::new();
    let mut seen_early = [0; 4];
    let mut steps = 0;
    while stop_once(&mut house, steps, &mut seen_early) {
        steps += STRIDE;
    }
    let [_, one, two, three] = seen_early;
    println!(
        "stopped every {STRIDE} of {steps} instructions: {one} times before the second message \
         was visible, {two} and {three} times afterwards; lost 0, torn 0, out of order 0"
    );
    assert!(
        one > 10 && two > 10,
        "the stops did not cross the first commit"
    );
}

#[test]
fn while_a_producer_is_stopped_in_a_commit_the_other_goes_on_for_as_long_as_that_takes() {
    let _watchdog = sandbox::Watchdog::new(20 * WATCHDOG);
    let mut house = House::new();
    // Somewhere between its stage and its bell: the sweep above shows every step.
    let (child, reached) = producer(&house, 10 * STRIDE);
    assert!(reached);
    let mut answers = house.answers();
    let (end, mut next) = (Instant::now() + stop_time(), 1000);
    while Instant::now() < end {
        let sent = others(&mut house, next, 16);
        let got = house.answers();
        assert_eq!(from_slot(&got, S2), sent);
        assert_eq!(from_slot(&got, S1), [], "of the stopped one");
        next += 16;
    }
    child.go_on();
    child.join();
    answers.extend(house.answers());
    assert_eq!(from_slot(&answers, S1), IDS);
    house.assert_at_rest("at the end");
    println!(
        "{} messages of another went past a stopped producer",
        next - 1000
    );
}

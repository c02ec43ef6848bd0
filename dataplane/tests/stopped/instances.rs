//! Instances that are stopped for seconds: parked, in a handler, all at once.

use std::time::Instant;

use sandpipe::MessageId;

use crate::house::{Child, House, LANE, LAST, S1, S2, WATCHDOG, Worker, id, stop_time};
use crate::sandbox;

/// Messages that pass while an instance is stopped, at the least: many times around the lane.
const MESSAGES: u64 = 50 * LANE;

/// The message in the hands of a stopped instance: its payload lies in a chunk, so that others must
/// not take it meanwhile.
const HELD: u64 = 1;

/// Sends for the time of a stop, and reads the answers until all are there; the
/// number of the next message, and what was answered, in order.
fn send_while_stopped(house: &mut House, from: u64) -> (u64, Vec<MessageId>) {
    let end = Instant::now() + stop_time();
    let (mut next, mut answered) = (from, Vec::new());
    while Instant::now() < end || next < from + MESSAGES {
        assert!(Instant::now() < end + WATCHDOG, "the others do not go on");
        if house.send(id(next)) {
            next += 1;
        }
        answered.extend(of_slot_two(house));
    }
    let until = Instant::now() + WATCHDOG;
    while (answered.len() as u64) < next - from {
        assert!(Instant::now() < until, "answers are missing");
        answered.extend(of_slot_two(house));
        std::thread::yield_now();
    }
    (next, answered)
}

fn of_slot_two(house: &mut House) -> Vec<MessageId> {
    let one = |(id, slot)| {
        assert_eq!(slot, S2, "the answer of a stopped instance");
        id
    };
    house.answers().into_iter().map(one).collect()
}

fn ids(from: u64, to: u64) -> Vec<MessageId> {
    (from..to).map(id).collect()
}

/// Collects answers until there are `count`.
fn await_answers(house: &mut House, count: usize) -> Vec<(MessageId, sandpipe::SlotIndex)> {
    let until = Instant::now() + WATCHDOG;
    let mut answers = house.answers();
    while answers.len() < count {
        assert!(Instant::now() < until, "answers are missing");
        answers.extend(house.answers());
        std::thread::yield_now();
    }
    answers
}

#[test]
fn while_a_parked_instance_is_stopped_the_other_takes_every_message_in_order() {
    let _watchdog = sandbox::Watchdog::new(10 * WATCHDOG);
    let mut house = House::new();
    let grain = house.grain.clone();
    let parked = Child::spawn(|| Worker::new(&grain, S1).run());
    parked.await_state('S');
    parked.stop();
    let other = Child::spawn(|| Worker::new(&grain, S2).run());
    let (next, answered) = send_while_stopped(&mut house, 0);
    assert_eq!(answered, ids(0, next), "lost, doubled or out of order");
    // The other ends; what comes then is the stopped one's, which wakes up.
    assert!(house.send(LAST));
    other.join();
    assert_eq!(house.answers(), [(LAST, S2)]);
    assert!(house.send(id(next)) && house.send(LAST));
    parked.go_on();
    parked.join();
    assert_eq!(house.answers(), [(id(next), S1), (LAST, S1)]);
    house.assert_at_rest("at the end");
    println!("{next} messages went past a stopped instance: lost 0, doubled 0");
}

#[test]
fn while_an_instance_is_stopped_in_its_handler_only_its_own_message_waits() {
    let _watchdog = sandbox::Watchdog::new(10 * WATCHDOG);
    let mut house = House::new();
    let grain = house.grain.clone();
    assert!(house.send(id(HELD)));
    let (handling, _) = Child::stopped_at(
        0,
        || {
            let mut worker = Worker::new(&grain, S1);
            let delivery = worker.take().expect("a message waits");
            (worker, delivery)
        },
        |(mut worker, delivery)| {
            worker.answer(&delivery);
            worker.run();
        },
    );
    let other = Child::spawn(|| Worker::new(&grain, S2).run());
    let (next, answered) = send_while_stopped(&mut house, HELD + 1);
    assert_eq!(
        answered,
        ids(HELD + 1, next),
        "lost, doubled or out of order"
    );
    handling.go_on();
    assert_eq!(await_answers(&mut house, 1), [(id(HELD), S1)]);
    for _ in 0..2 {
        assert!(house.send(LAST));
    }
    handling.join();
    other.join();
    assert_eq!(house.answers().len(), 2);
    house.assert_at_rest("at the end");
    println!("{next} messages, one of them in the hands of a stopped instance: lost 0, doubled 0");
}

#[test]
fn while_every_instance_is_stopped_the_lane_fills_up_and_says_so_and_nothing_is_lost() {
    let _watchdog = sandbox::Watchdog::new(10 * WATCHDOG);
    let mut house = House::new();
    let grain = house.grain.clone();
    let children = [S1, S2].map(|slot| Child::spawn(|| Worker::new(&grain, slot).run()));
    for child in &children {
        child.await_state('S');
        child.stop();
    }
    let full = |house: &House| house.agent.counters(house.agent.family()).full;
    let before = full(&house);
    for number in 0..LANE {
        assert!(house.send(id(number)), "the lane is full too early");
    }
    let (end, mut refused) = (Instant::now() + stop_time(), 0);
    while Instant::now() < end {
        assert!(!house.send(id(LANE)), "nobody has taken anything");
        refused += 1;
    }
    assert_eq!(full(&house) - before, refused, "each Full is counted");
    assert_eq!(house.answers(), []);
    children.iter().for_each(Child::go_on);
    let until = Instant::now() + WATCHDOG;
    while !house.send(id(LANE)) {
        assert!(Instant::now() < until, "the lane stays full");
    }
    let answers = await_answers(&mut house, LANE as usize + 1);
    let mut seen: Vec<_> = answers.iter().map(|(id, _)| *id).collect();
    seen.sort_by_key(|id| id.0);
    assert_eq!(seen, ids(0, LANE + 1), "lost or doubled");
    // Each instance's own answers come in the order of the lane.
    for slot in [S1, S2] {
        let own = answers.iter().filter(|answer| answer.1 == slot);
        assert!(own.map(|(id, _)| id.0).is_sorted(), "out of order");
    }
    for _ in 0..2 {
        assert!(house.send(LAST));
    }
    for child in children {
        child.join();
    }
    assert_eq!(house.answers().len(), 2);
    house.assert_at_rest("at the end");
    println!(
        "Full {refused} times, {} messages afterwards: lost 0, doubled 0",
        LANE + 1
    );
}

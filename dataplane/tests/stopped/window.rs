//! An instance that is stopped at every instruction between its claim and its copy.

use std::collections::BTreeMap;
use std::mem::size_of;
use std::sync::atomic::Ordering;
use std::time::Instant;

use sandpipe::layout::LaneHead;
use sandpipe::{Memory, MessageId};

use crate::house::{Child, House, LANE, LAST, S1, S2, WATCHDOG, Worker, id};
use crate::sandbox;
use crate::steps::stay_on_one_core;

/// Instructions between two stops; unoptimised code takes many more of them.
const STRIDE: u64 = if cfg!(debug_assertions) { 31 } else { 1 };

/// Where the instance was stopped, as the claim word of its message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stopped {
    BeforeItsClaim,
    Claimed,
    Copied,
    WithTheMessage,
}

fn where_is(house: &House, position: u64) -> Stopped {
    let lane = house.grain.own_layout().lanes[0];
    let at = lane.head_at + size_of::<LaneHead>() + (position % LANE) as usize * 8;
    let word = house.grain.segment(house.grain.family()).unwrap().word(at);
    let word = word.load(Ordering::SeqCst);
    match (word >> 16 == position + 1, word & 3) {
        (false, _) => Stopped::BeforeItsClaim,
        (true, 0) => Stopped::Claimed,
        (true, 1) => Stopped::Copied,
        (true, _) => Stopped::WithTheMessage,
    }
}

/// Another instance handles messages until `count` are done; their ids.
fn handle(worker: &mut Worker, house: &mut House, count: u64, what: &str) -> Vec<MessageId> {
    let until = Instant::now() + WATCHDOG;
    let mut handled = Vec::new();
    while (handled.len() as u64) < count {
        assert!(Instant::now() < until, "{what}: blocked after {handled:?}");
        handled.extend(worker.handle_one());
        let answers = house.answers();
        assert!(answers.iter().all(|&(_, slot)| slot == S2), "{what}");
    }
    assert_eq!(worker.handle_one(), None, "{what}: one too many");
    assert_eq!(house.answers(), [], "{what}");
    handled
}

/// One stop `steps` instructions into the taking of a message; `None` if that takes fewer.
fn stop_once(house: &mut House, first: &mut u64, steps: u64) -> Option<Stopped> {
    let what = format!("instruction {steps}");
    let numbers = |from: u64| (from..from + LANE).map(id).collect::<Vec<_>>();
    let position = *first;
    assert!(house.send(id(*first)));
    let grain = house.grain.clone();
    let (child, reached) = Child::stopped_at(
        steps,
        || Worker::new(&grain, S1),
        |mut worker| {
            let delivery = worker.take();
            if delivery.is_none_or(|delivery| worker.answer(&delivery) != LAST) {
                worker.run();
            }
        },
    );
    if !reached {
        return None;
    }
    let stopped = where_is(house, position);
    for number in *first + 1..*first + LANE {
        assert!(house.send(id(number)), "{what}: full too early");
    }
    let mut other = Worker::new(&grain, S2);
    let mut expected = numbers(*first);
    if stopped != Stopped::BeforeItsClaim {
        expected.rotate_left(1);
    }
    // Its own message comes last: when nothing else is left in the lane, it is taken over, unless
    // it was copied already.
    let held = u64::from(stopped >= Stopped::Copied);
    expected.truncate((LANE - held) as usize);
    let handled = handle(&mut other, house, LANE - held, &what);
    assert_eq!(handled, expected, "{what}, {stopped:?}");
    // The producer goes on as well, more than once around the lane.
    for round in 1..=2 {
        let next = *first + round * LANE;
        for number in next..next + LANE {
            let until = Instant::now() + WATCHDOG;
            while !house.send(id(number)) {
                assert_eq!(other.handle_one(), None, "{what}");
                assert!(Instant::now() < until, "{what}, {stopped:?}: still full");
            }
        }
        assert_eq!(handle(&mut other, house, LANE, &what), numbers(next));
    }
    // It wakes up, finishes what it still has, and is of use again.
    child.go_on();
    assert!(house.send(LAST), "{what}");
    child.join();
    let mut answers = vec![(LAST, S1)];
    if held == 1 {
        answers.insert(0, (id(*first), S1));
    }
    assert_eq!(house.answers(), answers, "{what}, {stopped:?}");
    house.assert_at_rest(&what);
    *first += 3 * LANE + 1;
    Some(stopped)
}

#[test]
fn an_instance_stopped_at_any_instruction_of_a_claim_blocks_neither_producer_nor_others() {
    let _watchdog = sandbox::Watchdog::new(20 * WATCHDOG);
    stay_on_one_core(0);
    let mut house = House::new();
    let (mut steps, mut first) = (0, 0);
    let mut stops = BTreeMap::new();
    // The window by strides; a sample before it, and some behind.
    while let Some(stopped) = stop_once(&mut house, &mut first, steps) {
        let count: &mut u64 = stops.entry(stopped).or_default();
        *count += 1;
        let in_window = matches!(stopped, Stopped::Claimed | Stopped::Copied);
        if stopped == Stopped::WithTheMessage && *count > 10 {
            break;
        }
        steps += if in_window || steps > 60 { STRIDE } else { 7 };
    }
    println!("stopped at {stops:?}: lost 0, doubled 0, torn 0, blocked 0");
    for place in [Stopped::Claimed, Stopped::Copied, Stopped::WithTheMessage] {
        assert!(stops.contains_key(&place), "never stopped {place:?}");
    }
}

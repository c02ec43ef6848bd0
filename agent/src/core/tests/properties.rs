//! Random orders of everything that can happen, checked against what is promised.

use proptest::prelude::*;
use sandpipe_abi::MessageId;

use super::world::{World, body};
use crate::core::dead::is_letter;
use crate::core::*;

const GRAPHS: &[&[&[usize]]] = &[
    &[&[]],
    &[&[1], &[2], &[]],
    &[&[1, 2], &[], &[]],
    &[&[1, 2], &[3], &[3], &[]],
];

/// A small generator, so that one number replays a whole run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % bound
    }
}

/// A request that was made: its waiter, its key if it has one, its payload, whether it fails.
struct Asked {
    waiter: u64,
    identity: Identity,
    wait: Wait,
    payload: Vec<u8>,
}

fn ask(world: &mut World, dice: &mut Dice, asked: &mut Vec<Asked>) {
    let number = asked.len();
    let identity = match dice.below(3) {
        0 => Identity::Key(format!("k{number}")),
        1 => Identity::Event {
            source: "/s".into(),
            id: number.to_string(),
        },
        _ => Identity::Fresh,
    };
    let wait = if dice.below(3) == 0 {
        Wait::Durable
    } else {
        Wait::Answer
    };
    let payload = match dice.below(8) {
        0 => b"F1".to_vec(),
        1 => b"D1".to_vec(),
        _ => format!("p{number}.").into_bytes(),
    };
    let waiter = world.submit(identity.clone(), wait, &payload);
    asked.push(Asked {
        waiter,
        identity,
        wait,
        payload,
    });
}

fn step(world: &mut World, dice: &mut Dice) {
    let grain = dice.below(world.next.len());
    match dice.below(4) {
        0 | 1 => world.handle(grain),
        2 => world.read(grain),
        _ => {
            let count = dice.below(4);
            world.acknowledge(count)
        }
    };
    if dice.below(5) == 0 {
        world.tick(0);
    }
}

/// Sends the oldest letter again; nobody waits until that is durable.
fn send_again(world: &mut World, roots: &mut Vec<String>, again: &mut Vec<MessageId>) {
    let Some(letter) = world.core.dead_letters().into_iter().next() else {
        return;
    };
    if let Reply::Accepted(id) = world.redrive(&letter.id) {
        roots.push(letter.root);
        again.push(id);
    }
}

/// Asserts that an answer is what the simulated grains make of a payload.
fn check_answer(graph: usize, payload: &[u8], answer: &str) {
    let text = String::from_utf8(payload.to_vec()).unwrap();
    match graph {
        0 => assert_eq!(answer, format!("a{text}")),
        _ if text == "F1" => assert_eq!(answer, "g1: it fails"),
        _ if text == "D1" => assert_eq!(answer, "g1: it died"),
        1 => assert_eq!(answer, format!("cba{text}")),
        _ => {
            let events: serde_json::Value = serde_json::from_str(answer).unwrap();
            let found: Vec<_> = events
                .as_array()
                .unwrap()
                .iter()
                .map(|e| &e["data"])
                .collect();
            let last = if graph == 2 {
                ["ba", "ca"]
            } else {
                ["dba", "dca"]
            };
            let mut right = last.map(|path| serde_json::Value::from(format!("{path}{text}")));
            right.sort_by_key(|value| value != found[0]); // one grain's outputs stand by their ids
            assert_eq!(found, right.iter().collect::<Vec<_>>());
        }
    }
}

fn check_end(world: &World, graph: usize, asked: &[Asked]) {
    assert!(world.core.is_idle(), "{:?}", world.core);
    let unfinished: Vec<_> = world
        .unfinished()
        .into_iter()
        .filter(|record| !record.is_result() || record.id != record.root)
        .filter(|record| !is_letter(record))
        .collect();
    assert!(unfinished.is_empty(), "{unfinished:?}");
    assert_eq!(world.letters().len(), world.stored_letters());
    for one in asked {
        let replies = &world.replies[&one.waiter];
        assert!(replies.len() <= 1, "{replies:?}");
        if let Some(reply @ Reply::Done(_)) = replies.first() {
            check_answer(graph, &one.payload, &body(reply));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn without_deaths_every_caller_hears_exactly_once_and_every_message_runs_once(
        seed in any::<u64>(), graph in 0..GRAPHS.len(), capacity in 1usize..8,
    ) {
        let mut dice = Dice(seed);
        let mut world = World::new(GRAPHS[graph], true);
        world.capacity = capacity;
        let mut asked = Vec::new();
        for _ in 0..200 {
            if dice.below(6) == 0 {
                ask(&mut world, &mut dice, &mut asked);
            } else {
                step(&mut world, &mut dice);
            }
        }
        world.run();
        check_end(&world, graph, &asked);
        for one in &asked {
            prop_assert_eq!(world.replies[&one.waiter].len(), 1);
        }
        prop_assert_eq!(world.core.counters().redelivered, 0);
        prop_assert_eq!(world.core.counters().folded, 0);
    }

    #[test]
    fn whatever_dies_what_was_promised_is_answered_and_nothing_stays_open(
        seed in any::<u64>(), graph in 0..GRAPHS.len(), know_alive in any::<bool>(),
    ) {
        let mut dice = Dice(seed);
        let mut world = World::new(GRAPHS[graph], true);
        let mut asked = Vec::new();
        // Of every letter that was sent again: its request, and what that had to become.
        let (mut roots, mut again) = (Vec::new(), Vec::new());
        for _ in 0..200 {
            match dice.below(40) {
                8 => send_again(&mut world, &mut roots, &mut again),
                0..=5 => ask(&mut world, &mut dice, &mut asked),
                6 => world.sandbox_dies(),
                7 => {
                    let mut cuts = Dice(seed ^ 77);
                    world.agent_dies(know_alive, |bound| cuts.below(bound));
                }
                _ => step(&mut world, &mut dice),
            }
        }
        world.run();
        check_end(&world, graph, &asked);
        for id in again {
            prop_assert_eq!(body(&world.collect(id)), "g1: it died");
        }
        roots.extend(world.core.dead_letters().into_iter().map(|letter| letter.root));
        for one in &asked {
            // A caller that heard of a death can find the letter, or has sent it again.
            if let Some(Reply::Done(answer)) = world.replies[&one.waiter].first()
                && body(&Reply::Done(answer.clone())) == "g1: it died"
            {
                prop_assert!(roots.contains(&answer.root.to_string()), "{:?}", answer.root);
            }
            let Some(promised) = world.replies[&one.waiter].first().cloned() else { continue };
            // A promise or an answer to a named request: asking again gives that answer.
            match (&promised, &one.identity) {
                (Reply::Accepted(id), _) => {
                    let answer = body(&world.collect(*id));
                    check_answer(graph, &one.payload, &answer);
                }
                (Reply::Done(first), Identity::Key(_) | Identity::Event { .. }) => {
                    let handled = world.handled;
                    let again = world.submit(one.identity.clone(), Wait::Answer, &one.payload);
                    world.run();
                    let Reply::Done(second) = world.reply(again).clone() else { panic!() };
                    prop_assert_eq!(&first.outcome, &second.outcome);
                    prop_assert_eq!(world.handled, handled);
                }
                (Reply::Done(_) | Reply::Busy, _) => {}
                (other, _) => panic!("{other:?} to {:?}", one.wait),
            }
        }
    }
}

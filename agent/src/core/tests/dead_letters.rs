//! Events whose attempts are used up are listed with the reason, and sent again once.

use sandpipe_abi::MessageId;

use super::world::{World, body};
use crate::core::*;

pub const CHAIN: &[&[usize]] = &[&[1], &[2], &[]];

/// A request that has died in the second of three grains; nothing of that is durable yet.
pub fn with_a_fresh_letter() -> World {
    let mut world = World::new(CHAIN, true);
    world.submit(Identity::Key("k".into()), Wait::Answer, b"xD1");
    world.handle(0);
    world.read(0);
    world.flush();
    world.handle(1);
    world.read(1);
    world
}

/// A request that dies in the second of three grains, durable and over.
fn with_a_letter() -> (World, String) {
    let mut world = World::new(CHAIN, true);
    let waiter = world.submit(Identity::Fresh, Wait::Answer, b"xD1");
    world.run();
    assert_eq!(world.body(waiter), "g1: it died");
    let letters = world.letters();
    let [letter] = &letters[..] else {
        panic!("{letters:?}")
    };
    (world, letter.clone())
}

fn accepted(reply: &Reply) -> MessageId {
    match reply {
        Reply::Accepted(id) => *id,
        other => panic!("not accepted: {other:?}"),
    }
}

#[test]
fn a_dead_event_is_listed_with_its_grain_its_cause_and_the_reason() {
    let (world, id) = with_a_letter();
    let letter = &world.core.dead_letters()[0];
    assert_eq!(
        (letter.grain.as_str(), letter.cause.as_str()),
        ("g1", "crashed")
    );
    assert_eq!((letter.reason.as_str(), letter.bytes), ("it died", 4));
    assert_eq!(letter.died_unix_ms, world.now.unix_ms);
    assert_ne!(letter.root, id, "it died behind the first grain");
    assert_eq!(world.core.dead_letter_load(), (1, 4));
    assert_eq!(world.core.counters().dead, 1);
    assert!(world.core.is_idle());
}

#[test]
fn a_handlers_error_is_an_answer_and_no_dead_letter() {
    let mut world = World::new(CHAIN, true);
    world.submit(Identity::Fresh, Wait::Answer, b"xF1");
    world.run();
    assert_eq!(
        (world.letters().len(), world.core.counters().failed),
        (0, 1)
    );
}

#[test]
fn sent_again_it_goes_on_at_the_grain_where_it_died_and_leaves_the_list() {
    let (mut world, letter) = with_a_letter();
    world.cured = true;
    let before = world.handled;
    let again = accepted(&world.redrive(&letter));
    assert!(world.letters().is_empty());
    world.run();
    assert_eq!(body(&world.collect(again)), "cbaxD1");
    assert_eq!(
        world.handled - before,
        2,
        "the first grain runs no second time"
    );
    assert_eq!(world.stored_letters(), 0);
    assert_eq!(world.core.counters().redriven, 1);
}

#[test]
fn whoever_sends_a_letter_twice_means_the_same_request() {
    let (mut world, letter) = with_a_letter();
    world.cured = true;
    let before = world.handled;
    let first = accepted(&world.redrive(&letter));
    assert_eq!(accepted(&world.redrive(&letter)), first, "while it is open");
    world.run();
    assert_eq!(
        accepted(&world.redrive(&letter)),
        first,
        "when it has ended"
    );
    world.run();
    assert_eq!(world.handled - before, 2);
    assert_eq!(world.core.counters().redriven, 1);
}

#[test]
fn an_event_that_dies_again_has_a_letter_of_its_own() {
    let (mut world, letter) = with_a_letter();
    let again = accepted(&world.redrive(&letter));
    world.run();
    assert_eq!(world.letters(), [again.to_string()]);
    assert_eq!(body(&world.collect(again)), "g1: it died");
}

#[test]
fn an_unknown_letter_is_unknown_and_one_that_finds_no_room_stays() {
    let (mut world, letter) = with_a_letter();
    assert_eq!(world.redrive(&MessageId(7).to_string()), Reply::Unknown);
    world.core.set_unavailable(Some("the disk is full".into()));
    assert_eq!(
        world.redrive(&letter),
        Reply::Unavailable("the disk is full".into())
    );
    world.core.set_unavailable(None);
    for _ in 0..64 {
        world.submit(Identity::Fresh, Wait::Answer, b"x");
    }
    assert_eq!(world.redrive(&letter), Reply::Busy);
    assert_eq!(world.letters(), [letter]);
}

#[test]
fn a_letter_survives_the_agent_and_the_sandbox() {
    let (mut world, letter) = with_a_letter();
    world.agent_dies(true, |_| 0);
    assert_eq!(world.letters(), std::slice::from_ref(&letter));
    world.sandbox_dies();
    assert_eq!(world.letters(), std::slice::from_ref(&letter));
    assert_eq!(world.stored_letters(), 1);
    world.tick(1_000_000);
    world.agent_dies(true, |_| 0);
    assert_eq!(world.letters(), [letter], "a letter does not expire");
}

#[test]
fn a_letter_of_an_older_agent_leaves_the_list_for_good() {
    let (mut world, letter) = with_a_letter();
    world.flush();
    world.agent_dies(true, |_| 0);
    // Enough answers that each partition has one of the new agent.
    for number in 0..40 {
        world.submit(Identity::Key(number.to_string()), Wait::Answer, b"x");
        world.run();
    }
    world.cured = true;
    accepted(&world.redrive(&letter));
    world.run();
    world.tick(1_000_000); // the new request's answer has expired
    world.flush();
    world.agent_dies(true, |_| 0);
    assert_eq!((world.letters().len(), world.stored_letters()), (0, 0));
}

#[test]
fn an_agent_that_dies_while_it_sends_a_letter_again_leaves_one_effect() {
    // How many of the new request's record and of the letter's tombstone are durable.
    for acknowledged in 0..=2 {
        let (mut world, letter) = with_a_letter();
        world.cured = true;
        world.flush();
        let before = world.handled;
        let event = MessageId::parse(&letter).unwrap();
        world.core.redrive(world.now, event, 1000);
        world.carry_out();
        for _ in 0..acknowledged {
            world.acknowledge(1);
        }
        world.agent_dies(true, |_| 0);
        world.run();
        assert_eq!(
            world.letters().is_empty(),
            acknowledged > 0,
            "{acknowledged}"
        );
        let again = accepted(&world.redrive(&letter));
        world.run();
        assert_eq!(body(&world.collect(again)), "cbaxD1");
        assert_eq!(world.handled - before, 2, "{acknowledged}: effects once");
        assert_eq!((world.letters().len(), world.stored_letters()), (0, 0));
    }
}

#[test]
fn an_answer_that_says_an_event_died_is_never_there_without_the_letter() {
    for kept in 0..8 {
        let mut world = with_a_fresh_letter();
        // Of each topic partition, this many of the records that were not acknowledged.
        world.agent_dies(true, |bound| kept.min(bound - 1));
        world.run();
        assert_eq!(
            (world.letters().len(), world.stored_letters()),
            (1, 1),
            "{kept}"
        );
    }
}

#[test]
fn a_host_that_dies_with_its_sandbox_leaves_no_answer_without_its_letter() {
    let mut answered = 0;
    for choice in 0..256_usize {
        let mut world = World::new(CHAIN, true);
        world.submit(Identity::Key("k".into()), Wait::Answer, b"xD1");
        let root = world.log[0].id;
        world.handle(0);
        world.read(0);
        world.flush();
        world.handle(1);
        world.read(1);
        world.lose_what_was_told();
        // Each topic partition keeps a prefix of its own.
        let mut choices = choice;
        world.agent_dies(false, |bound| {
            let kept = (choices & 3).min(bound - 1);
            choices >>= 2;
            kept
        });
        if matches!(world.collect(root), Reply::Done(_)) {
            answered += 1;
            assert_eq!(world.letters().len(), 1, "{choice}");
        }
    }
    assert!(answered > 0, "some choice keeps the answer");
}

#[test]
fn an_event_that_was_handled_after_all_has_no_letter() {
    let mut world = with_a_fresh_letter();
    world.cured = true;
    // The letter is durable, the answer is not, and the sandbox dies with the agent.
    world.lose_what_was_told();
    world.agent_dies(false, |bound| 1.min(bound - 1));
    assert_eq!(world.letters().len(), 1);
    let retry = world.submit(Identity::Key("k".into()), Wait::Answer, b"xD1");
    world.run();
    assert_eq!(world.body(retry), "cbaxD1");
    assert_eq!((world.letters().len(), world.stored_letters()), (0, 0));
}

#[test]
fn without_a_backup_there_are_no_letters() {
    let mut world = World::new(CHAIN, false);
    let waiter = world.submit(Identity::Fresh, Wait::Answer, b"xD1");
    world.run();
    assert_eq!(world.body(waiter), "g1: it died");
    assert!(world.letters().is_empty() && world.core.is_idle());
}

//! Dead letters that somebody deletes, or looks at.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sandpipe_abi::MessageId;

use super::dead_letters;
use super::world::World;
use crate::core::*;

const DELETING: u64 = 1000;

fn with_a_fresh_letter() -> (World, MessageId) {
    let world = dead_letters::with_a_fresh_letter();
    let event = MessageId::parse(&world.letters()[0]).unwrap();
    (world, event)
}

fn delete(world: &mut World, event: MessageId) {
    world.core.delete_letter(world.now, event, DELETING);
    world.carry_out();
}

fn told(world: &mut World) -> Vec<Reply> {
    world.replies.remove(&DELETING).unwrap_or_default()
}

#[test]
fn a_letter_is_shown_whole_until_it_is_deleted() {
    let (mut world, event) = with_a_fresh_letter();
    world.run();
    let whole = world.core.dead_letter(event).unwrap();
    assert_eq!(whole.letter, world.core.dead_letters()[0]);
    assert_eq!(whole.letter.attempts, Some(3));
    assert_eq!(whole.data_base64, STANDARD.encode(b"axD1"));
    let handled = world.handled;
    delete(&mut world, event);
    assert!(world.letters().is_empty() && world.core.dead_letter(event).is_none());
    assert_eq!(told(&mut world), [], "not before it is durable");
    delete(&mut world, event);
    world.run();
    let both = [Reply::Accepted(event), Reply::Accepted(event)];
    assert_eq!(told(&mut world), both, "each who asked");
    delete(&mut world, event);
    assert_eq!(told(&mut world), [Reply::Unknown]);
    assert_eq!(world.redrive(&event.to_string()), Reply::Unknown);
    world.agent_dies(true, |_| 0);
    world.run();
    assert_eq!((world.letters().len(), world.stored_letters()), (0, 0));
    assert_eq!(world.handled, handled, "its event runs no more");
    assert!(world.core.is_idle());
}

#[test]
fn whoever_dies_a_letter_that_was_told_to_be_deleted_never_comes_back() {
    let (mut gone, mut left) = (0, 0);
    // How many records are acknowledged at once, how often, and how many more outlive the agent.
    for choice in 0..4 * 8 * 4_usize {
        let (at_once, often, kept) = (choice % 4 + 1, choice / 4 % 8, choice / 32);
        let (mut world, event) = with_a_fresh_letter();
        delete(&mut world, event);
        for _ in 0..often {
            world.acknowledge(at_once);
        }
        let was_told = told(&mut world) == [Reply::Accepted(event)];
        world.agent_dies(true, |bound| kept.min(bound - 1));
        world.run();
        let letters = (world.letters().len(), world.stored_letters());
        if was_told {
            assert_eq!(letters, (0, 0), "{at_once} {often} {kept}");
            gone += 1;
        } else {
            assert!(letters == (1, 1) || letters == (0, 0), "{letters:?}");
            left += letters.0;
        }
        assert_eq!(world.handled, 2, "no grain runs again");
    }
    assert!(gone > 0 && left > 0, "{gone} gone, {left} left");
}

#[test]
fn a_letter_that_is_sent_again_cannot_be_deleted_and_runs_once() {
    let (mut world, event) = with_a_fresh_letter();
    world.run();
    world.cured = true;
    let before = world.handled;
    world.redrive(&event.to_string());
    delete(&mut world, event);
    assert_eq!(told(&mut world), [Reply::Unknown]);
    world.run();
    assert_eq!(world.handled - before, 2);
    assert_eq!((world.letters().len(), world.stored_letters()), (0, 0));
}

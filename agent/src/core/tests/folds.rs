//! What is told twice counts once.

use sandpipe_abi::MessageId;

use super::world::World;
use crate::core::*;

const CHAIN: &[&[usize]] = &[&[1], &[]];
const FAN_OUT: &[&[usize]] = &[&[1, 2], &[], &[]];

/// Tells the core that `parent` of this root made an output for grain 1, and was finished.
fn tell(world: &mut World, number: u64, root: MessageId, child: u128) {
    let local = Local {
        number,
        id: MessageId(child),
        root,
        parent: root,
        from: 0,
        news: News::Output { grain: 1 },
        last: true,
        stamps: None,
        event: None,
        payload: b"ax".to_vec(),
    };
    world.core.local(world.now, local).unwrap();
}

fn commands(world: &mut World) -> Vec<Command<u64>> {
    std::iter::from_fn(|| world.core.next_command()).collect()
}

#[test]
fn a_message_that_was_handled_twice_makes_one_child() {
    let mut world = World::new(CHAIN, true);
    world.submit(Identity::Fresh, Wait::Answer, b"x");
    let root = world.log[0].id;
    tell(&mut world, 1000, root, 5);
    let first = commands(&mut world);
    assert!(
        matches!(first[..], [Command::Append { number: 2, .. }]),
        "{first:?}"
    );
    tell(&mut world, 1001, root, 6); // a second attempt, which even made another id
    assert!(commands(&mut world).is_empty(), "nothing is appended again");
    assert_eq!(world.core.counters().folded, 1);
    world.core.durable(world.now, 2);
    let released = commands(&mut world);
    assert!(released.contains(&Command::Release(1001)), "{released:?}");
}

#[test]
fn what_an_ended_request_is_told_again_changes_nothing() {
    let mut world = World::new(CHAIN, true);
    let waiter = world.submit(Identity::Key("k".into()), Wait::Answer, b"x");
    let root = world.log[0].id;
    world.run();
    assert_eq!(world.body(waiter), "bax");
    let appended = world.log.len();
    tell(&mut world, 1000, root, 5);
    assert_eq!(commands(&mut world), [Command::Release(1000)]);
    assert_eq!((world.log.len(), world.core.in_flight()), (appended, 0));
}

#[test]
fn one_of_several_outputs_survives_the_agent_while_the_others_are_to_come() {
    let mut world = World::new(FAN_OUT, true);
    let key = || Identity::Key("k".into());
    world.submit(key(), Wait::Answer, b"x");
    world.handle(0);
    world.handle(1);
    world.read(0);
    world.read(0);
    world.read(1); // the first of two outputs
    world.flush();
    world.agent_dies(true, |_| 0);
    let retry = world.submit(key(), Wait::Answer, b"x");
    world.run();
    let events: serde_json::Value = serde_json::from_str(&world.body(retry)).unwrap();
    assert_eq!(
        (&events[0]["data"], &events[1]["data"]),
        (&"bax".into(), &"cax".into())
    );
    assert_eq!(world.handled, 3, "nothing ran twice");
    let open: Vec<_> = world
        .unfinished()
        .into_iter()
        .filter(|r| r.id != r.root)
        .collect();
    assert!(
        open.is_empty(),
        "the single output is forgotten once the answer is stored: {open:?}"
    );
}

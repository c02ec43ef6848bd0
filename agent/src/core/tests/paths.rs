//! The path of a request, for whoever keeps traces.

use super::world::World;
use crate::core::*;

fn submit(world: &mut World, identity: Identity, payload: &[u8]) {
    world.replies.insert(1, Vec::new());
    let submit = Submit {
        identity,
        wait: Wait::Answer,
        waiter: 1,
        payload: payload.to_vec(),
        content_type: Default::default(),
        traceparent: "context".into(),
        attributes: Default::default(),
        traced_since_ns: Some(5),
        shows_trace: false,
    };
    world.core.submit(world.now, submit);
    world.carry_out();
}

#[test]
fn a_path_knows_who_made_what_and_its_caller_neither_waits_for_it_nor_sees_it() {
    let mut world = World::new(&[&[1, 2], &[], &[]], true);
    submit(&mut world, Identity::Fresh, b"x");
    // Nothing is durable until the answer is there.
    while (0..3).any(|grain| world.handle(grain) | world.read(grain)) {}
    let Reply::Done(answer) = world.reply(1) else {
        panic!()
    };
    assert_eq!(answer.trace, None);
    let [path] = world.paths.as_slice() else {
        panic!("{:?}", world.paths)
    };
    assert_eq!((path.root, &*path.traceparent), (answer.root, "context"));
    assert_eq!((path.failed, path.trace.received_ns), (None, 5));
    assert!(path.trace.known_ns > 0);
    let hops = &path.trace.hops;
    let grains: Vec<&str> = hops.iter().map(|hop| hop.grain.as_str()).collect();
    assert_eq!(grains, ["g0", "g1", "g2"]);
    let root = answer.root;
    let made = [(hops[1].message, root), (hops[2].message, root)];
    assert_eq!(path.trace.made, made);
    world.run();
    assert_eq!(world.paths.len(), 1);
}

#[test]
fn the_path_of_a_failed_request_names_its_cause_and_comes_once_its_branches_have_ended() {
    let mut world = World::new(&[&[1, 2], &[], &[]], true);
    submit(&mut world, Identity::Key("k".into()), b"F1");
    world.handle(0);
    world.read(0);
    world.handle(1);
    world.read(1);
    world.flush();
    assert!(matches!(world.reply(1), Reply::Done(_)));
    assert_eq!(world.paths, [], "a branch is open");
    world.run();
    let path = &world.paths[0];
    assert_eq!(path.failed, Some(Cause::HandlerError));
    let failed: Vec<Option<Cause>> = path.trace.hops.iter().map(|hop| hop.failed).collect();
    assert_eq!(failed, [None, Some(Cause::HandlerError), None]);
}

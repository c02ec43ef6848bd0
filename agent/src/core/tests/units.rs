use sandpipe_global_bus::{Flag, RESULTS};

use super::world::{World, body};
use crate::core::*;

const CHAIN: &[&[usize]] = &[&[1], &[2], &[]];
const FAN_OUT: &[&[usize]] = &[&[1, 2], &[], &[]];

fn key(text: &str) -> Identity {
    Identity::Key(text.into())
}

fn accepted(reply: &Reply) -> sandpipe_abi::MessageId {
    let Reply::Accepted(id) = reply else {
        panic!("{reply:?}")
    };
    *id
}

#[test]
fn a_chain_answers_with_the_last_grains_output() {
    let mut world = World::new(CHAIN, true);
    let waiter = world.submit(Identity::Fresh, Wait::Answer, b"x");
    world.run();
    assert_eq!(world.body(waiter), "cbax");
    assert!(world.core.is_idle());
}

#[test]
fn who_only_waits_for_the_answer_does_not_wait_for_the_disk() {
    let mut world = World::new(&[&[]], true);
    let waiter = world.submit(Identity::Fresh, Wait::Answer, b"x");
    world.handle(0);
    world.read(0);
    assert_eq!((world.durable, world.body(waiter)), (0, "ax".to_owned()));
}

#[test]
fn an_accepted_request_is_durable_before_its_caller_hears_and_before_it_runs() {
    let mut world = World::new(CHAIN, true);
    let waiter = world.submit(Identity::Fresh, Wait::Durable, b"x");
    assert!(world.replies[&waiter].is_empty());
    assert!(world.queues[0].is_empty());
    world.flush();
    let id = accepted(world.reply(waiter));
    assert_eq!(world.collect(id), Reply::Pending(id));
    world.run();
    assert_eq!(body(&world.collect(id)), "cbax");
}

#[test]
fn an_answer_with_a_key_is_durable_before_its_caller_hears() {
    let mut world = World::new(&[&[]], true);
    let waiter = world.submit(key("k"), Wait::Answer, b"x");
    world.handle(0);
    world.read(0);
    assert!(world.replies[&waiter].is_empty());
    world.flush();
    assert_eq!(world.body(waiter), "ax");
}

#[test]
fn a_retry_with_the_same_key_gets_the_same_answer_and_runs_nothing() {
    let mut world = World::new(CHAIN, true);
    let first = world.submit(key("k"), Wait::Answer, b"x");
    let meanwhile = world.submit(key("k"), Wait::Answer, b"x");
    world.run();
    let after = world.submit(key("k"), Wait::Answer, b"x");
    let other = world.submit(key("l"), Wait::Answer, b"y");
    world.run();
    for waiter in [first, meanwhile, after] {
        assert_eq!(world.body(waiter), "cbax");
    }
    assert_eq!(world.body(other), "cbay");
    assert_eq!(world.handled, 6);
}

#[test]
fn a_retry_after_the_agents_death_gets_the_stored_answer() {
    let mut world = World::new(CHAIN, true);
    let first = world.submit(key("k"), Wait::Answer, b"x");
    world.run();
    assert_eq!(world.body(first), "cbax");
    world.agent_dies(true, |_| 0);
    let retry = world.submit(key("k"), Wait::Answer, b"x");
    world.run();
    assert_eq!((world.body(retry), world.handled), ("cbax".to_owned(), 3));
}

#[test]
fn a_failure_is_stored_and_survives_the_agent() {
    let mut world = World::new(CHAIN, true);
    let first = world.submit(key("k"), Wait::Answer, b"F1");
    world.run();
    let Reply::Done(before) = world.reply(first).clone() else {
        panic!()
    };
    world.agent_dies(true, |_| 0);
    let retry = world.submit(key("k"), Wait::Answer, b"F1");
    let Reply::Done(after) = world.reply(retry).clone() else {
        panic!()
    };
    assert_eq!(before.outcome, after.outcome);
    let Outcome::Failed(failure) = &after.outcome else {
        panic!()
    };
    assert_eq!(
        (&*failure.grain, failure.cause),
        ("g1", Cause::HandlerError)
    );
}

#[test]
fn a_fan_out_answers_with_a_batch_of_events() {
    let mut world = World::new(FAN_OUT, true);
    let waiter = world.submit(Identity::Fresh, Wait::Answer, b"x");
    world.run();
    let Reply::Done(answer) = world.reply(waiter) else {
        panic!()
    };
    let Outcome::Output { content_type, body } = &answer.outcome else {
        panic!()
    };
    assert_eq!(&**content_type, "application/cloudevents-batch+json");
    let events: serde_json::Value = serde_json::from_slice(body).unwrap();
    assert_eq!(events[0]["data"], "bax");
    assert_eq!(events[0]["source"], "/app/g1");
    assert_eq!(events[1]["data"], "cax");
    assert_eq!(events.as_array().unwrap().len(), 2);
}

#[test]
fn the_first_failure_answers_and_the_other_branch_ends_quietly() {
    let mut world = World::new(FAN_OUT, true);
    let waiter = world.submit(Identity::Fresh, Wait::Answer, b"F1");
    world.handle(0);
    world.handle(1);
    world.read(0);
    world.read(0);
    world.read(1);
    assert_eq!(world.body(waiter), "g1: it fails");
    world.run();
    assert!(world.core.is_idle());
    assert_eq!(world.core.counters().failed, 1);
}

#[test]
fn finished_is_appended_only_after_the_children_are_durable() {
    let mut world = World::new(CHAIN, true);
    world.submit(Identity::Fresh, Wait::Answer, b"x");
    world.flush();
    world.handle(0);
    world.read(0);
    let flags: Vec<&Flag> = world.log.iter().map(|record| &record.flag).collect();
    assert_eq!(flags, [&Flag::Processing, &Flag::Processing]);
    world.acknowledge(1);
    assert_eq!(world.log[2].flag, Flag::Finished);
    assert_eq!(world.log[2].id, world.log[0].id);
}

#[test]
fn a_message_that_is_heard_of_before_its_own_copy_is_counted_once() {
    let mut world = World::new(&[&[1], &[]], true);
    let waiter = world.submit(Identity::Fresh, Wait::Answer, b"x");
    world.handle(0);
    world.handle(1);
    world.read(1); // the child's answer comes first
    assert!(world.replies[&waiter].is_empty());
    world.read(0);
    assert_eq!(world.body(waiter), "bax");
    world.run();
    assert!(world.core.is_idle());
}

#[test]
fn a_full_queue_refuses_who_waits_and_leaves_nothing_behind() {
    let mut world = World::new(CHAIN, true);
    world.capacity = 1;
    world.submit(Identity::Fresh, Wait::Answer, b"x");
    let waiter = world.submit(Identity::Fresh, Wait::Answer, b"y");
    assert_eq!(world.reply(waiter), &Reply::Busy);
    assert_eq!((world.core.in_flight(), world.log.len()), (1, 1));
}

#[test]
fn what_was_accepted_waits_for_room() {
    let mut world = World::new(&[&[]], true);
    world.capacity = 1;
    let ids: Vec<_> = (0..3)
        .map(|_| {
            let waiter = world.submit(Identity::Fresh, Wait::Durable, b"x");
            world.flush();
            accepted(world.reply(waiter))
        })
        .take(2)
        .collect();
    assert!(world.core.has_backlog());
    let refused = world.submit(Identity::Fresh, Wait::Answer, b"z");
    assert_eq!(world.reply(refused), &Reply::Busy);
    world.run();
    for id in ids {
        assert_eq!(body(&world.collect(id)), "ax");
    }
}

#[test]
fn too_many_open_requests_are_refused() {
    let mut world = World::new(&[&[]], true);
    for _ in 0..64 {
        world.submit(Identity::Fresh, Wait::Answer, b"x");
    }
    let waiter = world.submit(Identity::Fresh, Wait::Answer, b"x");
    assert_eq!(world.reply(waiter), &Reply::Busy);
    assert_eq!(world.core.counters().busy, 1);
}

#[test]
fn a_caller_whose_deadline_passed_can_collect_the_answer_later() {
    let mut world = World::new(&[&[]], true);
    let waiter = world.submit(Identity::Fresh, Wait::Answer, b"x");
    world.tick(999);
    assert!(world.replies[&waiter].is_empty());
    world.tick(1);
    let Reply::Late(id) = *world.reply(waiter) else {
        panic!()
    };
    world.run();
    assert_eq!(body(&world.collect(id)), "ax");
    assert_eq!(world.core.counters().late, 1);
}

#[test]
fn an_answer_expires() {
    let mut world = World::new(&[&[]], true);
    let waiter = world.submit(key("k"), Wait::Answer, b"x");
    world.run();
    let Reply::Done(answer) = world.reply(waiter).clone() else {
        panic!()
    };
    world.tick(9_999);
    assert!(matches!(world.collect(answer.root), Reply::Done(_)));
    world.tick(1);
    assert_eq!(world.collect(answer.root), Reply::Unknown);
}

#[test]
fn an_answer_that_nobody_comes_back_for_is_not_kept() {
    let mut world = World::new(&[&[]], true);
    let waiter = world.submit(Identity::Fresh, Wait::Answer, b"x");
    world.run();
    let Reply::Done(answer) = world.reply(waiter).clone() else {
        panic!()
    };
    assert_eq!(world.collect(answer.root), Reply::Unknown);
    let result = world
        .log
        .iter()
        .find(|record| &*record.grain == RESULTS)
        .unwrap();
    assert_eq!(result.deadline_unix_ms, world.now.unix_ms + 1_000);
}

#[test]
fn while_the_global_bus_is_away_only_those_are_refused_who_need_it() {
    let mut world = World::new(&[&[]], true);
    world.core.set_unavailable(Some("the disk is full".into()));
    for (identity, wait) in [(Identity::Fresh, Wait::Durable), (key("k"), Wait::Answer)] {
        let waiter = world.submit(identity, wait, b"x");
        assert_eq!(
            world.reply(waiter),
            &Reply::Unavailable("the disk is full".into())
        );
    }
    let waiter = world.submit(Identity::Fresh, Wait::Answer, b"x");
    world.run();
    assert_eq!(world.body(waiter), "ax");
}

#[test]
fn without_backup_nothing_is_appended_and_all_is_answered() {
    let mut world = World::new(CHAIN, false);
    let waiter = world.submit(Identity::Fresh, Wait::Answer, b"x");
    let later = world.submit(Identity::Fresh, Wait::Durable, b"y");
    world.run();
    assert_eq!(world.body(waiter), "cbax");
    let id = accepted(world.reply(later));
    assert_eq!(body(&world.collect(id)), "cbay");
    assert!(world.log.is_empty() && world.core.is_idle());
}

#[test]
fn a_sandboxs_death_without_backup_is_told_to_who_waits() {
    let mut world = World::new(CHAIN, false);
    let waiter = world.submit(Identity::Fresh, Wait::Answer, b"x");
    world.sandbox_dies();
    let Reply::Done(answer) = world.reply(waiter) else {
        panic!()
    };
    let Outcome::Failed(failure) = &answer.outcome else {
        panic!()
    };
    assert_eq!(failure.cause, Cause::SandboxLost);
    assert!(world.core.is_idle());
}

#[test]
fn a_sandboxs_death_is_not_noticed_by_who_waits_if_there_is_a_backup() {
    let mut world = World::new(CHAIN, true);
    let waiter = world.submit(Identity::Fresh, Wait::Answer, b"x");
    world.handle(0);
    world.sandbox_dies();
    assert_eq!(world.core.counters().redelivered, 1);
    world.run();
    assert_eq!(world.body(waiter), "cbax");
    assert_eq!(world.handled, 3);
}

#[test]
fn what_lives_in_the_sandbox_is_not_published_again() {
    let mut world = World::new(CHAIN, true);
    world.submit(key("k"), Wait::Answer, b"x");
    world.flush();
    world.agent_dies(true, |_| 0);
    assert_eq!(
        (world.queues[0].len(), world.core.counters().redelivered),
        (1, 0)
    );
    let retry = world.submit(key("k"), Wait::Answer, b"x");
    world.run();
    assert_eq!((world.body(retry), world.handled), ("cbax".to_owned(), 3));
}

#[test]
fn a_lying_index_is_ignored() {
    let mut world = World::new(CHAIN, true);
    let told = world.core.local(
        world.now,
        Local {
            number: 1,
            id: sandpipe_abi::MessageId(5),
            root: sandpipe_abi::MessageId(6),
            parent: sandpipe_abi::MessageId(7),
            from: 0,
            news: News::Output { grain: 77 },
            last: false,
            stamps: None,
            event: None,
            payload: Vec::new(),
        },
    );
    assert_eq!(told, Ok(()));
    assert_eq!(world.core.next_command(), Some(Command::Release(1)));
    assert!(world.log.is_empty());
}

#[test]
fn news_of_a_message_that_another_grain_handles_is_refused_and_changes_nothing() {
    let mut world = World::new(CHAIN, true);
    world.submit(Identity::Fresh, Wait::Answer, b"x");
    let root = world.log[0].id;
    while world.core.next_command().is_some() {}
    for news in [
        News::Final,
        News::Failed(Cause::Other),
        News::Output { grain: 1 },
    ] {
        let local = Local {
            number: 1,
            id: sandpipe_abi::MessageId(5),
            root,
            parent: root,
            from: 1, // grain 0 handles it
            news,
            last: true,
            stamps: None,
            event: None,
            payload: b"forged".to_vec(),
        };
        let told = world.core.local(world.now, local);
        assert_eq!(told, Err(sandpipe::Violation::Parent));
        assert_eq!(world.core.next_command(), None, "nothing was recorded");
        assert_eq!(world.core.in_flight(), 1, "the request is still open");
    }
}

#[test]
fn messages_that_are_their_own_parents_end_like_others() {
    let mut world = World::new(CHAIN, true);
    let circle = [5, 6, 5].map(sandpipe_abi::MessageId);
    for pair in circle.windows(2) {
        let local = Local {
            number: 1,
            id: pair[0],
            root: pair[0],
            parent: pair[1],
            from: 0,
            news: News::Output { grain: 1 },
            last: true,
            stamps: None,
            event: None,
            payload: Vec::new(),
        };
        assert_eq!(world.core.local(world.now, local), Ok(()));
        while world.core.next_command().is_some() {}
    }
}

#[test]
fn a_traced_request_knows_its_steps() {
    let mut world = World::new(&[&[1], &[]], true);
    let submit = Submit {
        identity: Identity::Fresh,
        wait: Wait::Answer,
        waiter: 1,
        payload: b"x".to_vec(),
        content_type: Default::default(),
        traceparent: Default::default(),
        attributes: Default::default(),
        traced_since_ns: Some(5),
        shows_trace: true,
    };
    world.core.submit(
        Now {
            mono_ns: 7,
            ..world.now
        },
        submit,
    );
    world.carry_out();
    world.run();
    let Reply::Done(answer) = world.reply(1) else {
        panic!()
    };
    let trace = answer.trace.as_ref().unwrap();
    assert_eq!(
        (trace.received_ns, trace.taken_ns, trace.published_ns),
        (5, 7, 1)
    );
    let grains: Vec<&str> = trace.hops.iter().map(|hop| hop.grain.as_str()).collect();
    assert_eq!(grains, ["g0", "g1"]);
    assert!(
        trace
            .hops
            .iter()
            .all(|hop| hop.read_ns > 0 && hop.backed_up_ns > 0)
    );
    assert!(trace.finished_ns > 0);
}

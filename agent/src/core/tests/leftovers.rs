//! What an earlier version of the application, or an earlier agent, has left.

use sandpipe_abi::MessageId;
use sandpipe_global_bus::{Flag, Record};

use super::world::{World, body, request, workflow};
use crate::core::local::UNKNOWN_ROOTS;
use crate::core::*;

const FAN_OUT: &[&[usize]] = &[&[1, 2], &[], &[]];

/// A request that is durable, on its way into its queue.
fn on_its_way(core: &mut Core<u64>, now: Now, waiter: u64, payload: &[u8]) -> Delivery {
    let submit = request(Identity::Fresh, Wait::Durable, waiter, payload);
    core.submit(now, submit);
    loop {
        match core.next_command().expect("it is published in the end") {
            Command::Append { number, .. } => core.durable(now, number),
            Command::Publish(delivery) => return delivery,
            _ => {}
        }
    }
}

#[test]
fn what_no_queue_will_ever_take_fails_as_a_dead_letter_and_holds_up_nobody() {
    let mut core = Core::new(workflow(1, true));
    let now = Now::default();
    let large = on_its_way(&mut core, now, 1, b"large");
    let id = large.id;
    core.full(large);
    core.retry_full();
    let Some(Command::Publish(large)) = core.next_command() else {
        panic!("the backlog is tried again")
    };
    core.undeliverable(now, large, "5 bytes; the largest chunk has 4");
    while let Some(command) = core.next_command() {
        match command {
            Command::Append { number, .. } => core.durable(now, number),
            Command::Release(number) => panic!("{number} was never read"),
            _ => {}
        }
    }
    assert!(core.is_idle());
    let letters = core.dead_letters();
    assert_eq!((letters.len(), letters[0].bytes), (1, 5));
    assert_eq!(letters[0].cause, "payload_too_large");
    core.collect(id, 2);
    let Some(Command::Answer { reply, .. }) = core.next_command() else {
        panic!("it is answered")
    };
    assert_eq!(body(&reply), "g0: 5 bytes; the largest chunk has 4");
    on_its_way(&mut core, now, 3, b"next");
}

#[test]
fn a_caller_of_the_next_version_hears_of_its_deadline_in_time() {
    let mut world = World::new(&[&[]], true);
    world.submit(Identity::Fresh, Wait::Answer, b"x");
    world.run();
    assert!(world.core.is_idle());
    world.core.rewire(Workflow {
        deadline_ms: 10,
        ..workflow(1, true)
    });
    let waiter = world.submit(Identity::Fresh, Wait::Answer, b"y");
    world.tick(10);
    assert!(matches!(world.reply(waiter), Reply::Late(_)));
}

#[test]
fn deadlines_of_requests_that_have_ended_are_not_kept_until_they_pass() {
    let mut world = World::new(&[&[]], true);
    for _ in 0..=2 + DEADLINES_KEPT {
        world.submit(Identity::Fresh, Wait::Answer, b"x");
        world.run();
    }
    let open = world.submit(Identity::Fresh, Wait::Answer, b"y");
    world.tick(1);
    assert_eq!(world.core.deadlines.len(), 1);
    world.tick(1_000);
    assert!(matches!(world.reply(open), Reply::Late(_)));
}

/// A fan-out is over; the agent dies before it is durable that its single outputs are forgotten,
/// and the next one comes when the answer has expired.
#[test]
fn outputs_of_a_request_whose_answer_has_expired_do_not_stay_open_for_ever() {
    let mut world = World::new(FAN_OUT, true);
    world.submit(Identity::Key("k".into()), Wait::Answer, b"x");
    world.run();
    let is_tombstone = |r: &Record| r.is_result() && r.flag == Flag::Finished;
    world.log.retain(|record| !is_tombstone(record));
    world.durable = world.log.len();
    world.now.unix_ms += 20_000;
    assert_eq!(world.unfinished().len(), 2, "both outputs");
    world.agent_dies(false, |_| 0);
    world.run();
    assert!(world.core.is_idle());
    assert_eq!((world.core.in_flight(), world.unfinished().len()), (0, 0));
}

#[test]
fn a_request_that_ended_before_its_tombstone_was_durable_is_not_begun_again() {
    let mut world = World::new(&[&[]], true);
    let waiter = world.submit(Identity::Fresh, Wait::Answer, b"x");
    world.handle(0);
    world.read(0);
    assert_eq!(world.body(waiter), "ax");
    // Its answer, which nobody comes back for, expires before the sandbox is made again.
    world.now.unix_ms += 2_000;
    world.core.begin_recovery();
    for record in world.unfinished() {
        world.core.recover(record);
    }
    world.core.recovered(world.now, &Default::default());
    world.run();
    assert_eq!(world.handled, 1);
    assert!(world.core.is_idle());
}

#[test]
fn requests_that_a_grain_invents_take_no_memory_beyond_a_bound() {
    let workflow = workflow(2, true);
    let most = 2 * workflow.max_in_flight + UNKNOWN_ROOTS;
    let mut core = Core::<u64>::new(workflow);
    let now = Now::default();
    let invented = most as u64 + 1000;
    let mut released = 0;
    for number in 1..=invented {
        let id = |kind: u128| MessageId(u128::from(number) << 2 | kind);
        let told = Local {
            number,
            id: id(1),
            root: id(2),
            parent: id(2),
            from: 0,
            news: News::Output { grain: 1 },
            last: false,
            stamps: None,
            payload: Vec::new(),
            event: None,
        };
        core.local(now, told).unwrap();
        while let Some(command) = core.next_command() {
            match command {
                Command::Append { number, .. } => core.durable(now, number),
                Command::Release(_) => released += 1,
                _ => {}
            }
        }
    }
    assert_eq!((core.in_flight(), released), (most, invented));
}

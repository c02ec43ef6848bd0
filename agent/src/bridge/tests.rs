use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::fake::{Running, workflow};
use super::*;
use crate::core::{Identity, Outcome, Reply, Submit, Wait};

pub(super) fn submit(
    running: &Running,
    identity: Identity,
    wait: Wait,
    payload: &[u8],
) -> oneshot::Receiver<Reply> {
    let (waiter, reply) = oneshot::channel();
    running.mailbox.post(Post::Submit(Submit {
        identity,
        wait,
        waiter,
        payload: payload.to_vec(),
        content_type: Default::default(),
        traceparent: Default::default(),
        attributes: Default::default(),
        traced_since_ns: None,
        shows_trace: false,
    }));
    reply
}

/// Waits under a watchdog.
pub(super) fn wait<T>(mut reply: oneshot::Receiver<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        match reply.try_recv() {
            Ok(value) => return value,
            Err(oneshot::error::TryRecvError::Empty) => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(oneshot::error::TryRecvError::Closed) => panic!("nobody will answer"),
        }
    }
    panic!("no answer within 20 s");
}

pub(super) fn text(reply: Reply) -> String {
    let Reply::Done(answer) = reply else {
        panic!("{reply:?}")
    };
    match &answer.outcome {
        Outcome::Output { body, .. } => String::from_utf8(body.clone()).unwrap(),
        Outcome::Failed(failure) => panic!("{failure:?}"),
    }
}

#[test]
fn a_request_goes_through_the_bus_thread_and_wakes_it() {
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(directory.path(), workflow(3));
    for number in 0..5 {
        std::thread::sleep(Duration::from_millis(number)); // let it park
        let reply = submit(&running, Identity::Fresh, Wait::Answer, b"x");
        assert_eq!(text(wait(reply)), "xabc");
    }
}

#[test]
fn a_thousand_requests_at_once_are_answered_each_once() {
    let directory = tempfile::tempdir().unwrap();
    let mut workflow = workflow(3);
    workflow.max_in_flight = 10_000;
    let running = Running::start(directory.path(), workflow);
    let replies: Vec<_> = (0..1000)
        .map(|n| {
            submit(
                &running,
                Identity::Fresh,
                Wait::Answer,
                format!("{n}.").as_bytes(),
            )
        })
        .collect();
    for (n, reply) in replies.into_iter().enumerate() {
        assert_eq!(text(wait(reply)), format!("{n}.abc"));
    }
    assert_eq!(running.fake.knobs.lock().unwrap().handled, 3000);
}

#[test]
fn what_was_accepted_is_answered_by_the_next_agent() {
    let directory = tempfile::tempdir().unwrap();
    let mut workflow_of_first = workflow(2);
    let first = Running::start(directory.path(), workflow_of_first.clone());
    let key = Identity::Key("k".into());
    let done = text(wait(submit(&first, key.clone(), Wait::Answer, b"x")));
    let Reply::Accepted(id) = wait(submit(&first, Identity::Fresh, Wait::Durable, b"y")) else {
        panic!("not accepted")
    };
    drop(first);
    workflow_of_first.epoch = 2;
    let second = Running::start(directory.path(), workflow_of_first);
    assert_eq!(text(wait(submit(&second, key, Wait::Answer, b"x"))), done);
    let collected = loop {
        let (waiter, reply) = oneshot::channel();
        second.mailbox.post(Post::Collect(id, waiter));
        match wait(reply) {
            Reply::Pending(_) => std::thread::sleep(Duration::from_millis(5)),
            other => break text(other),
        }
    };
    assert_eq!(collected, "yab");
}

#[test]
fn a_killed_sandbox_is_made_again_and_what_it_held_is_delivered_again() {
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(directory.path(), workflow(2));
    running.fake.set(|knobs| knobs.stalled = true);
    let reply = submit(&running, Identity::Fresh, Wait::Answer, b"x");
    let deadline = Instant::now() + Duration::from_secs(20);
    while status(&running).in_flight == 0 && Instant::now() < deadline {}
    running.fake.kill();
    running.fake.set(|knobs| knobs.stalled = false);
    assert_eq!(text(wait(reply)), "xab");
    let status = status(&running);
    assert_eq!((status.attachments, status.counters.redelivered), (2, 1));
}

#[test]
fn without_a_sandbox_requests_hear_why_until_it_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(directory.path(), workflow(1));
    running.fake.set(|knobs| knobs.dead = true);
    running.fake.kill();
    let deadline = Instant::now() + Duration::from_secs(20);
    while status(&running).not_ready.is_none() && Instant::now() < deadline {}
    let reply = wait(submit(&running, Identity::Fresh, Wait::Answer, b"x"));
    assert!(
        matches!(&reply, Reply::Unavailable(why) if why.contains("sandbox")),
        "{reply:?}"
    );
    running.fake.set(|knobs| knobs.dead = false);
    while status(&running).not_ready.is_some() && Instant::now() < deadline {}
    assert_eq!(
        text(wait(submit(&running, Identity::Fresh, Wait::Answer, b"x"))),
        "xa"
    );
}

#[test]
fn a_broken_worker_is_named_to_who_asks() {
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(directory.path(), workflow(1));
    running.mailbox.post(Post::Workers(
        0,
        vec![GrainState {
            grain: "g0".into(),
            state: "failed".into(),
            trouble: Some("ImportError: no module named x".into()),
            broken: true,
            ..GrainState::default()
        }],
    ));
    let reply = wait(submit(&running, Identity::Fresh, Wait::Answer, b"x"));
    assert!(
        matches!(&reply, Reply::Unavailable(why) if why.contains("ImportError")),
        "{reply:?}"
    );
}

#[test]
fn an_answer_that_the_global_bus_never_takes_is_given_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(directory.path(), workflow(1));
    let body = vec![b'x'; 17 << 20];
    running.fake.set(|knobs| knobs.answer = Some(body.clone()));
    let reply = submit(&running, Identity::Key("k".into()), Wait::Answer, b"x");
    assert!(text(wait(reply)).into_bytes() == body);
    let deadline = Instant::now() + Duration::from_secs(20);
    while status(&running).in_flight > 0 && Instant::now() < deadline {}
    assert_eq!(status(&running).in_flight, 0, "nobody waits for its backup");
}

#[test]
fn an_accepted_message_that_no_chunk_holds_fails_and_holds_up_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(directory.path(), workflow(1));
    running.fake.set(|knobs| knobs.largest = Some(3));
    let reply = submit(&running, Identity::Fresh, Wait::Durable, b"four");
    let Reply::Accepted(_) = wait(reply) else {
        panic!("not accepted")
    };
    let reply = submit(&running, Identity::Fresh, Wait::Answer, b"x");
    assert_eq!(text(wait(reply)), "xa");
    let deadline = Instant::now() + Duration::from_secs(20);
    while status(&running).in_flight > 0 && Instant::now() < deadline {}
    let status = status(&running);
    assert_eq!((status.in_flight, status.dead_letters), (0, 1));
}

#[test]
fn a_grain_that_tells_something_without_an_end_keeps_no_sandbox_from_being_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(directory.path(), workflow(1));
    running.fake.set(|knobs| knobs.chatters = true);
    running.fake.kill();
    let deadline = Instant::now() + Duration::from_secs(20);
    while status(&running).attachments == 1 && Instant::now() < deadline {}
    assert_eq!(status(&running).attachments, 2);
    running.fake.set(|knobs| knobs.chatters = false);
    let reply = submit(&running, Identity::Fresh, Wait::Answer, b"x");
    assert_eq!(text(wait(reply)), "xa");
}

pub(super) fn status(running: &Running) -> AppStatus {
    let (waiter, reply) = oneshot::channel();
    running.mailbox.post(Post::Status(waiter));
    wait(reply)
}

#[test]
fn the_mailbox_rings_who_is_parked_and_only_once() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    let mailbox = Mailbox::default();
    let rings = Arc::new(AtomicUsize::new(0));
    let ring = Arc::clone(&rings);
    mailbox.set_ringer(Some(Box::new(move || {
        ring.fetch_add(1, Ordering::SeqCst);
    })));
    mailbox.wake();
    assert_eq!(
        rings.load(Ordering::SeqCst),
        0,
        "an awake thread needs no ring"
    );
    mailbox.announce();
    assert!(mailbox.is_awaited(), "news since the last look");
    mailbox.post(Post::Workers(0, Vec::new()));
    mailbox.post(Post::Workers(0, Vec::new()));
    assert_eq!(rings.load(Ordering::SeqCst), 1, "a burst costs one ring");
    assert!(mailbox.take_news());
    mailbox.announce();
    mailbox.wake();
    assert_eq!(rings.load(Ordering::SeqCst), 2);
}

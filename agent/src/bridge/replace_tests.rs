//! Another version takes over, over fake sandboxes and a real log.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::fake::{FakeSandbox, Running, workflow};
use super::tests::{status, submit, text, wait};
use super::*;
use crate::core::{Identity, Reply, Wait};

/// Posts a replacement by a chain of `grains`; its sandbox, and what became of it.
fn replace(
    running: &Running,
    grains: usize,
    patience: Duration,
    commit: impl FnOnce() -> std::io::Result<()> + Send + 'static,
) -> (FakeSandbox, oneshot::Receiver<Replaced>) {
    let mut fake = FakeSandbox::chain(grains);
    fake.number = 1;
    let (done, replaced) = oneshot::channel();
    let local = fake.attach().unwrap().local;
    running.mailbox.post(Post::Replace(Box::new(Replacement {
        workflow: workflow(grains),
        max_payload_bytes: 100,
        bounds: Bounds::default(),
        sandbox: Box::new(fake.clone()),
        local,
        deadline: Instant::now() + patience,
        commit: Box::new(commit),
        done,
    })));
    (fake, replaced)
}

const LONG: Duration = Duration::from_secs(60);

fn ask(running: &Running, payload: &[u8]) -> oneshot::Receiver<Reply> {
    submit(running, Identity::Fresh, Wait::Answer, payload)
}

/// A running chain of two that has one request in hand which it does not finish.
fn busy(directory: &std::path::Path, max_in_flight: usize) -> (Running, oneshot::Receiver<Reply>) {
    let mut workflow = workflow(2);
    workflow.max_in_flight = max_in_flight;
    let running = Running::start(directory, workflow);
    running.fake.set(|knobs| knobs.stalled = true);
    let open = ask(&running, b"1");
    let deadline = Instant::now() + LONG;
    while status(&running).in_flight == 0 && Instant::now() < deadline {}
    (running, open)
}

#[test]
fn what_is_open_is_finished_by_the_old_version_and_what_came_meanwhile_by_the_new() {
    let directory = tempfile::tempdir().unwrap();
    let (running, open) = busy(directory.path(), 64);
    let commits = Arc::new(AtomicUsize::new(0));
    let committed = Arc::clone(&commits);
    let (new, mut replaced) = replace(&running, 3, LONG, move || {
        committed.fetch_add(1, Ordering::SeqCst);
        Ok(())
    });
    let held: Vec<_> = (0..20).map(|_| ask(&running, b"2")).collect();
    assert_eq!(status(&running).in_flight, 1, "nothing is begun meanwhile");
    assert!(replaced.try_recv().is_err());
    assert_eq!(commits.load(Ordering::SeqCst), 0);
    running.fake.set(|knobs| knobs.stalled = false);
    assert_eq!(text(wait(open)), "1ab");
    for held in held {
        assert_eq!(text(wait(held)), "2abc");
    }
    assert_eq!(wait(replaced).outcome, Ok(()));
    assert_eq!(commits.load(Ordering::SeqCst), 1);
    let handled = |fake: &FakeSandbox| fake.knobs.lock().unwrap().handled;
    assert_eq!((handled(&running.fake), handled(&new)), (2, 60));
}

#[test]
fn an_old_version_that_does_not_finish_goes_on_with_what_came_meanwhile() {
    let directory = tempfile::tempdir().unwrap();
    let (running, open) = busy(directory.path(), 64);
    let commit = || panic!("never to be written down");
    let (new, replaced) = replace(&running, 3, Duration::from_millis(50), commit);
    let held = ask(&running, b"2");
    let replaced = wait(replaced);
    assert_eq!(replaced.outcome, Err(NotReplaced::StillOpen { open: 1 }));
    running.fake.set(|knobs| knobs.stalled = false);
    assert_eq!(
        (text(wait(open)), text(wait(held))),
        ("1ab".into(), "2ab".into())
    );
    assert_eq!(new.knobs.lock().unwrap().handled, 0);
}

#[test]
fn a_version_that_cannot_be_written_down_does_not_serve() {
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(directory.path(), workflow(2));
    let commit = || Err(std::io::Error::other("the disk is full"));
    let (_, replaced) = replace(&running, 3, LONG, commit);
    let refused = NotReplaced::NotKept("the disk is full".into());
    assert_eq!(wait(replaced).outcome, Err(refused));
    assert_eq!(text(wait(ask(&running, b"1"))), "1ab");
}

#[test]
fn requests_that_wait_for_a_version_count_as_open_and_the_rest_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (running, open) = busy(directory.path(), 4);
    let (_, replaced) = replace(&running, 3, LONG, || Ok(()));
    let replies: Vec<_> = (0..10).map(|_| ask(&running, b"2")).collect();
    running.fake.set(|knobs| knobs.stalled = false);
    wait(open);
    assert!(wait(replaced).outcome.is_ok());
    let replies: Vec<Reply> = replies.into_iter().map(wait).collect();
    let busy = replies.iter().filter(|reply| **reply == Reply::Busy);
    assert_eq!(busy.count(), 7, "{replies:?}");
}

#[test]
fn a_request_too_large_for_the_new_version_hears_so() {
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(directory.path(), workflow(2));
    let (_, replaced) = replace(&running, 3, LONG, || Ok(()));
    assert!(wait(replaced).outcome.is_ok());
    let reply = wait(ask(&running, &[7; 101]));
    assert!(matches!(reply, Reply::Unavailable(_)), "{reply:?}");
}

#[test]
fn of_two_versions_at_once_and_one_at_the_end_the_later_ones_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (mut running, open) = busy(directory.path(), 64);
    let (_, first) = replace(&running, 3, LONG, || Ok(()));
    let (_, second) = replace(&running, 3, LONG, || Ok(()));
    assert_eq!(wait(second).outcome, Err(NotReplaced::Busy));
    let (done, left) = oneshot::channel();
    let patience = Duration::from_millis(50);
    running.mailbox.post(Post::Stop(Stop { patience, done }));
    assert_eq!(wait(first).outcome, Err(NotReplaced::Stopping));
    assert_eq!(wait(left), 1, "the open request is left");
    drop(open);
    // Whoever asks an ended thread hears that nobody is there.
    running.stop();
    let (waiter, mut reply) = oneshot::channel();
    running.mailbox.post(Post::Status(waiter));
    assert!(matches!(
        reply.try_recv(),
        Err(oneshot::error::TryRecvError::Closed)
    ));
}

#[test]
fn what_a_sandbox_that_does_not_serve_says_of_its_workers_is_not_believed() {
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(directory.path(), workflow(2));
    let broken = GrainState {
        grain: "g0".into(),
        broken: true,
        ..GrainState::default()
    };
    running.mailbox.post(Post::Workers(1, vec![broken]));
    assert_eq!(text(wait(ask(&running, b"1"))), "1ab");
}

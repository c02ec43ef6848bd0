//! SIGKILL under load: nothing is lost, and what is done twice has the same id.

mod sandbox;

use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use sandbox::{Random, Sandbox, chain, pid_of, settings};
use sandpipe::Kind;
use sandpipe_grain::{Mode, WorkerConfig};

fn patient(mode: Mode, spares: u16) -> WorkerConfig {
    WorkerConfig {
        max_attempts: 1000,
        ..settings(mode, 2, spares)
    }
}

/// Sends requests for `length`, does harm between them, and checks every answer.
fn under_load(sandbox: &mut Sandbox, length: Duration, mut harm: impl FnMut(&mut Sandbox)) -> u128 {
    let end = Instant::now() + length;
    let mut sent: u128 = 0;
    while Instant::now() < end {
        for _ in 0..10 {
            sent += 1;
            let long = if sent.is_multiple_of(4) { 300 } else { 0 };
            sandbox.send(sent, &format!("event-{sent}{}", "-".repeat(long)));
        }
        harm(sandbox);
        sandbox.pump();
    }
    sandbox.wait_for(sent as usize);
    for (root, answers) in &sandbox.answers {
        let text = format!("event-{}", root.0);
        assert!(
            answers.iter().all(|answer| answer.kind == Kind::Final
                && answer.text.starts_with(&text)
                && answer.text.ends_with(">g1>g2")),
            "{root}: {answers:?}"
        );
        assert!(answers.windows(2).all(|pair| pair[0] == pair[1]));
    }
    sent
}

fn instances_are_killed(mode: Mode, spares: u16) {
    let mut sandbox = Sandbox::start(chain(2, &patient(mode, spares)));
    let (mut random, mut kills) = (Random(0x5eed), 0);
    let sent = under_load(&mut sandbox, Duration::from_secs(4), |sandbox| {
        let instances = sandbox.instances(random.below(2) as usize);
        if let Some(&pid) = instances.get(random.below(8) as usize) {
            kills += usize::from(kill_process(pid_of(pid), Signal::KILL).is_ok());
        }
    });
    let twice = sandbox.told.values().filter(|&&told| told > 1).count();
    eprintln!("{mode:?}, {spares} spares: {kills} kills, {sent} requests, {twice} told twice");
    assert!(kills > 20, "only {kills} kills");
    assert_eq!(twice, 0, "an instance commits once or not at all");
    sandbox.finish();
}

#[test]
fn killing_instances_on_demand_loses_nothing() {
    instances_are_killed(Mode::Fork, 0);
}

#[test]
fn killing_instances_forked_ahead_loses_nothing() {
    instances_are_killed(Mode::Fork, 2);
}

#[test]
fn killing_pooled_instances_loses_nothing() {
    instances_are_killed(Mode::Pool, 0);
}

#[test]
fn killing_workers_loses_nothing() {
    for (mode, spares) in [(Mode::Fork, 0), (Mode::Fork, 2), (Mode::Pool, 0)] {
        let mut sandbox = Sandbox::start(chain(2, &patient(mode, spares)));
        let mut restarts = 0;
        under_load(&mut sandbox, Duration::from_secs(3), |sandbox| {
            sandbox.restart_worker(restarts % 2);
            restarts += 1;
        });
        eprintln!("{mode:?}, {spares} spares: {restarts} restarts");
        assert!(restarts > 5, "only {restarts} restarts");
        sandbox.finish();
    }
}

#[test]
fn idle_instances_make_place_when_a_peer_is_made_anew() {
    for (mode, spares) in [(Mode::Fork, 2), (Mode::Pool, 0)] {
        let mut sandbox = Sandbox::start(chain(2, &patient(mode, spares)));
        assert_eq!(sandbox.ask(1, "hello").text, "hello>g1>g2");
        // Two pooled ones, or two spares: the one that has answered is replaced meanwhile.
        sandbox.until("two instances wait", |sandbox| {
            sandbox.instances(1).len() == 2
        });
        let before = sandbox.instances(1);
        sandbox.restart_worker(0);
        assert_eq!(sandbox.ask(2, "hello").text, "hello>g1>g2");
        sandbox.until("all instances are new", |sandbox| {
            let now = sandbox.instances(1);
            now.len() == 2 && now.iter().all(|pid| !before.contains(pid))
        });
        sandbox.finish();
    }
}

/// Messages that a lane from grain to grain holds.
const LANE: u128 = 8;

#[test]
fn an_instance_that_waits_for_room_while_its_peer_is_made_anew_costs_its_event_no_attempt() {
    for mode in [Mode::Pool, Mode::Fork] {
        let once = WorkerConfig {
            max_attempts: 1,
            ..settings(mode, 1, 0)
        };
        let mut grains = chain(2, &once);
        grains[1].mode = Mode::Fork;
        let mut sandbox = Sandbox::start(grains);
        sandbox.stop_worker(1);
        (1..=LANE + 1).for_each(|id| sandbox.send(id, &format!("{id}")));
        sandbox.until("the last event waits for room", |sandbox| {
            let held = sandbox.view_of(0);
            held.queued.is_empty() && held.in_flight.len() == 1 && sandbox.counters(0).full > 0
        });
        let before = sandbox.instances(0);
        sandbox.restart_worker(1);
        sandbox.wait_for(LANE as usize + 1);
        assert_ne!(
            sandbox.instances(0),
            before,
            "the one that waited has ended"
        );
        for (id, answers) in &sandbox.answers {
            let [answer] = answers.as_slice() else {
                panic!("{mode:?}: {id:?} is answered {} times", answers.len());
            };
            assert_eq!(answer.text, format!("{}>g1>g2", id.0), "{mode:?}");
        }
        assert!(sandbox.told.values().all(|&times| times == 1), "{mode:?}");
        sandbox.finish();
    }
}

//! Idle workers are ended, and events start them again: with an agent, without, and whoever dies.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::harness::{Agent, Place, SANDPIPE, WATCHDOG, kill, until};

/// Grains whose workers are ended after three seconds without an event.
fn place(grains: &[&str]) -> Place {
    let section = "[keep_alive]\npolicy = \"fixed\"\nidle_s = 3";
    Place::chain(grains, section, "env = { NOTES = \"@NOTES@\" }")
}

fn state(agent: &Agent<'_>, grain: usize) -> String {
    agent.app().grains[grain].state.clone()
}

fn until_unloaded(agent: &Agent<'_>) {
    until("every worker is unloaded", || {
        let grains = agent.app().grains;
        !grains.is_empty() && grains.iter().all(|grain| grain.state == "unloaded")
    });
}

/// Waits until each worker has died, and was started by an event, so often; then it must stay so.
fn assert_counts(agent: &Agent<'_>, expected: &[(u64, u64)]) {
    let counts = || -> Vec<(u64, u64)> {
        let grains = agent.app().grains;
        let counts = grains
            .iter()
            .map(|grain| (grain.restarts, grain.cold_starts));
        counts.collect()
    };
    // What init knows reaches the agent within its next look.
    let deadline = Instant::now() + WATCHDOG;
    while counts() != expected && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(counts(), expected, "restarts and cold starts");
}

fn lives(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn invoke(place: &Place, more: &[&str]) -> std::process::Output {
    let mut command = Command::new(SANDPIPE);
    command
        .args(["invoke", &place.app, "--data", "x", "--run-dir"])
        .arg(place.run_dir());
    command.args(more).output().unwrap()
}

/// Both workers are gone after their time; one event starts them, one after the other.
fn idle_and_called(waiter: &str) {
    let place = place(&["a", "b"]);
    let mut command = place.command();
    command.env("SANDPIPE_WAITER", waiter);
    let agent = Agent::start(&place, command);
    let workers = [agent.worker("a"), agent.worker("b")];
    assert!(workers.into_iter().all(lives));
    until_unloaded(&agent);
    until("no process is left of the workers", || {
        !workers.into_iter().any(lives) && place.workers().is_empty()
    });
    assert_counts(&agent, &[(0, 0), (0, 0)]);
    assert_eq!(agent.get("/readyz").status, 200, "an event starts them");
    let answer = invoke(&place, &["--json", "--trace"]);
    let answer: serde_json::Value = serde_json::from_slice(&answer.stdout).unwrap();
    assert_eq!(answer["body"], "xab");
    let trace = &answer["trace"];
    let mut before = trace["received_ns"].as_u64().unwrap();
    for hop in trace["hops"].as_array().unwrap() {
        for step in ["worker_started_ns", "worker_loaded_ns", "taken_ns"] {
            let at = hop["stamps"][step].as_u64().unwrap();
            assert!(at > before, "{step} at {at}, after {before}: {trace}");
            before = at;
        }
    }
    assert_counts(&agent, &[(0, 1), (0, 1)]);
    let metrics = agent.get("/metrics").text();
    let counted = format!("sandpipe_cold_starts_total{{app=\"{}\"}} 2", place.app);
    assert!(metrics.contains(&counted), "{metrics}");
    assert_eq!(place.notes().len(), 2, "each grain has run once");
    agent.stop();
    place.assert_clean();
}

#[test]
fn an_idle_worker_is_gone_after_its_time_and_the_next_event_starts_it_through_each_waiter() {
    for waiter in ["io_uring", "futex"] {
        idle_and_called(waiter);
    }
}

#[test]
fn the_trace_of_a_cold_start_says_so_and_a_warm_one_does_not() {
    let place = place(&["a"]);
    let agent = place.start();
    agent.worker("a");
    until_unloaded(&agent);
    let traced = || String::from_utf8(invoke(&place, &["--trace"]).stderr).unwrap();
    let cold = traced();
    let lines: Vec<&str> = cold.lines().filter(|line| line.contains("cold")).collect();
    assert_eq!(lines.len(), 2, "{cold}");
    assert!(lines[0].ends_with("a: its worker did not run and is started"));
    assert!(lines[1].ends_with("a: its worker has loaded the handler"));
    let warm = traced();
    assert!(!warm.contains("cold"), "{warm}");
    assert_counts(&agent, &[(0, 1)]);
    until_unloaded(&agent);
    let mut status = Command::new(SANDPIPE);
    status.args(["status", &place.app, "--run-dir"]);
    let status = status.arg(place.run_dir()).output().unwrap();
    assert!(status.status.success(), "unloaded is no failure");
    let text = String::from_utf8(status.stdout).unwrap();
    let line = text.lines().find(|line| line.contains("cold starts"));
    let words: Vec<&str> = line.unwrap().split_whitespace().collect();
    assert_eq!(
        words.join(" "),
        "a unloaded pid -, 0 restarts, 1 cold starts"
    );
    agent.stop();
}

#[test]
fn an_event_starts_an_unloaded_worker_while_no_agent_lives() {
    let place = place(&["a", "b"]);
    let agent = place.start();
    let order = "a: sleep 8000 ";
    let accepted = agent.post(&[("prefer", "respond-async")], order);
    assert_eq!(accepted.status, 202);
    let result = accepted.header("location").unwrap().to_owned();
    let init = place.init();
    until("b is unloaded while a is at work", || {
        state(&agent, 1) == "unloaded"
    });
    assert_eq!(state(&agent, 0), "running");
    agent.kill();
    until("b has run", || {
        place.notes().iter().any(|note| note.contains(" b "))
    });
    let next = place.start();
    assert_eq!(place.init(), init, "the sandbox is adopted");
    assert_eq!(next.collect(&result).text(), format!("{order}ab"));
    assert_counts(&next, &[(0, 0), (0, 1)]);
    assert_eq!(place.notes().len(), 2);
    next.stop();
    place.assert_clean();
}

#[test]
fn an_agent_killed_while_workers_are_unloaded_is_succeeded_and_the_next_event_is_answered() {
    let place = place(&["a", "b"]);
    let agent = place.start();
    assert_eq!(agent.post(&[], "x").text(), "xab");
    until_unloaded(&agent);
    let init = place.init();
    agent.kill();
    let next = place.start();
    until("the next agent has looked", || {
        next.app().grains.len() == 2 && next.app().not_ready.is_none()
    });
    assert_eq!(state(&next, 0), "unloaded", "adoption starts nothing");
    assert_eq!(next.post(&[], "y").text(), "yab");
    assert_eq!(place.init(), init, "init has lived through it");
    assert_counts(&next, &[(0, 1), (0, 1)]);
    next.stop();
    place.assert_clean();
}

#[test]
fn an_init_killed_while_its_workers_are_unloaded_is_replaced_and_the_next_event_is_answered() {
    let place = place(&["a"]);
    let agent = place.start();
    until_unloaded(&agent);
    kill(place.init().expect("init lives"), "KILL");
    until("there is a new sandbox", || {
        agent.app().attachments == 2 && agent.app().not_ready.is_none()
    });
    assert_eq!(agent.post(&[], "x").text(), "xa");
    assert_counts(&agent, &[(0, 0)]);
    agent.stop();
    place.assert_clean();
}

/// A worker that was told to end and is stopped before it hears that, so that its spare instances
/// go on meanwhile; and what is then posted, of which an instance has taken the first.
fn while_it_drains(
    place: &Place,
    posts: usize,
    strike: impl FnOnce(u32),
    (restarts, cold_starts): (u64, u64),
) {
    let agent = place.start();
    let worker = agent.worker("a");
    assert_eq!(agent.post(&[], "x").text(), "xa");
    let before = place.notes().len();
    kill(worker, "STOP");
    until("it is told to end", || state(&agent, 0) == "unloading");
    let order = |number: usize| format!("a: sleep 500 {number} ");
    std::thread::scope(|scope| {
        let post = |number| (number, agent.post(&[], order(number)));
        let calls: Vec<_> = (0..posts)
            .map(|number| scope.spawn(move || post(number)))
            .collect();
        until("an instance has an event", || place.notes().len() > before);
        strike(worker);
        for call in calls {
            let (number, answer) = call.join().unwrap();
            let text = format!("{}a", order(number));
            assert_eq!((answer.status, answer.text()), (200, text));
        }
    });
    assert!(!lives(worker));
    until_unloaded(&agent);
    assert_eq!(agent.post(&[], "y").text(), "ya");
    assert_counts(&agent, &[(restarts, cold_starts)]);
    agent.stop();
    place.assert_clean();
}

#[test]
fn a_worker_killed_while_it_drains_is_started_again_and_its_event_is_handled_again() {
    let place = place(&["a"]);
    // The cold start is the last event's.
    while_it_drains(&place, 1, |worker| kill(worker, "KILL"), (1, 1));
    let runs = place
        .notes()
        .iter()
        .filter(|note| note.contains("sleep"))
        .count();
    assert_eq!(runs, 2, "{:?}", place.notes());
}

#[test]
fn what_comes_while_a_worker_drains_is_handled_once_by_it_or_by_the_next() {
    let place = place(&["a"]);
    // Two spares take one each; the others are left to the worker's successor.
    while_it_drains(&place, 5, |worker| kill(worker, "CONT"), (0, 2));
    let runs = place
        .notes()
        .iter()
        .filter(|note| note.contains("sleep"))
        .count();
    assert_eq!(runs, 5, "{:?}", place.notes());
}

/// Under bins of a second: after ten idle times of two and a half seconds each, the worker is ended
/// behind the next event and started again before the one after that.
#[test]
fn a_worker_is_started_ahead_of_its_next_event_which_meets_it_warm() {
    let section = "[keep_alive]\npolicy = \"hybrid\"\nbin_s = 1";
    let place = Place::chain(&["a"], section, "env = { NOTES = \"@NOTES@\" }");
    let agent = place.start();
    let first = agent.worker("a");
    for number in 0..10 {
        assert_eq!(
            agent.post(&[], number.to_string()).text(),
            format!("{number}a")
        );
        // What it learns: no condition is waited for.
        std::thread::sleep(Duration::from_millis(2500));
        assert_eq!(state(&agent, 0), "running", "ten samples are needed");
    }
    assert_eq!(
        (agent.worker("a"), agent.post(&[], "x").status),
        (first, 200)
    );
    let answered = Instant::now();
    until("it is unloaded", || state(&agent, 0) == "unloaded");
    assert!(!lives(first));
    let unloaded_after = answered.elapsed();
    until("it is started again", || state(&agent, 0) == "running");
    let loaded_after = answered.elapsed();
    // The head of all idle times is the bin of the third second: nine tenths of its beginning.
    assert!(
        loaded_after >= Duration::from_millis(1800),
        "{loaded_after:?}"
    );
    assert_eq!(place.notes().len(), 11, "no event has started it");
    let warm = String::from_utf8(invoke(&place, &["--trace"]).stderr).unwrap();
    assert!(
        warm.contains("a: an instance takes it") && !warm.contains("cold"),
        "{warm}"
    );
    assert_counts(&agent, &[(0, 0)]);
    assert_ne!(agent.worker("a"), first);
    eprintln!("unloaded after {unloaded_after:?}, loaded again after {loaded_after:?}");
    agent.stop();
    place.assert_clean();
}

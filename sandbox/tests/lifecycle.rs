//! From the first agent to the last: made, adopted, raced for, killed, shut down.
#![forbid(unsafe_code)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use common::{Agent, Scene, kill, until};
use sandpipe_sandbox::{Isolation, IsolationState, WorkerState, clean_up_dead};

fn all_run(agent: &mut Agent) -> bool {
    agent
        .status()
        .workers
        .iter()
        .all(|worker| worker.state == WorkerState::Running)
}

#[test]
fn a_sandbox_is_made_runs_its_workers_and_leaves_nothing_when_shut_down() {
    let scene = Scene::new();
    let mut agent = Agent::start(&scene.spec(&["beating", "beating"]));
    assert_eq!(agent.hello["adopted"], false);
    assert_eq!(agent.hello["same_spec"], true);
    until("both workers run", || all_run(&mut agent));
    let mode = |path: &str| fs::metadata(scene.app_dir().join(path)).unwrap().mode() & 0o777;
    assert_eq!(
        (mode("."), mode("lock"), mode("sock")),
        (0o700, 0o600, 0o600)
    );
    let cgroups = scene.cgroups();
    let status = agent.status();
    for item in &status.isolation {
        let explained = item.state == IsolationState::On || !item.reason.is_empty();
        assert!(explained, "off without a reason: {item:?}");
    }
    let worker = status.workers[0].pid.unwrap();
    let ns = |pid: u32, name: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
    for (item, name) in [("pid namespace", "pid"), ("network namespace", "net")] {
        let on = status
            .isolation
            .iter()
            .any(|found| found.name == item && found.state == IsolationState::On);
        assert_eq!(
            ns(worker, name) != ns(std::process::id(), name),
            on,
            "{item}"
        );
    }
    agent.shut_down();
    agent.kill();
    scene.assert_nothing_left(&cgroups);
}

#[test]
fn a_killed_agents_sandbox_is_adopted_twenty_times_and_its_workers_never_stop() {
    let scene = Scene::new();
    let spec = scene.spec(&["beating", "beating"]);
    let mut agent = Agent::start(&spec);
    until("both workers run", || all_run(&mut agent));
    let (init, workers) = (agent.init(), pids(&mut agent));
    for round in 2..22 {
        let before = beats(&scene);
        agent.kill();
        agent = Agent::start(&spec);
        assert_eq!(agent.hello["adopted"], true);
        assert_eq!(agent.hello["epoch"], round);
        assert_eq!(agent.init(), init);
        until("the heart beats on", || beats(&scene) > before + 5);
    }
    assert_eq!(pids(&mut agent), workers, "no worker was restarted");
    let longest_us = scene.beat("beating-0").unwrap().longest_us;
    assert!(longest_us < 5_000_000, "a pause of {longest_us} µs");
}

/// The beats so far; a worker that runs may not have told of its first yet.
fn beats(scene: &Scene) -> u64 {
    let mut told = None;
    until("the heart has told of a beat", || {
        told = scene.beat("beating-0").map(|beat| beat.beats);
        told.is_some()
    });
    told.expect("it was waited for")
}

fn pids(agent: &mut Agent) -> Vec<Option<u32>> {
    agent
        .status()
        .workers
        .iter()
        .map(|worker| worker.pid)
        .collect()
}

#[test]
fn a_newer_agent_fences_the_older_one() {
    let scene = Scene::new();
    let spec = scene.spec(&["beating"]);
    let mut older = Agent::start(&spec);
    let mut newer = Agent::start(&spec);
    assert_eq!(newer.hello["adopted"], true);
    let fenced = older.ask("status")["error"].as_str().unwrap().to_string();
    assert!(fenced.contains("newer agent"), "{fenced}");
    let refused = older.ask("shutdown 10")["error"]
        .as_str()
        .unwrap()
        .to_string();
    assert!(refused.contains("newer agent"), "{refused}");
    until("the worker runs", || all_run(&mut newer));
}

#[test]
fn of_agents_that_come_at_once_one_makes_the_sandbox_and_the_others_adopt_it() {
    for _ in 0..5 {
        let scene = Scene::new();
        let spec = scene.spec(&["beating"]);
        let mut agents: Vec<Agent> = (0..4).map(|_| Agent::launch(&spec)).collect();
        let hellos: Vec<_> = agents.iter_mut().map(Agent::answer).collect();
        for hello in &hellos {
            // Fenced while it attached is fine; no sandbox at all is not.
            let error = hello["error"].as_str().unwrap_or("newer agent");
            assert!(error.contains("newer agent"), "{hello}");
        }
        let made = hellos
            .iter()
            .filter(|hello| hello["adopted"] == false)
            .count();
        assert!(made <= 1, "{hellos:?}");
        let mut inits: Vec<i64> = hellos
            .iter()
            .filter_map(|hello| hello["init"].as_i64())
            .collect();
        inits.dedup();
        assert_eq!(inits.len(), 1, "{hellos:?}");
    }
}

#[test]
fn when_init_is_killed_everything_goes_and_the_next_agent_begins_over_the_leftovers() {
    let scene = Scene::new();
    let spec = scene.spec(&["family", "beating"]);
    let mut agent = Agent::start(&spec);
    until("both workers run", || all_run(&mut agent));
    let init = agent.init();
    kill(init);
    until("all but the agent is gone", || {
        scene.processes() == [i32::try_from(agent.child.id()).unwrap()]
    });
    assert!(scene.app_dir().join("sock").exists(), "leftovers are there");
    let error = agent.ask("status")["error"].as_str().unwrap().to_string();
    assert!(error.contains("gone"), "{error}");
    let mut next = Agent::start(&spec);
    assert_eq!(next.hello["adopted"], false);
    assert_ne!(next.init(), init);
    until("both workers run again", || all_run(&mut next));
    let cgroups = scene.cgroups();
    next.shut_down();
    agent.kill();
    next.kill();
    scene.assert_nothing_left(&cgroups);
}

#[test]
fn a_sandbox_whose_directory_was_removed_ends_once_its_agent_is_gone() {
    let scene = Scene::new();
    let mut agent = Agent::start(&scene.spec(&["beating"]));
    until("the worker runs", || all_run(&mut agent));
    let cgroups = scene.cgroups();
    fs::remove_dir_all(scene.app_dir()).unwrap();
    assert!(all_run(&mut agent), "its agent still has it");
    agent.kill();
    until("every process is gone", || scene.processes().is_empty());
    // Only its empty cgroups stay: the list of them went with the directory.
    for cgroup in cgroups {
        let workers = fs::read_dir(&cgroup).into_iter().flatten().flatten();
        workers.filter(|entry| entry.path().is_dir()).for_each(|w| {
            let _ = fs::remove_dir(w.path());
        });
        until("it is empty", || {
            fs::remove_dir(&cgroup).is_ok() || !cgroup.exists()
        });
    }
}

#[test]
fn when_everything_was_killed_the_cleaner_removes_what_is_left_and_spares_the_living() {
    let scene = Scene::new();
    let mut spec = scene.spec(&["beating"]);
    let mut dead = Agent::start(&spec);
    let cgroups = scene.cgroups();
    kill(dead.init());
    dead.kill();
    spec.app = "living".into();
    let mut living = Agent::start(&spec);
    until("the dead one's lock is free", || {
        clean_up_dead(&scene.run_dir()).unwrap() == ["app".to_string()]
    });
    assert!(!scene.app_dir().exists());
    assert!(cgroups.iter().all(|cgroup| !cgroup.exists()), "{cgroups:?}");
    until("the other one's worker runs", || all_run(&mut living));
    living.shut_down();
    assert_eq!(
        clean_up_dead(&scene.run_dir()).unwrap(),
        Vec::<String>::new()
    );
}

#[test]
fn without_any_isolation_a_killed_inits_workers_die_with_it() {
    let scene = Scene::new();
    let mut spec = scene.spec(&["beating", "deaf"]);
    spec.isolation = Isolation::NONE;
    // It does not look at its line to init, so nothing but the kernel tells it.
    let deaf = scene.file("deaf-1").display().to_string();
    spec.workers[1].command = [common::HELPER, "sleep", &deaf].map(String::from).to_vec();
    let mut agent = Agent::start(&spec);
    until("the worker runs", || {
        agent.status().workers[0].state == WorkerState::Running
    });
    kill(agent.init());
    let own = i32::try_from(agent.child.id()).unwrap();
    until("all but the agent is gone", || scene.processes() == [own]);
    let mut next = Agent::start(&spec);
    assert_eq!(next.hello["adopted"], false);
    until("the worker runs again", || {
        next.status().workers[0].state == WorkerState::Running
    });
    next.shut_down();
    agent.kill();
    next.kill();
    scene.assert_nothing_left(&[]);
}

/// Init's sockets hang up before the kernel has ended what init leaves behind.
#[test]
fn a_sandbox_that_is_just_dying_is_shut_down_and_not_taken_for_another_agents() {
    for _ in 0..5 {
        let scene = Scene::new();
        let mut agent = Agent::start(&scene.spec(&["beating", "beating", "beating"]));
        until("the workers run", || all_run(&mut agent));
        kill(agent.init());
        agent.shut_down();
        agent.kill();
        scene.assert_nothing_left(&[]);
    }
}

#[test]
fn a_changed_spec_is_told_and_a_bad_one_refused_by_name() {
    let scene = Scene::new();
    let mut spec = scene.spec(&["beating"]);
    let mut first = Agent::start(&spec);
    spec.workers[0].env.push(("NEW".into(), "1".into()));
    let second = Agent::start(&spec);
    assert_eq!(second.hello["same_spec"], false);
    first.kill();
    for (app, complaint) in [("../up", "application name"), ("UPPER", "application name")] {
        spec.app = app.into();
        let error = Agent::launch(&spec).answer();
        assert!(
            error["error"].as_str().unwrap().contains(complaint),
            "{error}"
        );
    }
    spec.app = "other".into();
    spec.topology = vec![1, 2, 3];
    let error = Agent::launch(&spec).answer();
    assert!(
        error["error"].as_str().unwrap().contains("topology"),
        "{error}"
    );
    assert!(
        !scene.run_dir().join("other").exists(),
        "a failed start leaves nothing"
    );
    fs::set_permissions(scene.run_dir(), fs::Permissions::from_mode(0o755)).unwrap();
    let error = Agent::launch(&spec).answer();
    assert!(
        error["error"].as_str().unwrap().contains("chmod 700"),
        "{error}"
    );
    fs::set_permissions(scene.run_dir(), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn a_run_directory_deeper_than_a_socket_path_works() {
    let scene = Scene::new();
    let mut spec = scene.spec(&["beating"]);
    spec.run_dir = scene.path().join("d".repeat(150)).join("run");
    let mut agent = Agent::start(&spec);
    until("the worker runs", || all_run(&mut agent));
    agent.kill();
    let mut next = Agent::start(&spec);
    assert_eq!(next.hello["adopted"], true);
    next.shut_down();
    next.kill();
    until("every process is gone", || scene.processes().is_empty());
    clean_up_dead(&spec.run_dir).unwrap();
}

#[test]
fn a_worker_that_ignores_the_request_to_end_is_killed_after_the_time_limit() {
    let scene = Scene::new();
    let mut spec = scene.spec(&["beating"]);
    let file = scene.file("beating-0").display().to_string();
    let stubborn = format!("trap '' TERM; touch {file}.stubborn; while :; do sleep 0.1; done");
    spec.workers[0].command = ["sh", "-c", &stubborn].map(String::from).to_vec();
    let mut agent = Agent::start(&spec);
    let ready = scene.path().join("beating-0.stubborn");
    until("it has set its trap", || ready.exists());
    let cgroups = scene.cgroups();
    let began = std::time::Instant::now();
    let answer = agent.ask("shutdown 300");
    assert_eq!(answer["error"], serde_json::Value::Null);
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(300), "killed before its time");
    assert!(
        took < Duration::from_secs(4),
        "killed by the kernel only, after {took:?}"
    );
    agent.kill();
    scene.assert_nothing_left(&cgroups);
}

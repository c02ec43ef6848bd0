//! What init does for its workers: restart, back off, kill the family, reap, listen.
#![forbid(unsafe_code)]

mod common;

use std::fs;
use std::process::Stdio;

use common::{Agent, Scene, kill, until};
use sandpipe_sandbox::{Isolation, IsolationState, LogLimits, SandboxSpec, WorkerState};

fn all_run(agent: &mut Agent) -> bool {
    agent
        .status()
        .workers
        .iter()
        .all(|worker| worker.state == WorkerState::Running)
}

#[test]
fn a_crashing_worker_is_restarted_with_growing_waits_and_its_neighbour_never_stops() {
    let scene = Scene::new();
    let mut agent = Agent::start(&scene.spec(&["crashing", "beating"]));
    until("it was started five times", || {
        scene.starts("crashing-0").len() >= 5
    });
    let starts = scene.starts("crashing-0");
    let waits: Vec<u64> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    // Each wait is 100 ms × 2^n after a life of 20 ms.
    for (wait, least) in waits.iter().zip([100, 200, 400, 800]) {
        assert!(*wait >= least, "waits {waits:?} ms");
    }
    let mut seen = None;
    until("its exit status is told while it waits", || {
        if let WorkerState::Backoff { last_exit, .. } = &agent.status().workers[0].state {
            seen = Some(last_exit.clone());
        }
        seen.is_some()
    });
    assert_eq!(seen.unwrap(), "exit code 7");
    let status = agent.status();
    assert_eq!(
        (&status.workers[1].state, status.workers[1].restarts),
        (&WorkerState::Running, 0)
    );
    assert_eq!(scene.starts("beating-1").len(), 1);
}

#[test]
fn a_killed_worker_runs_again_and_its_peers_learn_of_its_new_memory() {
    let scene = Scene::new();
    let mut agent = Agent::start(&scene.spec(&["beating", "beating"]));
    until("both workers run", || all_run(&mut agent));
    let first = agent.status().workers[0].pid.unwrap();
    let updates = || scene.beat("beating-1").unwrap().updates;
    until("both know the other's first memory", || {
        scene.beat("beating-1").is_some()
    });
    let before = updates();
    kill(i32::try_from(first).unwrap());
    until("it was started again", || {
        scene.starts("beating-0").len() == 2
    });
    until("both run", || all_run(&mut agent));
    let status = agent.status();
    assert_ne!(status.workers[0].pid, Some(first));
    assert_eq!(
        (status.workers[0].restarts, status.workers[1].restarts),
        (1, 0)
    );
    until("the peer was told", || updates() > before);
}

#[test]
fn a_worker_that_cannot_load_is_failed_after_five_starts_with_its_words_shown_once() {
    let scene = Scene::new();
    let log = scene.path().join("agent.log");
    let stderr = Stdio::from(fs::File::create(&log).unwrap());
    let mut agent = Agent::start_as(&scene.spec(&["broken", "beating"]), None, stderr);
    let mut found = None;
    until("it is given up for now", || {
        found = Some(agent.status().workers[0].state.clone());
        matches!(found, Some(WorkerState::Failed { .. }))
    });
    let Some(WorkerState::Failed {
        attempts,
        last_exit,
        stderr_tail,
        retry_in_ms,
    }) = found
    else {
        unreachable!("just seen");
    };
    assert_eq!((attempts, last_exit.as_str()), (5, "exit code 3"));
    assert!(
        stderr_tail.contains("No module named 'nowhere'"),
        "{stderr_tail}"
    );
    assert!(retry_in_ms > 100, "no hot loop: {retry_in_ms} ms");
    assert_eq!(scene.starts("broken-0").len(), 5);
    let shown = fs::read_to_string(&log).unwrap();
    assert_eq!(shown.matches("nowhere").count(), 1, "{shown}");
    assert_eq!(agent.status().workers[1].state, WorkerState::Running);
}

#[test]
fn a_worker_whose_program_is_missing_says_so() {
    let scene = Scene::new();
    let mut spec = scene.spec(&["beating", "beating"]);
    spec.workers[0].command = vec!["/nowhere/python".into()];
    spec.workers[1].command = vec!["no-such-program".into()];
    let mut agent = Agent::start(&spec);
    let mut exits = Vec::new();
    until("both are told", || {
        let exit = |state: &WorkerState| match state {
            WorkerState::Backoff { last_exit, .. } | WorkerState::Failed { last_exit, .. } => {
                Some(last_exit.clone())
            }
            _ => None,
        };
        exits = agent
            .status()
            .workers
            .iter()
            .filter_map(|w| exit(&w.state))
            .collect();
        exits.len() == 2
    });
    assert!(exits[0].contains("exec: No such file") && exits[0].contains("/nowhere/python"));
    assert!(
        exits[1].contains("no-such-program is not in PATH"),
        "{}",
        exits[1]
    );
}

/// A dead worker's child and its daemon are gone before the worker is started again.
fn family_is_killed(scene: &Scene, spec: &SandboxSpec) {
    let mut agent = Agent::start(spec);
    let file = scene.file("family-0").display().to_string();
    let sleepers = || {
        scene
            .processes()
            .into_iter()
            .filter(|pid| {
                let command = fs::read_to_string(format!("/proc/{pid}/cmdline"));
                command.is_ok_and(|c| c.contains("\0sleep\0") && c.contains(&file))
            })
            .collect::<Vec<i32>>()
    };
    until("both of its children sleep", || sleepers().len() == 2);
    let first = sleepers();
    let pid = agent.status().workers[0].pid.unwrap();
    kill(i32::try_from(pid).unwrap());
    until("it was started again", || {
        scene.starts("family-0").len() == 2
    });
    let survivors: Vec<i32> = sleepers()
        .into_iter()
        .filter(|pid| first.contains(pid))
        .collect();
    assert!(survivors.is_empty(), "{survivors:?} of {first:?}");
    assert_eq!(
        agent.status().workers[1].restarts,
        0,
        "its neighbour was not touched"
    );
    until("both run", || all_run(&mut agent));
}

#[test]
fn a_dead_workers_family_is_killed_through_its_cgroup_before_the_restart() {
    let scene = Scene::new();
    let spec = scene.spec(&["family", "beating"]);
    let probes = sandpipe_sandbox::probe_isolation();
    if !probes
        .iter()
        .any(|probe| probe.name == "cgroup v2" && probe.ok)
    {
        return common::skip("no usable cgroup v2");
    }
    family_is_killed(&scene, &spec);
}

#[test]
fn a_dead_workers_family_is_killed_without_cgroups() {
    let scene = Scene::new();
    let mut spec = scene.spec(&["family", "beating"]);
    spec.isolation.cgroup = false;
    family_is_killed(&scene, &spec);
}

#[test]
fn a_dead_workers_family_is_killed_without_cgroups_and_namespaces() {
    let scene = Scene::new();
    let mut spec = scene.spec(&["family", "beating"]);
    spec.isolation = Isolation::NONE;
    family_is_killed(&scene, &spec);
}

#[test]
fn orphans_are_reaped() {
    let scene = Scene::new();
    let mut agent = Agent::start(&scene.spec(&["orphans"]));
    until("twenty orphans were reaped", || {
        agent.status().orphans_reaped >= 20
    });
    assert_eq!(agent.status().workers[0].restarts, 0);
}

#[test]
fn output_goes_to_the_log_file_or_to_the_agent_that_owns_the_sandbox_now() {
    let scene = Scene::new();
    let mut spec = scene.spec(&["loud", "crashing", "loud"]);
    let file = scene.path().join("grain.log");
    let lines = scene.path().join("lines.log");
    spec.workers[0].stderr_log = Some(file.clone());
    spec.workers[2].stderr_log = Some(lines.clone());
    spec.workers[2].log_limits = Some(LogLimits {
        file_bytes: 4096,
        files: 2,
        bytes_per_s: 4096,
    });
    let mut first = Agent::start(&spec);
    let read = |path: &std::path::Path| fs::read_to_string(path).unwrap_or_default();
    for file in [&file, &lines] {
        until("the file has it", || {
            read(file).contains("loading, start 1")
        });
    }
    // Files that are open for writing do not keep the root from becoming read-only.
    let root = "read-only root, private /tmp";
    let probes = sandpipe_sandbox::probe_isolation();
    let possible = probes.iter().any(|probe| probe.name == root && probe.ok);
    let isolation = first.status().isolation;
    let item = isolation.iter().find(|item| item.name == root).unwrap();
    assert_eq!(item.state == IsolationState::On, possible, "{item:?}");
    first.kill();
    let log = scene.path().join("second.log");
    let stderr = Stdio::from(fs::File::create(&log).unwrap());
    let _second = Agent::start_as(&spec, None, stderr);
    until("the second agent has it", || read(&log).contains("crash "));
    assert!(!read(&log).contains("loading"));
}

#[test]
fn a_memory_limit_kills_the_worker_and_not_the_sandbox() {
    let scene = Scene::new();
    let mut spec = scene.spec(&["beating", "beating"]);
    spec.workers[0].memory_limit_bytes = Some(48 << 20);
    spec.workers[0].command = [
        "sh",
        "-c",
        "a=x; while [ ${#a} -lt 500000000 ]; do a=$a$a; done; sleep 1000",
    ]
    .map(String::from)
    .to_vec();
    let mut agent = Agent::start(&spec);
    let limited = agent.status().isolation.iter().any(|item| {
        item.name == "worker memory limit" && item.state == sandpipe_sandbox::IsolationState::On
    });
    if !limited {
        return common::skip("no memory controller for workers here");
    }
    until("it was killed and backs off", || {
        let state = agent.status().workers[0].state.clone();
        matches!(state, WorkerState::Backoff { last_exit, .. } if last_exit.contains("SIGKILL"))
    });
    until("its neighbour runs", || {
        agent.status().workers[1].state == WorkerState::Running
    });
    let cgroups = scene.cgroups();
    agent.shut_down();
    agent.kill();
    scene.assert_nothing_left(&cgroups);
}

//! Grains that take all they can get. They are contained; neighbour, init and agent go on.
#![forbid(unsafe_code)]

mod common;

use std::process::Stdio;

use common::{Agent, Scene, orders, skip, until, users};
use sandpipe_sandbox::{IsolationState, SandboxSpec, WorkerState};
use serde_json::{Value, json};

const EAGAIN: i64 = 11;
const EMFILE: i64 = 24;
const ENOSPC: i64 = 28;

/// Lets a grain obey beside a beating neighbour of another application, judges what it wrote, and
/// shows that the neighbour never ended and beats on, and that the attacked init still answers.
fn beside_a_neighbour(
    asked: &[String],
    change: impl Fn(&mut SandboxSpec),
    judge: impl Fn(&Value, &mut Agent),
) {
    for uid in users() {
        let scene = Scene::owned_by(uid);
        let mut spec = scene.spec(&["beating"]);
        spec.app = "neighbour".into();
        let mut neighbour = Agent::start_as(&spec, uid, Stdio::inherit());
        until("the neighbour beats", || scene.beat("beating-0").is_some());
        let mut spec = scene.prober("attacker", asked);
        change(&mut spec);
        let mut attacker = Agent::start_as(&spec, uid, Stdio::inherit());
        judge(&scene.said("attacker"), &mut attacker);
        let before = scene.beat("beating-0").unwrap().beats;
        until("the neighbour beats on", || {
            scene.beat("beating-0").unwrap().beats > before + 50
        });
        let worker = &neighbour.status().workers[0];
        assert_eq!((&worker.state, worker.restarts), (&WorkerState::Running, 0));
        attacker.shut_down();
        neighbour.shut_down();
        attacker.kill();
        neighbour.kill();
        scene.assert_nothing_left(&[]);
    }
}

fn is_on(agent: &mut Agent, part: &str) -> bool {
    let isolation = agent.status().isolation;
    let item = isolation.iter().find(|item| item.name == part);
    let on = item.is_some_and(|item| item.state == IsolationState::On);
    if !on {
        skip(&format!("no {part} here"));
    }
    on
}

#[test]
fn a_fork_bomb_ends_at_the_limit_and_its_neighbour_beats_on() {
    beside_a_neighbour(
        &orders(["forks:500"]),
        |spec| spec.pids_limit = Some(64),
        |said, agent| {
            if !is_on(agent, "process limit") {
                return;
            }
            let [count, error] = [&said["forks:500"][0], &said["forks:500"][1]];
            assert_eq!(*error, EAGAIN, "{said}");
            assert!((30..=64).contains(&count.as_i64().unwrap()), "{said}");
        },
    );
}

#[test]
fn a_grain_that_fills_its_tmp_fills_nobody_elses() {
    beside_a_neighbour(
        &orders(["fill:/tmp", "fill:/dev/shm"]),
        |spec| spec.files.tmp_bytes = 8 << 20,
        |said, agent| {
            if is_on(agent, "read-only root, private /tmp") {
                for order in ["fill:/tmp", "fill:/dev/shm"] {
                    assert_eq!(said[order][1], ENOSPC, "{said}");
                    assert_eq!(said[order][0], 8 << 20, "{said}");
                }
            }
        },
    );
}

#[test]
fn a_grain_that_opens_a_hundred_thousand_files_gets_its_limit() {
    beside_a_neighbour(
        &orders(["opens:100000"]),
        |_| {},
        |said, agent| {
            assert!(is_on(agent, "resource limits"), "every kernel has them");
            // Standard descriptors and the line are open already.
            assert_eq!(said["opens:100000"], json!([1024 - 4, EMFILE]));
        },
    );
}

#[test]
fn a_grain_finds_no_socket_of_the_agent_or_the_host() {
    let listener = tempfile::Builder::new()
        .prefix("sandpipe-test-")
        .tempdir_in("/run");
    let Ok(directory) = listener else {
        return skip("/run cannot be written here");
    };
    let service = directory.path().join("service.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&service).unwrap();
    let of_host = format!("unix:{}", service.display());
    let scene = Scene::new();
    let control = scene.run_dir().join("agent-app.sock");
    std::fs::create_dir_all(scene.run_dir()).unwrap();
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(scene.run_dir(), permissions).unwrap();
    let _control = std::os::unix::net::UnixListener::bind(&control).unwrap();
    let of_agent = format!("unix:{}", control.display());
    let asked = [of_host.clone(), of_agent.clone()];
    let mut spec = scene.prober("app", &asked);
    // Even if the run directory's parent is given to it.
    spec.files.write.push(scene.path().into());
    let mut agent = Agent::start(&spec);
    let said = scene.said("app");
    let part = "read-only root, private /tmp";
    let probes = sandpipe_sandbox::probe_isolation();
    let possible = probes.iter().any(|probe| probe.name == part && probe.ok);
    assert_eq!(is_on(&mut agent, part), possible);
    if possible {
        assert_eq!(said[&of_host], 2, "{said}");
        assert_eq!(said[&of_agent], 2, "{said}");
    }
    agent.shut_down();
}

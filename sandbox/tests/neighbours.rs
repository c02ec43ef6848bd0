//! Two applications of two owners: neither can read, signal, trace, name or exhaust the other.
#![forbid(unsafe_code)]

mod common;

use std::path::PathBuf;
use std::process::Stdio;

use common::{Agent, Scene, orders, skip, until, users};
use sandpipe_sandbox::{IsolationState, SandboxSpec, WorkerState};
use serde_json::Value;

const EPERM: i64 = 1;
const ENOENT: i64 = 2;
const ESRCH: i64 = 3;
const EACCES: i64 = 13;
const ECONNREFUSED: i64 = 111;

/// What the victim makes for others to find.
fn bait() -> Vec<String> {
    orders([
        "write:/tmp/bait",
        "write:/dev/shm/bait",
        "sysv-make:77",
        "listen-abstract:bait",
    ])
}

/// A victim and its agent, and its process as the host sees it.
fn victim(scene: &Scene, uid: Option<u32>) -> (Agent, u32) {
    let spec = scene.prober("victim", &bait());
    let mut agent = Agent::start_as(&spec, uid, Stdio::inherit());
    let made = scene.said("victim");
    for (order, outcome) in made.as_object().unwrap() {
        assert!(
            outcome == 0 || order.starts_with("sysv"),
            "{order}: {outcome}"
        );
    }
    let pid = agent.status().workers[0].pid.unwrap();
    (agent, pid)
}

/// Whether every part that the attacks meet holds here; says which does not.
fn is_whole(agent: &mut Agent) -> bool {
    let isolation = agent.status().isolation;
    let off = isolation.iter().find(|item| {
        let part = [
            "pid namespace",
            "ipc namespace",
            "network namespace",
            "file rules",
        ];
        let part = part.contains(&item.name.as_str()) || item.name.starts_with("read-only root");
        part && item.state == IsolationState::Off
    });
    if let Some(item) = off {
        skip(&format!("{}: {}", item.name, item.reason));
    }
    off.is_none()
}

/// Lets an attacker obey beside a victim, for each user, and shows what it wrote.
fn attack(
    orders: impl Fn(&Scene, u32) -> Vec<String>,
    change: impl Fn(&mut SandboxSpec),
    judge: impl Fn(&Value, &[String]),
) {
    for uid in users() {
        let scene = Scene::owned_by(uid);
        let (mut agent, pid) = victim(&scene, uid);
        if !is_whole(&mut agent) {
            continue;
        }
        let orders = orders(&scene, pid);
        let mut spec = scene.prober("attacker", &orders);
        change(&mut spec);
        let mut attacker = Agent::start_as(&spec, uid, Stdio::inherit());
        judge(&scene.said("attacker"), &orders);
        let worker = &agent.status().workers[0];
        assert_eq!((worker.pid, worker.restarts), (Some(pid), 0), "it lives on");
        attacker.shut_down();
        agent.shut_down();
    }
}

#[test]
fn an_application_reads_no_file_of_another() {
    let paths = |scene: &Scene, pid: u32| -> Vec<PathBuf> {
        let host = format!("/proc/{pid}/root/tmp/bait");
        vec![
            scene.path().join("victim/said"),
            scene.run_dir().join("victim/lock"),
            scene.run_dir().join("victim/init.log"),
            "/tmp/bait".into(),
            "/dev/shm/bait".into(),
            host.into(),
        ]
    };
    attack(
        |scene, pid| {
            let paths = paths(scene, pid);
            let order = |path: PathBuf| format!("read:{}", path.display());
            paths.into_iter().map(order).collect()
        },
        |_| {},
        |said, orders| {
            for order in orders {
                let outcome = said[order].as_i64();
                assert!(
                    [Some(ENOENT), Some(EACCES)].contains(&outcome),
                    "{order}: {outcome:?}"
                );
            }
        },
    );
}

#[test]
fn an_application_sees_signals_and_traces_no_process_of_another() {
    let verbs = [
        ("list:/proc/@", ENOENT),
        ("text:/proc/@/environ", ENOENT),
        ("write-link:/proc/@/mem", ENOENT),
        ("kill:@", ESRCH),
        ("terminate:@", ESRCH),
        ("get-descriptor:@", ESRCH),
        ("ptrace:@", EPERM),
        ("vm-read:@", EPERM),
        ("vm-write:@", EPERM),
    ];
    let order = |verb: &str, pid: u32| verb.replace('@', &pid.to_string());
    attack(
        |_, pid| verbs.map(|(verb, _)| order(verb, pid)).to_vec(),
        |_| {},
        |said, orders| {
            for (given, (_, expected)) in orders.iter().zip(verbs) {
                assert_eq!(said[given], expected, "{given}");
            }
        },
    );
    // What stands behind the filter: nobody of that number is there to be traced.
    attack(
        |_, pid| {
            ["ptrace:@", "vm-read:@", "vm-write:@"]
                .map(|verb| order(verb, pid))
                .to_vec()
        },
        |spec| spec.isolation.system_calls = false,
        |said, orders| {
            for given in orders {
                assert_eq!(said[given], ESRCH, "{given}");
            }
        },
    );
}

#[test]
fn an_application_finds_no_name_of_another() {
    attack(
        |scene, _| {
            let socket = scene.run_dir().join("victim/sock");
            let mut found = orders(["abstract:bait", "sysv:77", "read:/dev/shm/bait"]);
            found.push(format!("unix:{}", socket.display()));
            found
        },
        |spec| {
            spec.isolation.system_calls = false;
            // Even if it is given the directory above the run directory.
            let above = spec.run_dir.parent().unwrap().to_path_buf();
            spec.files.write.push(above);
        },
        |said, orders| {
            for (order, expected) in orders.iter().zip([ECONNREFUSED, ENOENT, ENOENT, ENOENT]) {
                assert_eq!(said[order], expected, "{order}");
            }
        },
    );
}

#[test]
fn grains_of_one_application_do_not_trace_or_signal_each_other() {
    for uid in users() {
        let scene = Scene::owned_by(uid);
        // Init is 1, and @ the other worker.
        let mut spec = scene.spec(&["beating", "probing"]);
        let prober = scene.prober(
            "app",
            &orders([
                "terminate:@",
                "get-descriptor:@",
                "write-link:/proc/@/mem",
                "read:/proc/@/fd/3",
                "terminate:1",
                "get-descriptor:1",
                "write-link:/proc/1/mem",
                "read:/proc/1/fd/3",
                "ptrace:@",
                "vm-read:@",
            ]),
        );
        spec.workers[1] = prober.workers[0].clone();
        spec.isolation.system_calls = false;
        let mut agent = Agent::start_as(&spec, uid, Stdio::inherit());
        let said = scene.said("app");
        if !is_whole(&mut agent) {
            continue;
        }
        for (order, outcome) in said.as_object().unwrap() {
            let outcome = outcome.as_i64();
            assert!(
                [Some(EPERM), Some(EACCES)].contains(&outcome),
                "{order}: {outcome:?}"
            );
        }
        until("its neighbour runs", || {
            agent.status().workers[0].state == WorkerState::Running
        });
        assert_eq!(agent.status().workers[0].restarts, 0);
        agent.shut_down();
    }
}

//! Who may do what: strangers, plain users, and machines that refuse.
#![forbid(unsafe_code)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use common::{Agent, HELPER, NOBODY, Scene, nobody_can_run_the_helper, until};
use sandpipe_sandbox::{IsolationState, Probe, WorkerState};
use serde_json::Value;

#[test]
fn another_user_is_refused_by_the_directory_the_socket_and_init() {
    if !nobody_can_run_the_helper() {
        return common::skip("needs root and a build directory open to others");
    }
    let scene = Scene::new();
    let agent = Agent::start(&scene.spec(&["beating"]));
    let socket = scene.app_dir().join("sock");
    let ask_as = |uid: u32| -> Value {
        let mut command = Command::new(HELPER);
        let output = command
            .args(["ask".as_ref(), socket.as_os_str()])
            .uid(uid)
            .gid(uid)
            .output();
        serde_json::from_slice(&output.unwrap().stdout).unwrap()
    };
    let open = |path: &std::path::Path, mode: u32| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    assert!(
        ask_as(0)["answer"]
            .as_str()
            .unwrap()
            .contains("\"reply\":\"status\"")
    );
    let denied = |answer: Value| {
        answer["error"]
            .as_str()
            .unwrap()
            .contains("Permission denied")
    };
    assert!(denied(ask_as(NOBODY)), "by the directory");
    for directory in [scene.path(), &scene.run_dir(), &scene.app_dir()] {
        open(directory, 0o755);
    }
    assert!(denied(ask_as(NOBODY)), "by the socket's mode");
    open(&socket, 0o666);
    let answer = ask_as(NOBODY);
    // Init closes the connection without a word.
    let closed = answer["answer"] == "" || answer["error"].is_string();
    assert!(closed, "{answer}");
    drop(agent);
}

#[test]
fn a_plain_user_gets_a_sandbox_in_a_user_namespace_and_is_told_what_is_refused() {
    if !nobody_can_run_the_helper() {
        return common::skip("needs root and a build directory open to others");
    }
    let scene = Scene::owned_by(Some(NOBODY));
    let mut spec = scene.spec(&["family", "beating"]);
    spec.memory_limit_bytes = Some(64 << 20);
    let mut agent = Agent::start_as(&spec, Some(NOBODY), Stdio::inherit());
    let runs = |agent: &mut Agent| {
        agent
            .status()
            .workers
            .iter()
            .all(|worker| worker.state == WorkerState::Running)
    };
    until("the workers run", || runs(&mut agent));
    let status = agent.status();
    let item = |name: &str| {
        status
            .isolation
            .iter()
            .find(|item| item.name == name)
            .unwrap()
    };
    for refused in ["cgroup kill", "memory limit"] {
        let item = item(refused);
        assert_eq!(item.state, IsolationState::Off, "{item:?}");
        assert!(
            !item.reason.is_empty() && !item.remedy.is_empty(),
            "{item:?}"
        );
    }
    let user = item("user namespace").state;
    if user == IsolationState::On {
        for name in [
            "pid namespace",
            "network namespace",
            "private /proc",
            "loopback",
        ] {
            assert_eq!(item(name).state, IsolationState::On, "{:?}", item(name));
        }
    } else {
        common::skip(&item("pid namespace").reason);
    }
    agent.kill();
    let mut next = Agent::start_as(&spec, Some(NOBODY), Stdio::inherit());
    assert_eq!(next.hello["adopted"], true);
    common::kill(i32::try_from(next.status().workers[0].pid.unwrap()).unwrap());
    until("its worker was started again", || {
        scene.starts("family-0").len() == 2
    });
    until("the workers run", || runs(&mut next));
    next.shut_down();
    next.kill();
    scene.assert_nothing_left(&[]);
}

#[test]
fn the_probe_proves_each_part_and_leaves_nothing() {
    let probes = |uid: u32| -> Vec<Probe> {
        let mut command = Command::new(HELPER);
        let child = command
            .arg("probe")
            .uid(uid)
            .gid(uid)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let its_cgroups = format!("sandpipe-probe-{}", child.id());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let left = Command::new("find")
            .args(["/sys/fs/cgroup", "-name", &its_cgroups])
            .output();
        assert_eq!(String::from_utf8_lossy(&left.unwrap().stdout), "");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let own = rustix::process::geteuid().as_raw();
    let users = if nobody_can_run_the_helper() {
        vec![own, NOBODY]
    } else {
        vec![own]
    };
    for uid in users {
        let probes = probes(uid);
        assert!(probes.len() >= 10, "{probes:?}");
        for probe in probes.iter().filter(|probe| !probe.ok) {
            assert!(
                !probe.reason.is_empty() && !probe.remedy.is_empty(),
                "{probe:?}"
            );
        }
    }
}

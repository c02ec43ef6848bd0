//! What a process can still do that has given up its rights as an agent does.
#![forbid(unsafe_code)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use common::{NOBODY, PROBER, Scene, skip, users};
use serde_json::Value;

const EPERM: i64 = 1;
const EACCES: i64 = 13;
const ENOSYS: i64 = 38;

/// `uretprobe` and `uprobe` of x86-64: the kernel lets them past every filter, and ends by SIGILL
/// who calls them from anywhere but its own trampoline.
const PAST_EVERY_FILTER: [i64; 2] = [335, 336];

/// A prober that gives up what an agent does, then obeys; what it says, and what it kept. `wants`
/// is what it may read and whether it connects, as the prober takes them.
fn restricted(uid: Option<u32>, scene: &Scene, wants: &str, orders: &[String]) -> Value {
    let own = |name: &str| {
        let path = scene.path().join(name);
        fs::create_dir_all(&path).unwrap();
        std::os::unix::fs::chown(&path, uid, uid).unwrap();
        path.display().to_string()
    };
    let (run, data) = (own("run"), own("data"));
    let said = scene.path().join("data/said");
    let mut command = Command::new(PROBER);
    command.arg(&said);
    command.arg(format!("give-up:{run},{data},{wants}"));
    command.args(orders);
    if let Some(uid) = uid {
        command.uid(uid).gid(uid);
    }
    let mut child = command.spawn().unwrap();
    common::until("the prober has obeyed", || {
        assert!(child.try_wait().unwrap().is_none(), "it has ended");
        said.exists()
    });
    child.kill().unwrap();
    child.wait().unwrap();
    serde_json::from_slice(&fs::read(said).unwrap()).unwrap()
}

/// What was kept, each with its reason. A kernel that lacks a part is no failure.
fn lacks(said: &Value, part: &str) -> bool {
    let kept = said
        .as_object()
        .unwrap()
        .iter()
        .find(|(order, _)| order.starts_with("give-up:"));
    let kept: BTreeMap<String, Option<String>> =
        serde_json::from_value(kept.unwrap().1.clone()).unwrap();
    let Some(reason) = &kept[part] else {
        return false;
    };
    let lacking = ["(os error 38)", "(os error 95)"];
    assert!(
        lacking.iter().any(|errno| reason.contains(errno)),
        "{part}: {reason}"
    );
    skip(&format!("{part}: {reason}"));
    true
}

#[test]
fn every_system_call_that_is_not_on_the_list_is_refused() {
    let bounded = [
        format!("socket:{}", libc::AF_INET),
        format!("socket:{}", libc::AF_NETLINK),
    ];
    refuses_the_rest(false, 60, &bounded);
}

#[test]
fn who_connects_may_a_few_more_and_only_to_where_addresses_lead() {
    let bounded = [
        format!("socket:{}", libc::AF_VSOCK),
        format!("socket:{}", libc::AF_PACKET),
        format!("socket:{}", libc::AF_ALG),
        format!("ioctl:{}", libc::TIOCSTI),
    ];
    refuses_the_rest(true, 69, &bounded);
    let scene = Scene::new();
    let let_in = [libc::AF_INET, libc::AF_INET6].map(|family| format!("socket:{family}"));
    let said = restricted(None, &scene, ",network", &let_in);
    for order in &let_in {
        assert_eq!(said[order], 0, "{order}");
    }
}

/// An agent that connects, or not, is refused each call but at most `most`, and what is bounded.
fn refuses_the_rest(network: bool, most: usize, bounded: &[String]) {
    let allowed = sandpipe_sandbox::agent_system_calls(true, network);
    assert!(allowed.len() <= most, "{} system calls", allowed.len());
    let without_rings = sandpipe_sandbox::agent_system_calls(false, network);
    assert!(without_rings.len() <= most, "{}", without_rings.len());
    let refused: Vec<i64> = (0..=469)
        .filter(|call| !allowed.contains(call) && !without_rings.contains(call))
        .filter(|call| *call != libc::SYS_clone3 && !PAST_EVERY_FILTER.contains(call))
        .collect();
    assert!(refused.len() >= 300, "{}", refused.len());
    let mut orders: Vec<String> = refused.iter().map(|call| format!("call:{call}")).collect();
    let always = [
        "clone:0".to_owned(),
        format!("clone:{}", libc::CLONE_NEWUSER),
        format!("prctl:{}", libc::PR_SET_DUMPABLE),
        format!("call:{}", libc::SYS_execve),
    ];
    orders.extend(always);
    orders.extend_from_slice(bounded);
    let newer = ["call:470".to_owned(), "call:435".to_owned()];
    let scene = Scene::new();
    let wants = if network { ",network" } else { "," };
    let said = restricted(None, &scene, wants, &[&orders[..], &newer].concat());
    if lacks(&said, "agent: system call filter") {
        return;
    }
    let let_in: Vec<_> = orders.iter().filter(|o| said[*o] != EPERM).collect();
    assert!(let_in.is_empty(), "{let_in:?}");
    assert_eq!(said[&newer[1]], ENOSYS, "clone3");
    assert_ne!(said[&newer[0]], 0);
}

#[test]
fn what_the_filter_refuses_would_be_let_in_without_it() {
    let scene = Scene::new();
    let file = scene.path().join("said");
    let mut command = Command::new(PROBER);
    let orders = ["call:39", "socket:2", "clone:0", "prctl:3"];
    let mut child = command.arg(&file).args(orders).spawn().unwrap();
    common::until("the prober has obeyed", || file.exists());
    child.kill().unwrap();
    child.wait().unwrap();
    let said: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    for order in orders {
        assert_eq!(said[order], 0, "{order} proves nothing here");
    }
}

#[test]
fn files_outside_are_read_as_configured_and_neither_written_nor_executed() {
    for uid in users() {
        let scene = Scene::owned_by(uid);
        let place = |name: &str| scene.path().join(name).display().to_string();
        for name in ["near", "far"] {
            fs::create_dir(scene.path().join(name)).unwrap();
            fs::write(scene.path().join(name).join("file"), "text").unwrap();
            for path in [name.to_owned(), format!("{name}/file")] {
                std::os::unix::fs::chown(scene.path().join(path), uid, uid).unwrap();
            }
        }
        let expected = [
            (format!("write:{}", place("run/new")), 0),
            (format!("write:{}", place("data/new")), 0),
            (format!("write:{}", place("near/new")), EACCES),
            (format!("write:{}", place("near/file")), EACCES),
            (format!("write:{}", place("far/file")), EACCES),
            ("write-link:/proc/self/comm".into(), EACCES),
            (format!("read:{}", place("near/file")), 0),
            ("read:/etc/passwd".into(), 0),
            (format!("read:{}", place("far/file")), EACCES),
            (format!("list:{}", place("far")), EACCES),
            ("list:/".into(), EACCES),
        ];
        let orders: Vec<String> = expected.iter().map(|(order, _)| order.clone()).collect();
        let said = restricted(uid, &scene, &format!("{},", place("near")), &orders);
        if lacks(&said, "agent: file rules") {
            return;
        }
        for (order, outcome) in expected {
            assert_eq!(said[&order], outcome, "{order} of {uid:?}");
        }
    }
    assert!(users().contains(&Some(NOBODY)) || users().len() == 1);
}

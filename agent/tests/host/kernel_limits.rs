//! The limits that the kernel keeps: each is really hit, and shown by application.

use std::path::Path;

use sandpipe_agent::bridge::LimitState;

use super::bounds::{assert_named, limit};
use super::fleet::{Agent, Fleet};
use super::harness::{kill, skip, until};

/// Whether this user may limit that here, under v1 or v2.
fn available(controller: &str) -> bool {
    let v1 = Path::new("/sys/fs/cgroup").join(controller);
    let of_v2 = |root: &str| std::fs::read_to_string(root).unwrap_or_default();
    let v2 = [
        "/sys/fs/cgroup/cgroup.controllers",
        "/sys/fs/cgroup/unified/cgroup.controllers",
    ];
    let in_v2 = |root: &&str| {
        of_v2(root)
            .split_whitespace()
            .any(|name| name == controller)
    };
    super::harness::is_root() && (v1.is_dir() || v2.iter().any(in_v2))
}

fn find(agent: &Agent<'_>, letter: &str, name: &str) -> Option<LimitState> {
    let mut limits = agent.app(letter).limits.into_iter();
    limits.find(|limit| limit.name == name)
}

/// `ps --json` and `top --once --json` say the same as the status.
fn assert_in_json(fleet: &Fleet, name: &str) {
    let of = |arguments: &[&str], path: &str| {
        let text = fleet.ok(arguments);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let apps = json.pointer(path).unwrap().as_array().unwrap().clone();
        let app = apps.iter().find(|row| {
            let named = row.get("app").or_else(|| row.get("name"));
            named == Some(&fleet.app("x").into())
        });
        let limits = app.unwrap()["limits"].as_array().unwrap().clone();
        let found = limits.iter().find(|limit| limit["name"] == name);
        found.unwrap()["hits"].as_u64().unwrap()
    };
    assert!(of(&["ps", "--json"], "") > 0, "{name}");
    assert!(of(&["top", "--once", "--json"], "/apps") > 0, "{name}");
}

/// Deploys `x` alone, sends it an event that goes too far, and sees it counted.
fn hit(fleet: &Fleet, agent: &Agent<'_>, name: &str, limits: &str, order: &str) -> LimitState {
    fleet.deploy(&fleet.write("x", &["a"], limits, ""));
    until("the limit is told", || find(agent, "x", name).is_some());
    assert_eq!(limit(agent, name).hits, 0, "{name}");
    until("the hit is told", || {
        let answer = agent.post("x", order);
        eprintln!("{name}: {} {}", answer.status, answer.text());
        // The kernel is asked once a second.
        std::thread::sleep(std::time::Duration::from_millis(1100));
        limit(agent, name).hits > 0
    });
    assert_named(fleet, agent, name);
    assert_in_json(fleet, name);
    let kept = limit(agent, name);
    fleet.ok(&["undeploy", &fleet.app("x"), "--drain", "0", "--purge"]);
    kept
}

#[test]
fn each_hit_of_a_limit_of_the_kernel_is_counted_and_what_has_no_limit_is_absent() {
    if !["memory", "pids", "cpu"].into_iter().all(available) {
        return skip("a cgroup of memory, pids or cpu that this user may make");
    }
    let fleet = Fleet::new();
    let agent = fleet.start();
    fleet.deploy(&fleet.write("y", &["a"], "", ""));
    let once = |limits: &str| format!("max_attempts = 1\n{limits}");
    let memory = once("memory_limit_mb = 96");
    let memory = hit(&fleet, &agent, "memory_limit_mb", &memory, "a: hoard 200");
    assert_eq!(memory.limit, 96);
    assert!(
        memory.now.is_some_and(|now| (1..=96).contains(&now)),
        "{memory:?}"
    );
    let pids = hit(&fleet, &agent, "pids", &once("pids = 40"), "a: crowd 60");
    assert_eq!(pids.limit, 40);
    assert!(
        pids.now.is_some_and(|now| (1..=40).contains(&now)),
        "{pids:?}"
    );
    let cpu = hit(&fleet, &agent, "cpu", &once("cpu = 0.2"), "a: spin 1000");
    assert_eq!((cpu.limit, cpu.now), (200, None));
    // The neighbour has the limit of processes that everybody has, and no other.
    assert_eq!(agent.post("y", "1").text(), "1a");
    assert_eq!(find(&agent, "y", "memory_limit_mb"), None);
    assert_eq!(find(&agent, "y", "cpu"), None);
    assert_eq!(find(&agent, "y", "pids").map(|kept| kept.hits), Some(0));
    agent.stop();
    fleet.assert_clean();
}

#[test]
fn what_a_grains_own_limit_of_memory_has_cost_outlives_its_worker_and_the_agent() {
    if !available("memory") {
        return skip("a cgroup of memory that this user may make");
    }
    let fleet = Fleet::new();
    let agent = fleet.start();
    let grain = "memory_limit_mb = 48";
    fleet.deploy(&fleet.write("x", &["a"], "max_attempts = 1", grain));
    until("the limit is told", || {
        find(&agent, "x", "memory_limit_mb").is_some_and(|kept| kept.limit == 48)
    });
    agent.post("x", "a: hoard 200");
    let hits = || find(&agent, "x", "memory_limit_mb").map_or(0, |kept| kept.hits);
    until("the kill is told", || hits() > 0);
    let restarts = || agent.app("x").grains[0].restarts;
    let before = (restarts(), hits());
    until("its worker runs", || agent.app("x").grains[0].pid.is_some());
    kill(agent.app("x").grains[0].pid.unwrap(), "KILL");
    until("its restart is seen", || restarts() > before.0);
    // One look later its cgroup is gone, and the count is not.
    until("it runs again", || agent.post("x", "1").text() == "1a");
    std::thread::sleep(std::time::Duration::from_millis(1500));
    assert_eq!(hits(), before.1);
    agent.kill();
    let agent = fleet.start();
    until("the next agent tells the same", || {
        find(&agent, "x", "memory_limit_mb").is_some_and(|kept| kept.hits == before.1)
    });
    fleet.ok(&["undeploy", &fleet.app("x")]);
    agent.stop();
    fleet.assert_clean();
}

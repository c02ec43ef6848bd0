//! Deployed and undeployed again and again, nothing stays.

use std::time::{Duration, Instant};

use super::fleet::{Agent, Fleet};
use super::harness::WATCHDOG;

/// What an agent and its host hold.
#[derive(Debug, PartialEq, Eq)]
pub struct Holdings {
    descriptors: usize,
    maps: usize,
    threads: usize,
    mounts: usize,
    cgroups: usize,
}

fn holdings(fleet: &Fleet, agent: &Agent<'_>) -> Holdings {
    let count = |path: String| std::fs::read_dir(path).unwrap().count();
    let of_agent = format!("/proc/{}", agent.pid());
    let maps = std::fs::read_to_string(format!("{of_agent}/maps")).unwrap();
    let mounts = std::fs::read_to_string(format!("{of_agent}/mountinfo")).unwrap();
    let own = fleet.directory.path().display().to_string();
    Holdings {
        descriptors: count(format!("{of_agent}/fd")),
        // What a sandbox shares with its agent; the heap's own maps come and go.
        maps: maps.lines().filter(|line| line.contains("memfd:")).count(),
        threads: count(format!("{of_agent}/task")),
        // Others on this machine mount things of their own meanwhile.
        mounts: mounts.lines().filter(|line| line.contains(&own)).count(),
        cgroups: fleet.cgroups().len(),
    }
}

/// What is held once it does not change any more, or once it is as before.
pub fn settled(fleet: &Fleet, agent: &Agent<'_>, before: Option<&Holdings>) -> Holdings {
    let deadline = Instant::now() + WATCHDOG;
    loop {
        let last = holdings(fleet, agent);
        std::thread::sleep(Duration::from_millis(200)); // the watchers' pace, and more
        let now = holdings(fleet, agent);
        let is_settled = before.map_or(last == now, |before| *before == now);
        if is_settled || Instant::now() >= deadline {
            return now;
        }
    }
}

fn resident_kb(agent: &Agent<'_>) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn after_hundreds_of_deployments_nothing_is_left_of_them() {
    // Each is a first version, a second one that takes over, and an end.
    let rounds = if super::harness::is_full() {
        10_000
    } else {
        200
    };
    let fleet = Fleet::new();
    let agent = fleet.start();
    let round = |number: usize| {
        fleet.deploy(&fleet.write("x", &["a"], "", "mode = \"pool\"\nconcurrency = 1"));
        if number.is_multiple_of(4) {
            fleet.deploy(&fleet.write("x", &["a", "b"], "", "mode = \"pool\"\nconcurrency = 1"));
            assert_eq!(agent.post("x", "1").text(), "1ab");
        }
        fleet.ok(&["undeploy", &fleet.app("x"), "--purge"]);
    };
    // What is made once for all: threads of the runtime, arenas of the allocator.
    (0..20).for_each(round);
    let (before, resident) = (settled(&fleet, &agent, None), resident_kb(&agent));
    (20..20 + rounds).for_each(round);
    assert_eq!(settled(&fleet, &agent, Some(&before)), before);
    let grown = resident_kb(&agent).saturating_sub(resident);
    // Less than a tenth of a KiB a round would be a page lost now and then.
    let allowed = 2048 + rounds as u64 / 10;
    assert!(grown < allowed, "{grown} KiB more than after 20 rounds");
    assert!(fleet.workers().is_empty());
    eprintln!("{rounds} rounds: {before:?}, {grown} KiB more resident");
    agent.stop();
    fleet.assert_clean();
}

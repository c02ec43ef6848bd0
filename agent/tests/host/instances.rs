//! One limit of instances for all grains of an application.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::bounds::{assert_named, limit};
use super::fleet::{Agent, Fleet};
use super::harness::{kill, until};

const MODES: [&str; 3] = [
    "concurrency = 4\nspares = 0",
    "concurrency = 4\nspares = 2",
    "concurrency = 4\nmode = \"pool\"",
];

/// Answers sixteen requests, four times four at both grains at the same time; the most instances
/// that lived at any look. `meanwhile` is done once while they are worked on.
fn most_instances(agent: &Agent<'_>, fleet: &Fleet, meanwhile: impl FnOnce()) -> usize {
    let answered = AtomicUsize::new(0);
    let mut most = 0;
    std::thread::scope(|scope| {
        for number in 0..16 {
            let whom = ["a", "b"][number % 2];
            let answered = &answered;
            scope.spawn(move || {
                let answer = agent.post("x", format!("{whom}: sleep 200 "));
                assert_eq!(answer.status, 200, "{}", answer.text());
                answered.fetch_add(1, Ordering::Relaxed);
            });
        }
        until("some are answered", || {
            most = most.max(fleet.workers().len().saturating_sub(2));
            answered.load(Ordering::Relaxed) >= 8
        });
        meanwhile();
        until("all are answered", || {
            answered.load(Ordering::Relaxed) == 16
        });
    });
    most
}

fn deploy(fleet: &Fleet, instances: u64, mode: &str) {
    let limits = format!("instances = {instances}\nmax_attempts = 9");
    fleet.deploy(&fleet.write("x", &["a", "b"], &limits, mode));
}

#[test]
fn instances_beyond_the_applications_limit_wait_and_everything_is_answered() {
    let fleet = Fleet::new();
    let agent = fleet.start();
    let file = fleet.write("x", &["a", "b"], "instances = 1", "");
    let refused = fleet.sandpipe(&["deploy", file.to_str().unwrap()]);
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(words.contains("use at least 2"), "{words}");
    for mode in MODES {
        // One for each grain, and one that they share.
        deploy(&fleet, 3, mode);
        let most = most_instances(&agent, &fleet, || {});
        assert_eq!(most, 3, "{mode}");
        until("what was refused is told", || {
            limit(&agent, "instances").hits > 0
        });
        let kept = limit(&agent, "instances");
        assert_eq!(kept.limit, 3, "{mode}");
        assert!(kept.now.is_some_and(|now| now <= 3), "{mode}: {kept:?}");
        assert_named(&fleet, &agent, "instances");
        // The dead worker's places are free again.
        let worker = agent.app("x").grains[0].pid.unwrap();
        most_instances(&agent, &fleet, || kill(worker, "KILL"));
        assert_eq!(most_instances(&agent, &fleet, || {}), 3, "{mode}");
        fleet.ok(&["undeploy", &fleet.app("x")]);
        // At the limit nobody waits for it.
        deploy(&fleet, 8 + 4, mode);
        let most = most_instances(&agent, &fleet, || {});
        assert!(most > 3, "{mode}: {most}");
        assert_eq!(limit(&agent, "instances").hits, 0, "{mode}");
        fleet.ok(&["undeploy", &fleet.app("x")]);
    }
    agent.stop();
    fleet.assert_clean();
}

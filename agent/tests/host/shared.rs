//! One limit of shared bytes for a whole application.

use super::bounds::{assert_named, limit};
use super::fleet::{Agent, Fleet};

/// A pool of instances that work on their first event for as long as the test takes.
const GRAIN: &str = "mode = \"pool\"\nconcurrency = 1";

/// Pools of some MiB, which a few hundred payloads exhaust.
fn limits(shared_mb: u64) -> String {
    format!("max_payload_bytes = 65536\npool_growth_mb = 1000\nshared_mb = {shared_mb}")
}

/// How many MiB the queues and pools alone take, as the refusal says it.
fn made_mb(fleet: &Fleet) -> u64 {
    let file = fleet.write("x", &["a"], &limits(1), GRAIN);
    let output = fleet.sandpipe(&["deploy", file.to_str().unwrap()]);
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{words}");
    let (_, rest) = words
        .split_once("the queues and pools alone take ")
        .unwrap();
    rest.split_once(" MiB").unwrap().0.parse().unwrap()
}

/// Sends large requests until the limit refuses one; how many were accepted. One that is refused
/// while the pool is about to grow is sent again.
fn accepted(agent: &Agent<'_>, fleet: &Fleet) -> usize {
    let body = format!("a: sleep 20000 {}", "x".repeat(60_000));
    let path = format!("/{}", fleet.app("x"));
    let wait = [("prefer", "respond-async")];
    let mut accepted = 0;
    super::harness::until("the limit has refused one", || {
        let answer = agent.call("POST", &path, &wait, body.as_bytes());
        assert!([202, 429].contains(&answer.status), "{}", answer.text());
        accepted += usize::from(answer.status == 202);
        assert!(accepted < 2000, "its memory has no limit");
        answer.status == 429 && limit(agent, "shared_mb").hits > 0
    });
    accepted
}

/// Deploys it with this limit, fills it, and takes it away; how many requests it took, by how many
/// extensions its pools grew, and how the limit stood.
fn fill(agent: &Agent<'_>, fleet: &Fleet, shared_mb: u64) -> (usize, u64) {
    fleet.deploy(&fleet.write("x", &["a"], &limits(shared_mb), GRAIN));
    let taken = accepted(agent, fleet);
    let kept = limit(agent, "shared_mb");
    assert_eq!(kept.limit, shared_mb);
    assert!(kept.now.is_some_and(|now| now <= shared_mb), "{kept:?}");
    assert_named(fleet, agent, "shared_mb");
    let extensions = agent.app("x").bus.iter().map(|of| of.pool_extensions).sum();
    fleet.ok(&["undeploy", &fleet.app("x"), "--drain", "0", "--purge"]);
    (taken, extensions)
}

#[test]
fn the_shared_bytes_of_an_application_are_bounded_with_all_that_its_pools_grow_by() {
    let fleet = Fleet::new();
    let agent = fleet.start();
    fleet.deploy(&fleet.write("y", &["a"], "", ""));
    let made = made_mb(&fleet);
    let (alone, grown) = fill(&agent, &fleet, made);
    assert_eq!(grown, 0, "nothing is left to grow by");
    // Each extension is as large as a pool, and the pools are most of what was made.
    let (once, grown) = fill(&agent, &fleet, 2 * made);
    assert!((1..=2).contains(&grown), "{grown} extensions");
    assert!(once > alone, "{once} after {alone}");
    assert_eq!(agent.post("y", "1").text(), "1a");
    let limits = agent.app("y").limits;
    assert!(limits.iter().all(|limit| limit.name != "shared_mb"));
    eprintln!("{made} MiB are made: {alone} requests, then {once}");
    agent.stop();
    fleet.assert_clean();
}

//! Limits that the agent itself keeps for an application: its log on the disk, and the wake-ups of
//! its bus thread.

use std::time::{Duration, Instant};

use super::fleet::{Agent, Fleet};
use super::harness::until;
use sandpipe_agent::bridge::LimitState;

pub fn limit(agent: &Agent<'_>, name: &str) -> LimitState {
    let mut limits = agent.app("x").limits.into_iter();
    limits.find(|limit| limit.name == name).expect("it is told")
}

/// `ps`, `status` and the metrics name a limit that was hit.
pub fn assert_named(fleet: &Fleet, agent: &Agent<'_>, name: &str) {
    let words = format!("limit {name}: hit ");
    for arguments in [vec!["ps"], vec!["status", &fleet.app("x")]] {
        let text = fleet.ok(&arguments);
        assert!(text.contains(&words), "{arguments:?}: {text}");
    }
    let labels = format!("{{app=\"{}\",limit=\"{name}\"}} ", fleet.app("x"));
    let page = agent.call("GET", "/metrics", &[], b"").text();
    let line = format!("sandpipe_limit_hits_total{labels}");
    let line = page.lines().find_map(|found| found.strip_prefix(&line));
    assert!(line.is_some_and(|hits| hits != "0"), "{line:?}");
}

fn log_bytes(fleet: &Fleet) -> u64 {
    let log = fleet.path("data").join(fleet.app("x")).join("log");
    let files = std::fs::read_dir(log).unwrap().flatten();
    files
        .map(|file| file.metadata().map_or(0, |m| m.len()))
        .sum()
}

#[test]
fn an_application_at_the_limit_of_its_log_gets_503_loses_nothing_and_goes_on_later() {
    const MIB: u64 = 1 << 20;
    let fleet = Fleet::new();
    let agent = fleet.start();
    let limits = "spool_mb = 16\nresult_ttl_s = 5\ndeadline_ms = 5000";
    fleet.deploy(&fleet.write("x", &["a"], limits, "mode = \"pool\""));
    fleet.deploy(&fleet.write("y", &["a"], "", ""));
    let body = "x".repeat(1 << 20);
    let path = format!("/{}", fleet.app("x"));
    let keyed = [("idempotency-key", "first")];
    let first = agent.call("POST", &path, &keyed, b"1");
    assert_eq!((first.status, first.text()), (200, "1a".into()));
    let mut answered = 0;
    let refused = loop {
        let answer = agent.post("x", &body);
        if answer.status != 200 {
            break answer;
        }
        assert_eq!(answer.body.len(), body.len() + 1);
        answered += 1;
        assert!(answered < 100, "its log has no limit");
    };
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.header("retry-after").is_some());
    assert!(
        refused.text().contains("limits.spool_mb"),
        "{}",
        refused.text()
    );
    assert!(
        answered >= 5,
        "full after {answered} requests of 2 MiB each"
    );
    let (held, kept) = (log_bytes(&fleet), limit(&agent, "spool_mb"));
    assert!((16 * MIB..20 * MIB).contains(&held), "{held} bytes");
    assert_eq!((kept.limit, kept.hits), (16, 1));
    assert!(
        kept.now.is_some_and(|now| (16..20).contains(&now)),
        "{kept:?}"
    );
    assert_named(&fleet, &agent, "spool_mb");
    // What needs no record is answered, and so is the neighbour.
    let again = agent.call("POST", &path, &keyed, b"1");
    assert_eq!((again.status, again.text()), (200, "1a".into()));
    assert_eq!(agent.post("y", "1").text(), "1a");
    until("answers expire and there is room", || {
        agent.post("x", "2").text() == "2a"
    });
    assert!(log_bytes(&fleet) < 4 * MIB, "{} bytes", log_bytes(&fleet));
    agent.stop();
    fleet.assert_clean();
}

#[test]
fn a_grain_that_rings_without_a_message_wakes_the_agent_up_to_its_bound_only() {
    let bound = 500;
    let fleet = Fleet::new();
    let agent = fleet.start();
    let file = fleet.write(
        "x",
        &["a", "s"],
        &format!("empty_wakes_per_s = {bound}"),
        "",
    );
    let text = std::fs::read_to_string(&file).unwrap();
    let (before, of_s) = text.rsplit_once("env = {").unwrap();
    std::fs::write(&file, format!("{before}env = {{ STORM = \"1\", {of_s}")).unwrap();
    fleet.deploy(&file);
    fleet.deploy(&fleet.write("y", &["a"], "", ""));
    until("the bound holds", || {
        limit(&agent, "empty_wakes_per_s").hits > 0
    });
    let woken = || {
        let status = agent.app("x");
        let counts = &status.bus[0].counts;
        (counts["woken"], Instant::now())
    };
    let (before, since) = woken();
    for number in 0..100 {
        assert_eq!(agent.post("y", "1").text(), "1a");
        agent.accept("x", &format!("event {number}"));
    }
    until("its own messages go on", || fleet.notes("x").len() == 100);
    until("three seconds have passed", || {
        since.elapsed() > Duration::from_secs(3)
    });
    let (after, until) = woken();
    let seconds = (until - since).as_secs() + 2;
    // Those that find a message have a bound of their own: some for each of the hundred.
    let most = seconds * bound + 2000;
    assert!(after - before <= most, "{} in {seconds} s", after - before);
    assert!(limit(&agent, "empty_wakes_per_s").hits >= 3);
    assert_named(&fleet, &agent, "empty_wakes_per_s");
    let hits = |state: LimitState| state.name == "empty_wakes_per_s" && state.hits > 0;
    assert!(!agent.app("y").limits.into_iter().any(hits));
    fleet.ok(&["undeploy", &fleet.app("x"), "--drain", "0"]);
    agent.stop();
    fleet.assert_clean();
}

#[test]
fn a_queue_of_its_own_length_is_429_beyond_and_what_was_accepted_is_answered() {
    let fleet = Fleet::new();
    let agent = fleet.start();
    let grain = "mode = \"pool\"\nconcurrency = 1";
    fleet.deploy(&fleet.write("x", &["a"], "queue_length = 8", grain));
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let call = || scope.spawn(|| agent.post("x", "a: sleep 100 ").status);
        let calls: Vec<_> = (0..32).map(|_| call()).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    let count = |status| statuses.iter().filter(|found| **found == status).count();
    let (answered, refused) = (count(200), count(429));
    assert_eq!(answered + refused, 32, "{statuses:?}");
    assert!(answered >= 8 && refused >= 8, "{statuses:?}");
    let kept = limit(&agent, "queue_length");
    assert_eq!((kept.limit, kept.hits), (8, refused as u64));
    assert_eq!(limit(&agent, "max_in_flight").hits, 0);
    assert_named(&fleet, &agent, "queue_length");
    agent.stop();
    fleet.assert_clean();
}

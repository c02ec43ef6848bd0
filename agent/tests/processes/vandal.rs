//! A grain that writes noise over all memory that it can write, beside an honest application of
//! the same agent.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use sandpipe_agent::bridge::AppStatus;
use sandpipe_agent::client::Response;

use super::harness::{Agent, Place, until};

const AGENT: &str = env!("CARGO_BIN_EXE_sandpipe-test-agent");

fn status_of(agent: &Agent<'_>, place: &Place) -> AppStatus {
    let apps = agent.status().apps;
    let app = apps.into_iter().find(|status| status.app == place.app);
    app.expect("the agent runs this application")
}

fn post(agent: &Agent<'_>, place: &Place, body: &str) -> Response {
    agent.call("POST", &format!("/{}", place.app), &[], body.as_bytes())
}

/// Asks the honest application again and again, a hundred times more once the vandal is found out.
fn every_request_is_answered(agent: &Agent<'_>, client: u64, found_out: &AtomicBool) {
    let (mut number, mut after) = (0_u64, 0);
    while after < 100 {
        after += u64::from(found_out.load(Ordering::SeqCst));
        number += 1;
        let text = format!("{client}-{number}.");
        let answer = agent.post(&[], &text);
        assert_eq!((answer.status, answer.text()), (200, text + "ab"));
    }
}

/// Set when the test goes on, also when it fails: a scope waits for its threads.
struct Found<'a>(&'a AtomicBool);

impl Drop for Found<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// While the vandal works.
fn the_honest_lose_nothing(agent: &Agent<'_>, hostile: &Place) {
    let found_out = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for client in 0..2 {
            let found_out = &found_out;
            scope.spawn(move || every_request_is_answered(agent, client, found_out));
        }
        scope.spawn(|| {
            // Its process may fall over what it did before anybody else reads it; then once more.
            while !found_out.load(Ordering::SeqCst) {
                let answer = post(agent, hostile, "vandal: vandalise 20000 ");
                assert!(answer.status >= 500, "{}", answer.text());
            }
        });
        let _found = Found(&found_out);
        until("the vandal is quarantined", || {
            let status = status_of(agent, hostile);
            let grain = status.grains.iter().find(|grain| grain.grain == "vandal");
            grain.is_some_and(|grain| grain.state == "quarantined")
        });
    });
}

#[test]
fn a_grain_that_scribbles_over_its_memory_is_quarantined_and_its_neighbour_loses_nothing() {
    let honest = Place::chain(&["a", "b"], "", "");
    let hostile = Place::chain(&["good", "vandal"], "deadline_ms = 2000", "");
    // It writes through /proc/self/mem.
    hostile.lets_write("/proc");
    let mut command = Command::new(AGENT);
    command.args([honest.directory.path(), hostile.directory.path()]);
    let agent = Agent::start(&honest, command);
    let pid = agent.pid();
    until("both applications answer", || {
        let theirs = post(&agent, &hostile, "x").text();
        agent.post(&[], "x").text() == "xab" && theirs == "xgoodvandal"
    });
    the_honest_lose_nothing(&agent, &hostile);
    let refused = status_of(&agent, &hostile).refused;
    let names: Vec<&str> = refused.iter().map(|one| one.grain.as_str()).collect();
    assert_eq!(names, ["vandal"], "by name, once: {refused:?}");
    let answer = post(&agent, &hostile, "y");
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(answer.text().contains("vandal"), "{}", answer.text());
    let counted = format!("sandpipe_quarantined_total{{app=\"{}\"", hostile.app);
    assert!(agent.get("/metrics").text().contains(&counted));
    let beside = status_of(&agent, &honest);
    assert!(beside.refused.is_empty(), "{:?}", beside.refused);
    assert_eq!((beside.attachments, beside.in_flight), (1, 0));
    assert_eq!(agent.status().pid, pid, "the agent lives");
    assert_eq!(agent.post(&[], "z").text(), "zab");
    agent.stop();
    honest.assert_clean();
    hostile.assert_clean();
}

//! Applications that come, are replaced and go.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::fleet::{Agent, Fleet};
use super::harness::{GRAIN, until};

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|_| panic!("{text}"))
}

#[test]
fn two_applications_on_one_agent_answer_and_a_wrong_file_takes_none_down() {
    let fleet = Fleet::new();
    let agent = fleet.start();
    let (one, two) = (
        fleet.write("x", &["a"], "", ""),
        fleet.write("y", &["a", "b"], "", ""),
    );
    assert!(fleet.deploy(&one).contains("version 1 is deployed"));
    fleet.deploy(&two);
    assert_eq!(agent.post("x", "1").text(), "1a");
    assert_eq!(agent.post("y", "2").text(), "2ab");
    let text = std::fs::read_to_string(&one).unwrap();
    std::fs::write(
        &one,
        text.replace("runtime = \"rust\"", "runtime = \"rost\""),
    )
    .unwrap();
    let refused = fleet.sandpipe(&["deploy", one.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(2));
    let words = String::from_utf8(refused.stderr).unwrap();
    assert!(words.contains("app.toml:8: runtime = \"rost\""), "{words}");
    assert_eq!(agent.post("x", "3").text(), "3a");
    let rows = json(&fleet.ok(&["ps", "--json"]));
    assert_eq!(rows[0]["app"], fleet.app("x"));
    assert_eq!(
        (&rows[0]["ready"], &rows[0]["version"]),
        (&true.into(), &1.into())
    );
    assert_eq!(
        (&rows[1]["grains_running"], &rows[1]["answered"]),
        (&2.into(), &1.into())
    );
    fleet.ok(&["undeploy", &fleet.app("x")]);
    assert_eq!(agent.post("x", "4").status, 404);
    assert_eq!(agent.post("y", "5").text(), "5ab");
    let unknown = fleet.sandpipe(&["undeploy", &fleet.app("x")]);
    let words = String::from_utf8(unknown.stderr).unwrap();
    assert!(
        words.contains(&format!("there is: {}", fleet.app("y"))),
        "{words}"
    );
    agent.stop();
    fleet.assert_clean();
}

/// A request and its answer.
type Sent = (String, String);

/// Calls without a pause until it is told to stop; some requests are in the middle of a handler
/// when a version ends.
fn call_until(agent: &Agent<'_>, caller: usize, stop: &AtomicBool) -> Vec<Sent> {
    let mut sent = Vec::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let text = match number % 4 {
            0 => format!("b: sleep 30 c{caller}n{number}."),
            _ => format!("c{caller}n{number}."),
        };
        let answer = agent.post("x", &text);
        assert_eq!(answer.status, 200, "{}", answer.text());
        sent.push((text, answer.text()));
    }
    sent
}

/// Each request ran once in each grain of the version that answered it; how many were answered by
/// the chain of three.
fn assert_handled_once(fleet: &Fleet, sent: &[Sent]) -> usize {
    let mut runs: HashMap<String, usize> = HashMap::new();
    for note in fleet.notes("x") {
        let (_, what) = note.split_once(' ').unwrap();
        *runs.entry(what.to_owned()).or_default() += 1;
    }
    let mut of_three = 0;
    for (text, answer) in sent {
        let is_three = *answer == format!("{text}abc");
        assert!(
            is_three || *answer == format!("{text}ab"),
            "{text}: {answer}"
        );
        of_three += usize::from(is_three);
        assert_eq!(runs.get(&format!("a {text}")), Some(&1), "{text}");
        assert_eq!(runs.get(&format!("b {text}a")), Some(&1), "{text}");
        let third = runs.get(&format!("c {text}ab")).copied();
        assert_eq!(third.unwrap_or_default(), usize::from(is_three), "{text}");
    }
    assert_eq!(runs.len(), 2 * sent.len() + of_three, "more was handled");
    of_three
}

/// Eight callers, while the versions change: a chain of two and a chain of three.
#[test]
fn new_versions_under_load_lose_nothing_and_double_nothing() {
    let versions = if super::harness::is_full() { 40 } else { 8 };
    let fleet = Fleet::new();
    let agent = fleet.start();
    fleet.deploy(&fleet.write("x", &["a", "b"], "", ""));
    let stop = AtomicBool::new(false);
    let sent: Vec<Sent> = std::thread::scope(|scope| {
        let (agent, stop) = (&agent, &stop);
        let callers: Vec<_> = (0..8)
            .map(|caller| scope.spawn(move || call_until(agent, caller, stop)))
            .collect();
        let ends = EndsAtDrop(stop);
        for version in 2..=versions {
            let grains: &[&str] = match version % 2 {
                0 => &["a", "b", "c"],
                _ => &["a", "b"],
            };
            let said = fleet.deploy(&fleet.write("x", grains, "", ""));
            assert!(said.contains(&format!("version {version} is")), "{said}");
        }
        drop(ends);
        let sent = callers.into_iter().map(|caller| caller.join().unwrap());
        sent.flatten().collect()
    });
    let of_three = assert_handled_once(&fleet, &sent);
    assert!(
        of_three > 0 && of_three < sent.len(),
        "{of_three} of {}",
        sent.len()
    );
    let counters = agent.app("x").counters;
    assert_eq!((counters.answered, counters.failed), (sent.len() as u64, 0));
    assert_eq!(fleet.inits("x").len(), 1, "one version's sandbox is left");
    agent.stop();
    fleet.assert_clean();
}

/// Tells callers to end, also when the test panics.
pub struct EndsAtDrop<'s>(pub &'s AtomicBool);

impl Drop for EndsAtDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_version_that_does_not_load_or_whose_predecessor_does_not_finish_changes_nothing() {
    let fleet = Fleet::new();
    let agent = fleet.start();
    fleet.deploy(&fleet.write("x", &["a"], "", ""));
    let init = fleet.inits("x");
    let text = std::fs::read_to_string(fleet.path("x/app.toml")).unwrap();
    let broken = text.replace("env = {", "env = { FAIL_AT_START = \"no module named x\",");
    std::fs::write(fleet.path("x/app.toml"), broken).unwrap();
    let file = fleet.path("x/app.toml");
    let refused = fleet.sandpipe(&["deploy", file.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1));
    let words = String::from_utf8(refused.stderr).unwrap();
    assert!(
        words.contains("grain a") && words.contains("no module named x"),
        "{words}"
    );
    assert_eq!(agent.post("x", "1").text(), "1a");
    let file = fleet.write("x", &["a", "b"], "", "");
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| agent.post("x", "*: sleep 3000"));
        until("it has begun", || fleet.notes("x").len() == 2);
        let refused = fleet.sandpipe(&["deploy", file.to_str().unwrap(), "--drain", "1"]);
        let words = String::from_utf8(refused.stderr).unwrap();
        assert!(words.contains("still has 1 requests open"), "{words}");
        assert_eq!(slow.join().unwrap().text(), "*: sleep 3000a");
    });
    assert_eq!(agent.post("x", "2").text(), "2a");
    assert_eq!(
        fleet.inits("x"),
        init,
        "the first version's sandbox, and no other"
    );
    fleet.deploy(&file);
    assert_eq!(agent.post("x", "3").text(), "3ab");
    agent.stop();
    fleet.assert_clean();
}

#[test]
fn requests_that_come_while_a_version_ends_wait_and_are_handled_by_the_next() {
    let fleet = Fleet::new();
    let agent = fleet.start();
    fleet.deploy(&fleet.write("x", &["a"], "", ""));
    let file = fleet.write("x", &["a", "b"], "", "");
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| agent.post("x", "*: sleep 1500 "));
        until("it has begun", || fleet.notes("x").len() == 1);
        let deployed = scope.spawn(|| fleet.deploy(&file));
        until("the new version is there", || fleet.inits("x").len() == 2);
        // Some find the old version, some the time between the two.
        let held: Vec<_> = (0..40)
            .map(|number| {
                let agent = &agent;
                scope.spawn(move || {
                    std::thread::sleep(Duration::from_millis(number * 10));
                    (number, agent.post("x", format!("{number}")).text())
                })
            })
            .collect();
        assert_eq!(slow.join().unwrap().text(), "*: sleep 1500 a");
        deployed.join().unwrap();
        let mut of_the_new = 0;
        for held in held {
            let (number, answer) = held.join().unwrap();
            let both = [format!("{number}a"), format!("{number}ab")];
            assert!(both.contains(&answer), "{answer}");
            of_the_new += usize::from(answer == both[1]);
        }
        assert!(of_the_new > 0, "none came in between");
    });
    assert_eq!(agent.post("x", "1").text(), "1ab");
    agent.stop();
}

#[test]
fn deployments_and_what_was_accepted_survive_a_restart_of_the_agent() {
    let fleet = Fleet::new();
    let agent = fleet.start();
    fleet.deploy(&fleet.write("x", &["a"], "", ""));
    let file = fleet.write("x", &["a", "b"], "", "");
    fleet.deploy(&file);
    let place = agent.accept("x", "1");
    // What is written into the file later is not what was deployed.
    std::fs::write(&file, "not even toml").unwrap();
    agent.stop();
    fleet.assert_clean();
    let agent = fleet.start();
    assert_eq!(agent.announced["resumed"], 1);
    assert_eq!(agent.status().deployments[0].version, 2);
    assert_eq!(agent.collect(&place).text(), "1ab");
    assert_eq!(agent.post("x", "2").text(), "2ab");
    agent.stop();
}

#[test]
fn an_agent_that_ends_says_what_is_left_and_the_next_one_finishes_it() {
    let fleet = Fleet::new();
    std::fs::write(fleet.path("agent.toml"), "drain_s = 0\n").unwrap();
    let mut command = fleet.command();
    command.arg("--config").arg(fleet.path("agent.toml"));
    let agent = Agent::start(&fleet, command);
    fleet.deploy(&fleet.write("x", &["a"], "", ""));
    let place = agent.accept("x", "*: sleep 2000 ");
    until("it has begun", || fleet.notes("x").len() == 1);
    agent.stop();
    let words = format!("{}: 1 requests are left for the next agent", fleet.app("x"));
    assert!(fleet.log().contains(&words), "{}", fleet.log());
    fleet.assert_clean();
    let agent = fleet.start();
    assert_eq!(agent.collect(&place).text(), "*: sleep 2000 a");
    agent.stop();
}

#[test]
fn an_undeployed_applications_unfinished_work_goes_on_when_it_is_deployed_again() {
    let fleet = Fleet::new();
    let agent = fleet.start();
    let file = fleet.write("x", &["a"], "", "");
    fleet.deploy(&file);
    let place = agent.accept("x", "*: sleep 3000 ");
    until("it has begun", || fleet.notes("x").len() == 1);
    let said = json(&fleet.ok(&["undeploy", &fleet.app("x"), "--drain", "0", "--json"]));
    assert_eq!(said["left"], 1);
    assert_eq!(agent.call("GET", &place, &[], b"").status, 404);
    fleet.deploy(&file);
    assert_eq!(agent.collect(&place).text(), "*: sleep 3000 a");
    fleet.ok(&["undeploy", &fleet.app("x"), "--purge"]);
    assert!(!fleet.path("data").join(fleet.app("x")).exists());
    agent.stop();
    fleet.assert_clean();
}

#[test]
fn an_undeployed_application_that_could_not_be_started_again_leaves_no_sandbox() {
    let fleet = Fleet::new();
    let agent = fleet.start();
    let file = fleet.write("x", &["a"], "", "");
    let program = fleet.path("x").join("program");
    std::fs::copy(GRAIN, &program).unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    let text = text.replace(GRAIN, program.to_str().unwrap());
    std::fs::write(&file, text).unwrap();
    fleet.deploy(&file);
    agent.kill();
    std::fs::remove_file(&program).unwrap();
    let agent = fleet.start();
    assert_eq!(agent.post("x", "1").status, 404, "it does not run");
    assert_eq!(fleet.inits("x").len(), 1, "its sandbox lives");
    fleet.ok(&["undeploy", &fleet.app("x")]);
    assert!(fleet.inits("x").is_empty());
    agent.stop();
    fleet.assert_clean();
}

//! Events that kill their instances: listed with the reason by a command, sent again by another.

use std::process::{Command, Stdio};
use std::time::Duration;

use super::fleet::{Agent, Fleet};
use super::harness::{SANDPIPE, until};

/// Two grains; the second dies of an event until the application is cured.
const CURSED: &str = "b: cursed 1";

impl Fleet {
    fn deploy_cursed(&self) {
        self.deploy(&self.write("x", &["a", "b"], "max_attempts = 2\n", ""));
    }

    fn cure(&self) {
        std::fs::write(self.path("x").join("notes.cured"), "").unwrap();
    }

    /// What `sandpipe bus dead` lists of the application.
    fn letters(&self) -> Vec<serde_json::Value> {
        let text = self.ok(&["bus", "dead", "--json"]);
        let all: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(all[0]["app"], self.app("x"));
        all[0]["letters"].as_array().unwrap().clone()
    }

    /// How often the second grain ran with this text.
    fn runs(&self, text: &str) -> usize {
        let line = format!(" b {text}");
        let notes = self.notes("x");
        notes.iter().filter(|note| note.ends_with(&line)).count()
    }
}

fn metric(agent: &Agent<'_>, name: &str) -> String {
    line(agent, &format!("{name}{{"))
}

/// The value of the metric whose line begins so.
fn line(agent: &Agent<'_>, begin: &str) -> String {
    let page = agent.call("GET", "/metrics", &[], b"").text();
    let begin = format!("sandpipe_{begin}");
    let line = page.lines().find(|line| line.starts_with(&begin));
    let line = line.unwrap_or_else(|| panic!("no {begin} in {page}"));
    line.rsplit(' ').next().unwrap().to_owned()
}

/// The request that a letter has become.
fn place(output: &str) -> String {
    let from = output.find("/results/").expect("a place");
    output[from..].trim().to_owned()
}

#[test]
fn a_dead_event_is_listed_survives_the_agent_and_is_sent_again() {
    let fleet = Fleet::new();
    let agent = fleet.start();
    fleet.deploy_cursed();
    assert!(fleet.letters().is_empty());
    let answer = agent.collect(&agent.accept("x", CURSED));
    assert_eq!(answer.status, 500, "{}", answer.text());
    let letters = fleet.letters();
    let [letter] = &letters[..] else {
        panic!("{letters:?}")
    };
    assert_eq!(
        (&letter["grain"], &letter["cause"]),
        (&"b".into(), &"crashed".into())
    );
    let reason = letter["reason"].as_str().unwrap();
    assert!(reason.contains("each of 2 attempts"), "{reason}");
    assert_eq!(letter["bytes"], CURSED.len() + 1);
    assert_eq!(
        (metric(&agent, "dead_letters"), metric(&agent, "dead_total")),
        ("1".into(), "1".into())
    );
    let id = letter["id"].as_str().unwrap();
    assert!(fleet.ok(&["bus", "dead"]).contains(id));
    agent.kill();
    let agent = fleet.start();
    assert_eq!(
        fleet.letters(),
        letters,
        "the next agent reads it from the log"
    );
    fleet.cure();
    let said = fleet.ok(&["bus", "redrive", id]);
    let answer = agent.collect(&place(&said));
    assert_eq!(answer.text(), format!("{CURSED}ab"));
    assert!(fleet.letters().is_empty());
    assert_eq!(
        fleet.ok(&["bus", "redrive", id]),
        said,
        "it is the same request"
    );
    assert_eq!(
        fleet.runs(&format!("{CURSED}a")),
        3,
        "two attempts, and once again"
    );
    let unknown = fleet.sandpipe(&["bus", "redrive", &"7".repeat(32)]);
    assert_eq!(unknown.status.code(), Some(1));
    agent.stop();
    fleet.assert_clean();
}

#[test]
fn an_agent_killed_while_letters_are_sent_again_loses_none_and_doubles_none() {
    let fleet = Fleet::new();
    let mut agent = fleet.start();
    fleet.deploy_cursed();
    let texts: Vec<String> = (0..8).map(|round| format!("{CURSED} {round}")).collect();
    for text in &texts {
        assert_eq!(agent.post("x", text).status, 500);
    }
    let letters = fleet.letters();
    assert_eq!(letters.len(), texts.len());
    fleet.cure();
    let mut found_sent = 0;
    for (round, letter) in (0..).zip(&letters) {
        let id = letter["id"].as_str().unwrap();
        let mut command = Command::new(SANDPIPE);
        command
            .args(["bus", "redrive", id])
            .env("SANDPIPE_RUN_DIR", fleet.run_dir());
        let mut command = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // From before the question to after its answer.
        std::thread::sleep(Duration::from_millis(2 * round));
        agent.kill();
        command.wait().unwrap();
        agent = fleet.start();
        found_sent += usize::from(!fleet.letters().contains(letter));
        let answer = agent.collect(&place(&fleet.ok(&["bus", "redrive", id])));
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    eprintln!(
        "{found_sent} of {} had been sent when the agent died",
        letters.len()
    );
    assert!(fleet.letters().is_empty());
    for text in &texts {
        let runs = fleet.runs(&format!("{text}a"));
        assert_eq!(runs, 3, "{text}: two attempts, and once again");
    }
    agent.stop();
    fleet.assert_clean();
}

#[test]
fn an_event_rests_between_two_attempts_and_holds_up_nobody() {
    let fleet = Fleet::new();
    let agent = fleet.start();
    let limits = "retry_first_ms = 4000\n";
    fleet.deploy(&fleet.write("x", &["a", "b"], limits, "concurrency = 1"));
    let app = fleet.app("x");
    let mut traced = Command::new(SANDPIPE);
    traced.args(["invoke", &app, "--data", CURSED, "--trace"]);
    traced.env("SANDPIPE_RUN_DIR", fleet.run_dir());
    let traced = traced.stdout(Stdio::piped()).stderr(Stdio::piped());
    let traced = traced.spawn().unwrap();
    let text = format!("{CURSED}a");
    let waiting = format!("retries_waiting{{app=\"{app}\",grain=\"b\"}}");
    until("its first attempt is over", || {
        fleet.runs(&text) == 1 && line(&agent, &waiting) == "1"
    });
    for round in 0..20 {
        assert_eq!(
            agent.post("x", round.to_string()).text(),
            format!("{round}ab")
        );
    }
    assert_eq!(
        (fleet.runs(&text), line(&agent, &waiting).as_str()),
        (1, "1")
    );
    fleet.cure();
    let answer = traced.wait_with_output().unwrap();
    let (out, table) = (
        answer.stdout,
        String::from_utf8_lossy(&answer.stderr).into_owned(),
    );
    assert_eq!(
        String::from_utf8_lossy(&out).trim_end(),
        format!("{text}b"),
        "{table}"
    );
    assert!(
        table.contains("b: an instance takes it, attempt 2"),
        "{table}"
    );
    assert_eq!(
        (fleet.runs(&text), line(&agent, &waiting).as_str()),
        (2, "0")
    );
    agent.stop();
    fleet.assert_clean();
}

#[test]
fn all_letters_of_an_application_are_sent_again_at_once() {
    let fleet = Fleet::new();
    let agent = fleet.start();
    fleet.deploy_cursed();
    for round in 0..5 {
        assert_eq!(agent.post("x", format!("{CURSED} {round}")).status, 500);
    }
    fleet.cure();
    let said = fleet.ok(&["bus", "redrive", "--all", &fleet.app("x")]);
    assert_eq!(said.lines().count(), 5, "{said}");
    for line in said.lines() {
        assert_eq!(agent.collect(&place(line)).status, 200);
    }
    until("the list is empty", || fleet.letters().is_empty());
    assert_eq!(metric(&agent, "redriven_total"), "5");
    let none = fleet.sandpipe(&["bus", "redrive", "--all"]);
    assert_eq!(none.status.code(), Some(1));
    agent.stop();
    fleet.assert_clean();
}

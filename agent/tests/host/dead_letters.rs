//! Events that kill their instances: listed with the reason by a command, sent again by another.

use std::process::{Command, Stdio};
use std::time::Duration;

use super::fleet::{Agent, Fleet};
use super::harness::{SANDPIPE, until};

/// Two grains; the second dies of an event until the application is cured.
const CURSED: &str = "b: cursed 1";

impl Fleet {
    /// Sends the text and waits until its letter is listed; the letter's id.
    fn letter_of(&self, agent: &Agent<'_>, text: &str) -> String {
        assert_eq!(agent.post("x", text).status, 500);
        let letters = self.letters();
        let newest = letters.last().expect("it has died");
        newest["id"].as_str().unwrap().to_owned()
    }

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

#[test]
fn a_letter_is_shown_whole_as_text_in_digits_or_to_a_file() {
    let fleet = Fleet::new();
    let agent = fleet.start();
    fleet.deploy_cursed();
    let headers = [("content-type", "text/x-curse"), ("ce-source", "here")];
    let event = [("ce-id", "7"), ("ce-type", "t"), ("ce-specversion", "1.0")];
    let headers: Vec<(&str, &str)> = headers.into_iter().chain(event).collect();
    let path = format!("/{}", fleet.app("x"));
    let died = agent.call("POST", &path, &headers, CURSED.as_bytes());
    assert_eq!(died.status, 500, "{}", died.text());
    let id = fleet.letters()[0]["id"].as_str().unwrap().to_owned();
    let shown = fleet.ok(&["bus", "dead", "show", &id]);
    let app = fleet.app("x");
    for line in [
        format!("id            {id}\n"),
        format!("application   {app}\n"),
        "grain         b\n".into(),
        "cause         crashed\n".into(),
        "attempts      2\n".into(),
        "content-type  text/x-curse\n".into(),
        "source        here\n".into(),
        format!("data\n{CURSED}a\n"),
    ] {
        assert!(shown.contains(&line), "no {line:?} in {shown}");
    }
    assert!(shown.contains("each of 2 attempts"), "{shown}");
    let json: serde_json::Value =
        serde_json::from_str(&fleet.ok(&["bus", "dead", "show", &id, "--json"])).unwrap();
    assert_eq!((&json["app"], &json["id"]), (&app.into(), &(*id).into()));
    assert_eq!(
        (&json["attempts"], &json["bytes"]),
        (&2.into(), &(CURSED.len() + 1).into())
    );
    // What a terminal would obey is shown in digits, and whole in a file.
    let loud = fleet.letter_of(&agent, "b: cursed \u{1b}[2J");
    let shown = fleet.ok(&["bus", "dead", "show", &loud]);
    assert!(
        shown.contains("62 3a 20 63 75 72 73 65 64 20 1b 5b 32 4a 61"),
        "{shown}"
    );
    assert!(!shown.contains('\u{1b}'));
    let file = fleet.path("event");
    let output = ["--output", file.to_str().unwrap()];
    fleet.ok(&[&["bus", "dead", "show", &loud], &output[..]].concat());
    assert_eq!(std::fs::read(&file).unwrap(), b"b: cursed \x1b[2Ja");
    for unknown in ["7".repeat(32), "not an id".into()] {
        let refused = fleet.sandpipe(&["bus", "dead", "show", &unknown]);
        let words = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(1));
        assert!(
            words.contains(&format!("no dead letter {unknown}")),
            "{words}"
        );
    }
    agent.stop();
    fleet.assert_clean();
}

#[test]
fn what_is_told_to_be_deleted_is_gone_whoever_dies_and_is_not_sent_again() {
    let fleet = Fleet::new();
    let mut agent = fleet.start();
    fleet.deploy_cursed();
    let texts: Vec<String> = (0..6).map(|round| format!("{CURSED} {round}")).collect();
    let ids: Vec<String> = texts
        .iter()
        .map(|text| fleet.letter_of(&agent, text))
        .collect();
    fleet.cure();
    let mut told_before_the_death = 0;
    for (round, id) in (0..).zip(&ids) {
        let mut command = Command::new(SANDPIPE);
        command.args(["bus", "dead", "delete", id]);
        command.env("SANDPIPE_RUN_DIR", fleet.run_dir());
        let command = command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut command = command.spawn().unwrap();
        // From before the question to after its answer.
        std::thread::sleep(Duration::from_millis(4 * round));
        agent.kill();
        let told = command.wait().unwrap().success();
        agent = fleet.start();
        let is_listed = fleet.letters().iter().any(|letter| letter["id"] == **id);
        assert!(!(told && is_listed), "{id} has come back");
        told_before_the_death += usize::from(told);
        if is_listed {
            let said = fleet.ok(&["bus", "dead", "delete", id]);
            assert!(said.contains(&format!("{id} is deleted")), "{said}");
        }
        let again = fleet.sandpipe(&["bus", "redrive", id]);
        assert_eq!(again.status.code(), Some(1), "there is nothing to send");
    }
    eprintln!(
        "{told_before_the_death} of {} were told before the agent died",
        ids.len()
    );
    assert!(fleet.letters().is_empty());
    for text in &texts {
        assert_eq!(
            fleet.runs(&format!("{text}a")),
            2,
            "{text}: no attempt more"
        );
    }
    agent.stop();
    fleet.assert_clean();
}

#[test]
fn several_letters_are_deleted_at_once_and_unknown_ones_are_named() {
    let fleet = Fleet::new();
    let agent = fleet.start();
    fleet.deploy_cursed();
    let ids: Vec<String> = (0..3)
        .map(|round| fleet.letter_of(&agent, &format!("{CURSED} {round}")))
        .collect();
    let delete = [
        "bus",
        "dead",
        "delete",
        &ids[0],
        &"7".repeat(32),
        &ids[1],
        "--json",
    ];
    let output = fleet.sandpipe(&delete);
    assert_eq!(output.status.code(), Some(1), "one was not");
    let done: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let apps: Vec<_> = (0..3).map(|index| done[index]["app"].as_str()).collect();
    let app = fleet.app("x");
    assert_eq!(apps, [Some(&*app), None, Some(&*app)], "{done}");
    assert!(
        done[1]["refused"]
            .as_str()
            .unwrap()
            .contains("there is no dead letter 777")
    );
    let left: Vec<_> = fleet
        .letters()
        .into_iter()
        .map(|letter| letter["id"].clone())
        .collect();
    assert_eq!(left, [ids[2].as_str()]);
    assert_eq!(metric(&agent, "dead_letters"), "1");
    agent.stop();
    fleet.assert_clean();
}

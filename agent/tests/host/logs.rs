//! What grains write, kept and shown.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use super::fleet::{Agent, Fleet};
use super::harness::{SANDPIPE, WATCHDOG, until};

/// The lines of `sandpipe logs` with these arguments, as (grain, event, text).
fn lines(fleet: &Fleet, arguments: &[&str]) -> Vec<(String, String, String)> {
    let text = fleet.ok(&[&["logs", "--json"], arguments].concat());
    let field = |value: &serde_json::Value| value.as_str().unwrap_or("-").to_owned();
    text.lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|line| {
            (
                field(&line["grain"]),
                field(&line["event"]),
                field(&line["text"]),
            )
        })
        .collect()
}

/// Sends an event and returns its answer's `ce-id`: the request's.
fn post(agent: &Agent<'_>, body: &str) -> String {
    let answer = agent.post("x", body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.header("ce-id").unwrap().to_owned()
}

#[test]
fn a_line_of_output_is_shown_with_application_grain_and_event() {
    let fleet = Fleet::new();
    let agent = fleet.start();
    fleet.deploy(&fleet.write("x", &["a", "b"], "", ""));
    fleet.deploy(&fleet.write("y", &["a"], "", ""));
    let event = post(&agent, "a: log");
    agent.post("y", "a: log");
    let app = fleet.app("x");
    let all = || lines(&fleet, &[&app]);
    until("all four lines are there", || all().len() == 4);
    let line = |event: &str, text: &str| ("a".to_owned(), event.to_owned(), text.to_owned());
    assert_eq!(
        all(),
        [
            line("-", "plain on stdout"),
            line("-", "plain on stderr"),
            line(&event, "two lines"),
            line(&event, "with their event"),
        ]
    );
    assert_eq!(lines(&fleet, &[&app, "b"]), []);
    assert_eq!(lines(&fleet, &["-n", "3"]).len(), 3);
    let plain = fleet.ok(&["logs", &app, "a", "-n", "1"]);
    let (time, rest) = plain.split_once(' ').unwrap();
    assert!(
        time.ends_with('Z') && time.len() == "2026-01-01T00:00:00.000Z".len(),
        "{time}"
    );
    assert_eq!(rest, format!("{app}/a {event} with their event\n"));
    agent.stop();
    fleet.assert_clean();
}

/// A `sandpipe logs -f` that ends with its test, also when that panics.
struct Following(Child);

impl Following {
    fn start(fleet: &Fleet, app: &str) -> (Following, ChildStdout) {
        let mut command = Command::new(SANDPIPE);
        command.args(["logs", "-f", app]);
        command.env("SANDPIPE_RUN_DIR", fleet.run_dir());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let shown = child.stdout.take().unwrap();
        (Following(child), shown)
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn logs_are_followed_over_rotations_versions_and_the_agents_death() {
    let fleet = Fleet::new();
    std::fs::write(fleet.path("agent.toml"), "[logs]\nfile_kb = 4\nfiles = 2\n").unwrap();
    let start = || {
        let mut command = fleet.command();
        command.arg("--config").arg(fleet.path("agent.toml"));
        Agent::start(&fleet, command)
    };
    let mut agent = start();
    fleet.deploy(&fleet.write("x", &["a"], "", ""));
    let (following, shown) = Following::start(&fleet, &fleet.app("x"));
    let shown = BufReader::new(shown).lines();
    let (told, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        shown
            .map_while(Result::ok)
            .try_for_each(|line| told.send(line))
    });
    let expect = |event: &str| {
        let words = format!("{event} with their event");
        while let Ok(line) = lines.recv_timeout(WATCHDOG) {
            if line.ends_with(&words) {
                return;
            }
        }
        panic!("{words}: not shown within {WATCHDOG:?}");
    };
    for number in 0..60 {
        let event = post(&agent, "a: log");
        expect(&event);
        if number == 20 {
            fleet.deploy(&fleet.write("x", &["a"], "", ""));
        }
        if number == 40 {
            agent.kill();
            agent = start();
        }
    }
    drop(following);
    let logs = fleet.path("data").join(fleet.app("x")).join("logs");
    let files: Vec<_> = std::fs::read_dir(logs).unwrap().flatten().collect();
    assert_eq!(files.len(), 2);
    assert!(
        files
            .iter()
            .all(|file| file.metadata().unwrap().len() <= 4096)
    );
    agent.stop();
}

#[test]
fn a_grain_that_floods_its_log_is_contained_and_its_neighbour_answers() {
    let mib: u64 = if super::harness::is_full() {
        10_240
    } else {
        512
    };
    let fleet = Fleet::new();
    let agent = fleet.start();
    let patient = "deadline_ms = 600000";
    let grain = "time_limit_ms = 600000";
    fleet.deploy(&fleet.write("x", &["a"], patient, grain));
    fleet.deploy(&fleet.write("y", &["a"], "", ""));
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| agent.post("x", format!("a: flood {mib}")).status);
        let mut answered = 0;
        while !flood.is_finished() || answered < 100 {
            assert_eq!(agent.post("y", "1").text(), "1a");
            answered += 1;
        }
        assert_eq!(flood.join().unwrap(), 200);
    });
    assert_eq!(agent.post("x", "2").text(), "2a");
    let logs = fleet.path("data").join(fleet.app("x")).join("logs");
    let kept: u64 = std::fs::read_dir(logs)
        .unwrap()
        .flatten()
        .map(|file| file.metadata().unwrap().len())
        .sum();
    assert!(kept <= 4 * (4 << 20), "{kept} bytes kept of {mib} MiB");
    until("it is said that output was dropped", || {
        agent.post("x", "a: log");
        let all = lines(&fleet, &[&fleet.app("x"), "-n", "100"]);
        all.iter()
            .any(|(_, _, text)| text.contains("bytes of output were dropped"))
    });
    agent.stop();
    fleet.assert_clean();
}

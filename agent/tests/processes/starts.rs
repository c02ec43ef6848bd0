//! Starts that cannot succeed say what to do; commands beside `run`.

use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::harness::{Mounted, Place, SANDPIPE, WATCHDOG, is_root, skip, until};

/// Runs `sandpipe run`, which must fail; its exit code and its words. One that does not fail is
/// killed; its sandbox goes with its place.
fn refused(mut command: Command) -> (i32, String) {
    // A file: the sandbox of an agent that was not refused would keep a pipe open.
    let mut said = tempfile::tempfile().unwrap();
    command
        .stdout(Stdio::null())
        .stderr(said.try_clone().unwrap());
    let child = OnItsOwn(command.spawn().unwrap());
    let code = child.exit_code();
    let mut words = String::new();
    said.seek(SeekFrom::Start(0)).unwrap();
    said.read_to_string(&mut words).unwrap();
    let code = code.unwrap_or_else(|| panic!("not refused within {WATCHDOG:?}: {words}"));
    (code, words)
}

/// A process that is killed if it does not end by itself.
struct OnItsOwn(Child);

impl OnItsOwn {
    /// `None` if it still runs when the watchdog bites.
    fn exit_code(mut self) -> Option<i32> {
        let deadline = Instant::now() + WATCHDOG;
        while Instant::now() < deadline {
            if let Some(status) = self.0.try_wait().unwrap() {
                return Some(status.code().unwrap());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }
}

impl Drop for OnItsOwn {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn assert_words(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
}

#[test]
fn a_wrong_app_toml_is_exit_2_with_file_and_line() {
    let place = Place::chain(&["a"], "", "colour = 1");
    let (code, words) = refused(place.command());
    assert_eq!(code, 2);
    assert_words(
        &words,
        &["app.toml:10: unknown field `colour`", "remove it"],
    );
}

#[test]
fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let place = Place::chain(&["a"], "", "");
    let mut command = Command::new(SANDPIPE);
    command
        .arg("run")
        .arg(place.path("app.toml"))
        .args(["--listen", &address]);
    command
        .arg("--run-dir")
        .arg(place.run_dir())
        .arg("--data-dir")
        .arg(place.path("data"));
    let (code, words) = refused(command);
    assert_eq!(code, 1);
    assert_words(&words, &[&address, "in use", "--listen"]);
    place.assert_clean();
}

#[test]
fn a_second_agent_is_told_the_pid_of_the_first() {
    let place = Place::chain(&["a"], "", "");
    let agent = place.start();
    let pid = agent.pid().to_string();
    let (code, words) = refused(place.command());
    assert_eq!(code, 1);
    assert_words(&words, &["already runs", &pid, "--run-dir"]);
    // With another run directory it meets the log's lock.
    let mut command = place.command();
    command.arg("--run-dir").arg(place.path("elsewhere"));
    let (_, words) = refused_with_last_run_dir(&place, command);
    assert_words(&words, &["in use by", &pid, "--data-dir"]);
    assert_eq!(agent.post(&[], "x").text(), "xa");
    agent.stop();
}

/// clap takes an option once only: the same command with another run directory.
fn refused_with_last_run_dir(place: &Place, _given: Command) -> (i32, String) {
    let mut command = Command::new(SANDPIPE);
    command
        .arg("run")
        .arg(place.path("app.toml"))
        .args(["--listen", "127.0.0.1:0"]);
    command.arg("--run-dir").arg(place.path("elsewhere"));
    command.arg("--data-dir").arg(place.path("data"));
    refused(command)
}

#[test]
fn a_data_directory_that_cannot_be_written_is_named() {
    let place = Place::chain(&["a"], "", "");
    // A file in its way: also root cannot write below it.
    std::fs::write(place.path("data"), "").unwrap();
    let (code, words) = refused(place.command());
    assert_eq!(code, 1);
    assert_words(&words, &["data", "--data-dir"]);
    std::fs::remove_file(place.path("data")).unwrap();
    place.assert_clean();
}

#[test]
fn a_read_only_data_directory_is_named() {
    if !is_root() {
        skip("mounting a tmpfs needs root");
        return;
    }
    let place = Place::chain(&["a"], "", "");
    let data = place.path("data");
    std::fs::create_dir(&data).unwrap();
    let Some(mounted) = Mounted::tmpfs(&data, "ro") else {
        skip("a tmpfs cannot be mounted here");
        return;
    };
    let (code, words) = refused(place.command());
    assert_eq!(code, 1);
    assert_words(&words, &["data", "Read-only file system", "--data-dir"]);
    drop(mounted);
    place.assert_clean();
}

#[test]
fn a_full_data_directory_is_503_for_what_must_be_durable_and_passes_when_there_is_room() {
    if !is_root() {
        skip("mounting a small tmpfs needs root");
        return;
    }
    let place = Place::chain(&["a"], "", "");
    let data = place.path("data");
    std::fs::create_dir(&data).unwrap();
    let Some(_mounted) = Mounted::tmpfs(&data, "size=1m") else {
        skip("a tmpfs cannot be mounted here");
        return;
    };
    let agent = place.start();
    std::fs::write(data.join("filler"), vec![0; 900 << 10]).unwrap();
    let asynchronous = [("prefer", "respond-async")];
    let mut refused = None;
    for _ in 0..200 {
        let plain = agent.post(&[], vec![b'x'; 500]);
        assert_eq!(plain.status, 200, "{}", plain.text());
        if agent.app().not_ready.is_some() {
            refused = Some(agent.post(&asynchronous, "y"));
            break;
        }
    }
    let refused = refused.expect("the disk is full after 200 requests");
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.header("retry-after").is_some());
    assert_words(&refused.text(), &["space"]);
    std::fs::remove_file(data.join("filler")).unwrap();
    until("the agent goes on by itself", || {
        agent.app().not_ready.is_none()
    });
    assert_eq!(agent.post(&asynchronous, "y").status, 202);
    agent.stop();
}

#[test]
fn a_kafka_that_is_away_at_the_start_is_named() {
    let place = Place::chain(&["a"], "", "");
    let mut command = place.command();
    command.args(["--global-bus", "kafka", "--kafka-bootstrap", "127.0.0.1:9"]);
    let (code, words) = refused(command);
    assert_eq!(code, 1);
    assert_words(&words, &["127.0.0.1:9", "--global-bus embedded"]);
    place.assert_clean();
}

#[test]
fn it_runs_without_root_and_says_what_is_not_isolated() {
    if !is_root() {
        skip("this user is not root; all other tests show it");
        return;
    }
    let place = Place::chain(&["a"], "", "");
    let nobody = 65534;
    std::os::unix::fs::chown(place.directory.path(), Some(nobody), Some(nobody)).unwrap();
    let probe = Command::new(SANDPIPE)
        .arg("--version")
        .uid(nobody)
        .gid(nobody)
        .output();
    if !probe.is_ok_and(|output| output.status.success()) {
        skip(&format!("another user cannot execute {SANDPIPE}"));
        return;
    }
    let mut command = place.command();
    command.uid(nobody).gid(nobody);
    let agent = super::harness::Agent::start(&place, command);
    assert_eq!(agent.post(&[], "x").text(), "xa");
    agent_of_another_user_is_refused(&place);
    let log = place.log();
    assert_words(&log, &["not isolated"]);
    agent.stop();
}

/// Root may connect to anybody's socket, but it is not this agent's user.
fn agent_of_another_user_is_refused(place: &Place) {
    let output = Command::new(SANDPIPE)
        .args(["status", &place.app, "--run-dir"])
        .arg(place.run_dir())
        .output()
        .unwrap();
    assert!(!output.status.success());
}

#[test]
fn invoke_prints_the_answer_the_times_and_json() {
    let place = Place::chain(&["a", "b"], "", "");
    let agent = place.start();
    let invoke = |more: &[&str]| {
        Command::new(SANDPIPE)
            .args(["invoke", &place.app, "--run-dir"])
            .arg(place.run_dir())
            .args(more)
            .output()
            .unwrap()
    };
    let plain = invoke(&["--data", "x"]);
    assert_eq!(
        (plain.status.code(), plain.stdout.as_slice()),
        (Some(0), b"xab".as_slice())
    );
    let traced = invoke(&["--data", "x", "--trace"]);
    let table = String::from_utf8(traced.stderr).unwrap();
    for step in [
        "0", "1", "2", "3", "4", "5", "6a", "6b", "6c", "7", "8", "9", "9-10", "11",
    ] {
        let found = table
            .lines()
            .any(|line| line.split_whitespace().nth(2) == Some(step));
        assert!(found, "no step {step} in\n{table}");
    }
    let json = invoke(&["--data", "x", "--json"]);
    let value: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(
        (value["status"].as_u64(), value["body"].as_str()),
        (Some(200), Some("xab"))
    );
    let accepted = invoke(&["--data", "x", "--async"]);
    assert_words(&String::from_utf8(accepted.stdout).unwrap(), &["/results/"]);
    let failed = invoke(&["--data", "a: fail"]);
    assert_eq!(failed.status.code(), Some(1));
    let missing = invoke(&["--data", "@/nonexistent"]);
    assert_words(
        &String::from_utf8(missing.stderr).unwrap(),
        &["/nonexistent"],
    );
    agent.stop();
    let gone = invoke(&["--data", "x"]);
    assert_words(&String::from_utf8(gone.stderr).unwrap(), &["sandpipe run"]);
}

#[test]
fn status_shows_what_the_agent_and_each_grain_have_moved() {
    let place = Place::chain(&["a", "b"], "", "");
    let agent = place.start();
    (0..5).for_each(|_| assert_eq!(agent.post(&[], "x").text(), "xab"));
    // A backup copy leaves its lane once it is durable.
    until("the counts are those of five requests", || {
        let bus = agent.app().bus;
        let moved = bus.iter().map(|of| {
            let count = |name: &str| of.counts[name];
            (&*of.grain, count("published"), count("received"))
        });
        moved.eq([("(agent)", 5, 10), ("a", 10, 5), ("b", 5, 5)])
    });
    let output = Command::new(SANDPIPE)
        .args(["status", &place.app, "--run-dir"])
        .arg(place.run_dir())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_words(&text, &["(agent)", "10 published, 5 received"]);
    until(
        "everybody has slept, was rung and has looked by itself",
        || {
            // On a machine with other work five events may meet nobody asleep: one more, and a
            // pause in which all look by themselves.
            assert_eq!(agent.post(&[], "x").text(), "xab");
            std::thread::sleep(Duration::from_millis(200));
            let sleeps = ["parked", "woken", "spins", "rescans"];
            let bus = agent.app().bus;
            let mut counts = bus.iter().flat_map(|of| sleeps.map(|name| of.counts[name]));
            counts.all(|count| count > 0)
        },
    );
    agent.stop();
}

#[test]
fn every_command_has_help_with_examples() {
    for command in [
        &["--help"][..],
        &["run", "--help"],
        &["invoke", "--help"],
        &["doctor", "--help"],
    ] {
        let output = Command::new(SANDPIPE).args(command).output().unwrap();
        assert!(output.status.success());
        assert_words(&String::from_utf8(output.stdout).unwrap(), &["Examples:"]);
    }
    let wrong = Command::new(SANDPIPE).arg("fly").output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
}

//! `sandpipe doctor`: each line is what it has seen of this machine.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use super::harness::SANDPIPE;

fn doctor(data: &Path) -> Command {
    let mut command = Command::new(SANDPIPE);
    command.args(["doctor", "--json", "--data-dir"]).arg(data);
    command
}

/// Whether it finds the machine fit, and its line about one thing.
fn said_of(name: &str, mut command: Command) -> (bool, Value) {
    let Output { status, stdout, .. } = command.output().unwrap();
    let checks: Vec<Value> = serde_json::from_slice(&stdout).unwrap();
    let check = checks.into_iter().find(|check| check["name"] == name);
    (
        status.success(),
        check.unwrap_or_else(|| panic!("no {name}")),
    )
}

fn assert_says(check: &Value, ok: bool, reason: &[&str], remedy: &str) {
    assert_eq!(check["ok"], ok, "{check}");
    for word in reason {
        assert!(check["reason"].as_str().unwrap().contains(word), "{check}");
    }
    assert!(
        check["remedy"].as_str().unwrap().contains(remedy),
        "{check}"
    );
}

#[test]
fn the_doctor_tries_everything_and_finds_this_machine_fit() {
    let output = Command::new(SANDPIPE)
        .args(["doctor", "--json"])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    let checks: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    for name in [
        "memfd seals",
        "futex",
        "disk sync",
        "io_uring",
        "huge pages",
        "java",
        "pid namespace",
    ] {
        let check = checks.iter().find(|check| check["name"] == name);
        let check = check.unwrap_or_else(|| panic!("no {name} in {checks:#?}"));
        assert!(
            check["ok"] == true || !check["remedy"].as_str().unwrap().is_empty(),
            "{check}"
        );
        // Not read from a switch, but used: a wake through a ring, pages in smaps.
        let shown = [("io_uring", "woken"), ("huge pages", "KiB of")];
        if let Some((_, word)) = shown.iter().find(|(of, _)| *of == name) {
            let reason = check["reason"].as_str().unwrap();
            assert!(check["ok"] == false || reason.contains(word), "{check}");
        }
    }
}

#[test]
fn the_doctor_writes_where_the_log_would_be_and_leaves_nothing() {
    let place = tempfile::tempdir().unwrap();
    let data = place.path().join("data");
    let (fit, check) = said_of("disk sync", doctor(&data));
    assert!(fit);
    let path = data.display().to_string();
    assert_says(&check, true, &["µs for 1 KiB", &path, "median of 20"], "");
    assert_eq!(data.read_dir().unwrap().count(), 0);
    // A file in its way: also root cannot write below it.
    std::fs::write(place.path().join("file"), "").unwrap();
    let data = place.path().join("file").join("data");
    let (fit, check) = said_of("disk sync", doctor(&data));
    assert!(!fit, "nothing runs without a log");
    let path = data.display().to_string();
    assert_says(&check, false, &[&path, "Not a directory"], "--data-dir");
}

#[test]
fn the_doctor_names_a_disk_that_refuses_the_file_or_its_bytes() {
    // Nobody makes files there, root neither.
    let (fit, check) = said_of("disk sync", doctor(Path::new("/proc")));
    assert!(!fit, "nothing runs without a log");
    assert_says(&check, false, &["/proc: "], "--data-dir");
    // The file is made, but may have no bytes.
    let place = tempfile::tempdir().unwrap();
    let mut command = Command::new("/bin/sh");
    let script = "trap '' XFSZ; ulimit -f 0; exec \"$0\" doctor --json --data-dir \"$1\"";
    command.args(["-c", script, SANDPIPE]).arg(place.path());
    let (fit, check) = said_of("disk sync", command);
    assert!(!fit);
    let path = place.path().display().to_string();
    assert_says(&check, false, &[&path, "File too large"], "--data-dir");
    assert_eq!(place.path().read_dir().unwrap().count(), 0);
}

#[test]
fn the_doctor_asks_the_java_of_the_path_for_its_version() {
    let place = tempfile::tempdir().unwrap();
    let ask = |lines: Option<&str>| {
        let java = place.path().join("java");
        if let Some(lines) = lines {
            std::fs::write(&java, format!("#!/bin/sh\n{lines}\n")).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(&java, mode).unwrap();
        }
        let mut command = doctor(place.path());
        command.env("PATH", place.path());
        let (fit, check) = said_of("java", command);
        assert!(fit, "only a local Kafka needs Java");
        check
    };
    assert_says(
        &ask(None),
        false,
        &["java: No such file"],
        "apt-get install",
    );
    let old = ask(Some("echo 'openjdk version \"11.0.2\" 2019-01-15' >&2"));
    assert_says(&old, false, &["17 or newer", "11.0.2"], "apt-get install");
    let new = ask(Some("echo 'openjdk version \"17.0.13\" 2024-10-15' >&2"));
    assert_says(&new, true, &["17.0.13"], "");
}

#[test]
fn the_doctor_looks_for_a_kafka_where_it_is_told_to() {
    let place = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let ask = |bootstrap: &str| {
        let mut command = doctor(place.path());
        command.env("KAFKA_BOOTSTRAP", bootstrap);
        let (fit, check) = said_of("kafka", command);
        assert!(fit, "the embedded bus needs none");
        check
    };
    assert_says(&ask(&address), true, &[&address], "");
    drop(listener);
    assert_says(
        &ask(&address),
        false,
        &[&address, "refused"],
        "scripts/kafka start",
    );
    assert_says(
        &ask("nowhere"),
        false,
        &["nowhere is no address"],
        "KAFKA_BOOTSTRAP",
    );
}

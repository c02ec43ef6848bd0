//! A disk that is full or read-only: a small tmpfs in a mount namespace of its own.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sandpipe_global_bus::conformance::{WATCHDOG, record, replay, wait_until};
use sandpipe_global_bus::{
    AppendError, EmbeddedBus, EmbeddedOptions, GlobalBus, Health, Limits, OpenError, Payload,
    Record,
};

use crate::child::command;

fn options() -> EmbeddedOptions {
    EmbeddedOptions {
        limits: Limits {
            window_messages: 20,
            ..Limits::default()
        },
        segment_bytes: 64 << 10,
        ..EmbeddedOptions::default()
    }
}

fn large(number: u128) -> Record {
    Record {
        payload: Payload::Inline(vec![5; 10_000]),
        ..record("app", number)
    }
}

/// Appends message `number`, waiting while the window is full and the bus healthy.
fn append(bus: &mut EmbeddedBus, number: u128) -> Result<(), AppendError> {
    let deadline = Instant::now() + WATCHDOG;
    let mut batch = vec![large(number)];
    loop {
        match bus.append(&mut batch) {
            Ok(_) => return Ok(()),
            Err(AppendError::Full { .. }) => assert!(Instant::now() < deadline),
            Err(error) => return Err(error),
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// The child on the tmpfs: appends until there is no space, then gets some.
pub fn fill_and_recover(dir: &Path) {
    let log = dir.join("log");
    fs::write(dir.join("ballast"), vec![0; 1 << 20]).unwrap();
    let (mut bus, _) = EmbeddedBus::open(&log, options()).unwrap();
    let mut accepted = 0;
    let error = loop {
        match append(&mut bus, accepted + 1) {
            Ok(()) => accepted += 1,
            Err(error) => break error,
        }
        assert!(accepted < 1000, "the tmpfs has no limit");
    };
    assert!(accepted > 20, "{accepted}");
    let text = error.to_string();
    assert!(matches!(error, AppendError::DiskFull { .. }), "{error:?}");
    assert!(
        text.contains("No space left") && text.contains("free some space"),
        "{text}"
    );
    assert!(matches!(bus.health(), Health::Degraded { .. }));
    assert!(bus.acknowledged().0 < u64::try_from(accepted).unwrap());
    fs::remove_file(dir.join("ballast")).unwrap();
    wait_until("the bus to go on", || bus.health() == Health::Healthy);
    append(&mut bus, accepted + 1).unwrap();
    accepted += 1;
    bus.close(Instant::now() + WATCHDOG).unwrap();
    let (mut bus, _) = EmbeddedBus::open(&log, options()).unwrap();
    let ids: Vec<u128> = replay(&mut bus, "app")
        .iter()
        .map(|record| record.id.0)
        .collect();
    assert_eq!(ids, (1..=accepted).collect::<Vec<_>>());
}

/// The child on a read-only tmpfs.
pub fn open_read_only(dir: &Path) {
    let error = EmbeddedBus::open(dir, options()).unwrap_err();
    assert!(matches!(error, OpenError::Io { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("read-only, choose another one"), "{text}");
}

/// Runs a child on a tmpfs of 2 MiB, which goes with its namespace; `then` is a shell command.
fn on_a_tmpfs(test: &str, role: &str, then: &str) {
    let try_it = Command::new("unshare")
        .args(["-m", "true"])
        .stderr(Stdio::null())
        .status();
    if !try_it.is_ok_and(|status| status.success()) {
        let reason = "needs root, or the right to make a mount namespace (unshare -m)";
        // Not eprintln!, which the test harness keeps to itself when a test passes.
        let _ = writeln!(std::io::stderr(), "SKIP {test}: {reason}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let script = format!("mount -t tmpfs -o size=2m tmpfs '{path}' && {then} exec \"$@\"")
        .replace("DIR", path);
    let prefix = ["unshare", "-m", "sh", "-c", &script, "sh"];
    let output = command(&prefix, role, dir.path(), "").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}\n{failed}"
    );
}

#[test]
fn a_full_disk_pushes_back_until_there_is_space() {
    on_a_tmpfs("a_full_disk_pushes_back_until_there_is_space", "full", "");
}

#[test]
fn a_read_only_disk_is_an_error_that_says_so() {
    let remount = "mount -o remount,ro 'DIR' &&";
    on_a_tmpfs(
        "a_read_only_disk_is_an_error_that_says_so",
        "read-only",
        remount,
    );
}

//! The figure of the local bus without its peers: every row and every ratio that it promises.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use sandpipe_bench::bounds::RATIOS;
use sandpipe_bench::report::{Figure, Report};

/// What a report has, whatever peers are built.
const CASES: [&str; 21] = [
    "round trip, 64 B",
    "round trip, 1 KiB",
    "round trip, 4 KiB",
    "round trip, 64 KiB",
    "round trip, 1 MiB",
    "round trip, 16 MiB",
    "round trip, 64 B, with the agent's copy",
    "round trip, 64 B, through the in-flight table",
    "round trip, 64 B, 64 B touched",
    "round trip, 1 MiB, 56 B touched",
    "round trip, 1 MiB, 64 B touched",
    "round trip, 64 B, timed singly",
    "round trip, 64 B, asleep, same core",
    "round trip, 64 B, asleep, cross core",
    "round trip, 64 B, one request a ms",
    "fan-out to 1 reader and all answers, 64 B",
    "fan-out to 2 readers and all answers, 64 B",
    "fan-out to 8 readers and all answers, 64 B",
    "chain of 8 grains on 2 cores, 1 event under way",
    "chain of 8 grains on 2 cores, 8 events under way",
    "attach two processes",
];

/// Runs one figure from a place where no peer is built.
fn run(figure: &str, place: &Path) -> Report {
    let program = place.join("bin/sandpipe-bench");
    std::fs::create_dir_all(place.join("bin")).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_sandpipe-bench"), &program).unwrap();
    let ran = Command::new(program)
        .args(["run", "--figures", figure, "--profile", "smoke", "--json"])
        .arg("--root")
        .arg(place)
        .arg("--out")
        .arg(place.join("out"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
    serde_json::from_slice(&ran.stdout).unwrap()
}

fn one_cpu() -> bool {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    if cpus < 2 {
        // The test's thread bears its name.
        let test = std::thread::current().name().unwrap_or("bus").to_owned();
        let _ = writeln!(std::io::stderr(), "SKIP {test}: one CPU, two are needed");
    }
    cpus < 2
}

/// The ratios of a figure that need no peer, present and above zero (the counts may be zero).
/// Those of other placements stand beside them, so a name may be there with a placement only.
fn has_ratios(figure: &Figure, needs_peer: impl Fn(&str) -> bool) {
    let prefix = format!("{}.", figure.id);
    for ratio in RATIOS.iter().filter(|r| r.name.starts_with(&prefix)) {
        let here = |name: &str| name.split('@').next() == Some(ratio.name);
        let present = figure.ratios.iter().any(|(name, _)| here(name));
        assert_eq!(present, !needs_peer(ratio.name), "{}", ratio.name);
    }
    let counted = |name: &str| name.contains("syscalls") || name.contains("faults");
    let sound = |(name, value): (&String, &f64)| counted(name) || *value > 0.0;
    assert!(figure.ratios.iter().all(sound), "{:?}", figure.ratios);
}

#[test]
fn the_bus_has_every_row_and_ratio_and_names_the_peers_that_are_missing() {
    if one_cpu() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let report = run("bus", place.path());
    let figure = &report.figures[0];
    // A row of which no block had the chosen placement stands there too, with a mark.
    let rows: Vec<_> = figure.rows.iter().map(|row| row.case.as_str()).collect();
    for case in CASES {
        let present = rows.iter().any(|row| row.starts_with(case));
        assert!(present, "{case}: {:#?}", report.validity);
    }
    let streams = rows.iter().filter(|row| row.contains("lane of")).count();
    assert!(streams == 24, "{streams} streams: {rows:#?}");
    for peer in ["iceoryx2", "aeron", "aeron-java"] {
        let said = format!("bus: the peer {peer} cannot run");
        let mark = report.validity.iter().find(|mark| mark.starts_with(&said));
        assert!(mark.is_some_and(|mark| mark.contains("run scripts/peers")));
    }
    assert_eq!(figure.ratios["bus.publish_syscalls_awake"], 0.0);
    assert!(figure.ratios["bus.first_publish_after_fork.faults"] <= 2.0);
    has_ratios(figure, |name| {
        name.contains("aeron") || name.contains("iceoryx2")
    });
}

#[test]
fn a_death_is_seen_and_its_message_handled_again() {
    if one_cpu() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let report = run("death", place.path());
    let figure = &report.figures[0];
    assert_eq!(figure.rows.len(), 6, "{:?}", report.validity);
    has_ratios(figure, |_| false);
}

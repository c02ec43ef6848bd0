//! The command as a user types it.

use std::path::PathBuf;
use std::process::{Command, Output};

use sandpipe_bench::report::Report;

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sandpipe-bench"))
        .args(arguments)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn list_names_every_figure_also_as_json() {
    let plain = text(&bench(&["list"]).stdout);
    let json: serde_json::Value =
        serde_json::from_slice(&bench(&["list", "--json"]).stdout).unwrap();
    let ids: Vec<&str> = json
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|f| f["id"].as_str())
        .collect();
    assert!(ids.contains(&"floor"));
    assert!(
        ids.iter()
            .all(|id| plain.lines().any(|line| line.starts_with(id))),
        "{plain}"
    );
}

#[test]
fn a_wrong_figure_is_refused_with_the_right_names() {
    let refused = bench(&["run", "--figures", "floor,5z"]);
    assert_eq!(refused.status.code(), Some(2));
    let said = text(&refused.stderr);
    assert!(
        said.contains("\"5z\"") && said.contains("the figures are: 5b"),
        "{said}"
    );
}

#[test]
fn help_shows_examples_and_exit_codes() {
    let help = text(&bench(&["--help"]).stdout);
    assert!(
        help.contains("--figures 5b,5c --json") && help.contains("Exit codes"),
        "{help}"
    );
}

#[test]
fn the_floor_probes_run_and_their_orders_hold() {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    if cpus < 2 {
        eprintln!("SKIP the_floor_probes_run_and_their_orders_hold: one CPU, two are needed");
        return;
    }
    let out = tempfile::tempdir().unwrap();
    let directory = out.path().to_str().unwrap();
    let floor = [
        "run",
        "--figures",
        "floor",
        "--profile",
        "smoke",
        "--json",
        "--out",
        directory,
    ];
    let ran = bench(&floor);
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    let report: Report = serde_json::from_slice(&ran.stdout).unwrap();
    let written = std::fs::read(out.path().join("report.json")).unwrap();
    assert_eq!(
        written, ran.stdout,
        "stdout and the file are the same report"
    );
    let rows = &report.figures[0].rows;
    assert_eq!(rows.len(), 9, "{:?}", report.validity);
    for row in rows {
        assert!(row.n >= 5, "{} has {} samples", row.case, row.n);
        let ascending = [row.min, row.p50, row.p90, row.p99, row.p999, row.max];
        assert!(
            ascending.is_sorted() && row.min > 0.0,
            "{}: {ascending:?}",
            row.case
        );
        let histogram = out
            .path()
            .join(PathBuf::from(row.histogram.as_ref().unwrap()));
        assert!(histogram.is_file());
    }
    let p50 = |case: &str| {
        rows.iter()
            .find(|row| row.case.starts_with(case))
            .unwrap()
            .p50
    };
    assert!(
        p50("cache line") < p50("futex wake, one way, cross"),
        "a wake-up is no hand-over"
    );
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let refused = bench(&[
        "run",
        "--figures",
        "floor",
        "--profile",
        "smoke",
        "--out",
        "/proc/nowhere",
    ]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused.stderr).contains("/proc/nowhere"),
        "{}",
        text(&refused.stderr)
    );
}

//! The command as a user types it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

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
        let of = &row.summary;
        assert!(of.n >= 5, "{} has {} samples", row.case, of.n);
        let ascending = [of.min, of.p50, of.p90, of.p99, of.p999, of.max];
        assert!(
            ascending.is_sorted() && of.min > 0.0,
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
            .summary
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

/// The programs under a name of their own, so that a test knows its processes by their path.
fn private_copy(directory: &Path) -> PathBuf {
    for program in [
        env!("CARGO_BIN_EXE_sandpipe-bench"),
        env!("CARGO_BIN_EXE_bench-grain"),
    ] {
        let name = Path::new(program).file_name().unwrap();
        std::fs::copy(program, directory.join(name)).unwrap();
    }
    std::fs::create_dir_all(directory.join("bench-harness/python")).unwrap();
    directory.join("sandpipe-bench")
}

/// Processes whose program lies in `directory`.
fn processes_of(directory: &Path) -> Vec<(u32, PathBuf)> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_string_lossy().parse().ok()?;
            let program = std::fs::read_link(entry.path().join("exe")).ok()?;
            program.starts_with(directory).then_some((pid, program))
        })
        .collect()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn figure_5c_runs_real_grains_names_what_is_missing_and_leaves_nothing_behind() {
    let place = tempfile::tempdir().unwrap();
    let program = private_copy(place.path());
    let ran = Command::new(program)
        .args(["run", "--figures", "5c", "--profile", "smoke", "--json"])
        .arg("--root")
        .arg(place.path())
        .arg("--out")
        .arg(place.path().join("out"))
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    let report: Report = serde_json::from_slice(&ran.stdout).unwrap();
    let figure = &report.figures[0];
    assert_eq!(figure.rows.len(), 12, "{:?}", report.validity);
    let ratios: Vec<&str> = figure.ratios.keys().map(String::as_str).collect();
    let known = [
        "5c.ahead_over_pool.rust",
        "5c.demand_over_ahead.rust_64MiB",
        "5c.fork_over_floor.rust",
        "5c.pool_over_floor.rust",
    ];
    assert_eq!(ratios, known);
    let named = report.validity.iter().any(|mark| {
        mark.starts_with("5c: all Python rows:") && mark.ends_with("run scripts/setup")
    });
    assert!(named, "{:?}", report.validity);
    assert_eq!(processes_of(place.path()), []);
}

#[test]
fn a_killed_harness_leaves_no_sandbox_behind() {
    let place = tempfile::tempdir().unwrap();
    let mut harness = Command::new(private_copy(place.path()))
        .args(["run", "--figures", "5c"])
        .arg("--root")
        .arg(place.path())
        .arg("--out")
        .arg(place.path().join("out"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // A sandbox is seen by its init: the floor's processes are the grain's program, too.
    let inits = || {
        let all = processes_of(place.path());
        let is_init = |pid: &u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            text(&line).contains("sandbox-init")
        };
        all.iter().filter(|(pid, _)| is_init(pid)).count()
    };
    eventually("a sandbox runs", || inits() > 0);
    harness.kill().unwrap();
    harness.wait().unwrap();
    eventually("everything has ended", || {
        processes_of(place.path()).is_empty()
    });
}

#[test]
fn keepalive_is_the_same_each_time_and_longer_times_buy_warmth_with_memory() {
    let measure = || {
        let out = tempfile::tempdir().unwrap();
        let directory = out.path().to_str().unwrap();
        let figure = [
            "run",
            "--figures",
            "keepalive",
            "--profile",
            "smoke",
            "--json",
        ];
        let ran = bench(&[&figure[..], &["--out", directory]].concat());
        assert!(ran.status.success(), "{}", text(&ran.stderr));
        let mut report: Report = serde_json::from_slice(&ran.stdout).unwrap();
        report.figures.remove(0)
    };
    let figure = measure();
    assert_eq!(figure, measure());
    assert_eq!(figure.rows.len(), 8);
    assert!(
        figure
            .rows
            .iter()
            .all(|row| row.unit == "%" && row.summary.max <= 100.0)
    );
    let cold = |word: &str| figure.ratios[&format!("keepalive.cold_percent.p75.{word}")];
    let times = ["fixed_60", "fixed_20", "fixed_10"].map(cold);
    assert!(times.is_sorted() && times[0] < times[2], "{times:?}");
    let memory = |word: &str| figure.ratios[&format!("keepalive.memory_time.{word}_over_fixed_10")];
    assert!(1.0 < memory("fixed_20") && memory("fixed_20") < memory("fixed_60"));
}

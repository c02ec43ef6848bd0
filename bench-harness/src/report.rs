//! report.json: its shape, and how it is written.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::BenchError;
use crate::machine::Machine;
use crate::stats::{Samples, Summary};

/// Name and version of the report's shape; a changed or removed field makes a new one.
pub const SCHEMA: &str = "sandpipe-bench/1";

/// All that a run measured.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// The machine's fingerprint.
    pub machine: Machine,
    /// What a reader must know before believing a number: one sentence each, also for every row
    /// that could not run.
    pub validity: Vec<String>,
    /// The figures, in the order of `sandpipe-bench list`.
    pub figures: Vec<Figure>,
}

/// One figure or table.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Figure {
    /// Its stable name: `5b`.
    pub id: String,
    /// What it shows.
    pub title: String,
    /// Where the paper's values come from, or what it is if the paper has none.
    pub source: String,
    /// What differs from the paper's experiment, one sentence each.
    pub substitutions: Vec<String>,
    /// What was measured.
    pub rows: Vec<Row>,
    /// One stable name, one number.
    pub ratios: BTreeMap<String, f64>,
}

/// One case of one figure.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Row {
    /// What was measured.
    pub case: String,
    /// By whom: a language, a peer or a floor.
    pub series: String,
    /// The unit of all values of the row: `ns`, `us`, `ms` or `%`.
    pub unit: String,
    /// The measured values, in that unit.
    #[serde(flatten)]
    pub summary: Summary,
    /// The paper's mean in the same unit, if it has one.
    pub paper: Option<f64>,
    /// File of the HDR histogram (format V2, values in ns), relative to the report.
    pub histogram: Option<String>,
}

/// A unit that rows are printed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Nanoseconds.
    Ns,
    /// Microseconds.
    Us,
    /// Milliseconds.
    Ms,
    /// No time but a share; its samples are millionths of a percent.
    Percent,
}

impl Unit {
    /// Its name in a report.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Unit::Ns => "ns",
            Unit::Us => "us",
            Unit::Ms => "ms",
            Unit::Percent => "%",
        }
    }

    /// How many ns, or millionths of a percent, it has.
    #[must_use]
    pub fn ns(self) -> f64 {
        match self {
            Unit::Ns => 1.0,
            Unit::Us => 1e3,
            Unit::Ms | Unit::Percent => 1e6,
        }
    }
}

impl Row {
    /// A row of measured samples; `paper_ns` is the paper's mean in ns.
    #[must_use]
    pub fn new(
        case: &str,
        series: &str,
        unit: Unit,
        samples: &Samples,
        paper_ns: Option<f64>,
    ) -> Row {
        Row {
            case: case.to_owned(),
            series: series.to_owned(),
            unit: unit.name().to_owned(),
            summary: samples.summary().in_unit(unit.ns()),
            paper: paper_ns.map(|ns| ns / unit.ns()),
            histogram: None,
        }
    }
}

/// A figure together with the samples behind its rows (same order) and its notes.
#[derive(Debug, Default)]
pub struct MeasuredFigure {
    /// What goes into the report.
    pub figure: Figure,
    /// The samples of each row.
    pub samples: Vec<Samples>,
    /// Sentences for the report's validity.
    pub notes: Vec<String>,
}

/// Writes the histograms of a figure below `out` and names them in its rows.
///
/// # Errors
/// If a file cannot be written.
pub fn write_histograms(out: &Path, measured: &mut MeasuredFigure) -> Result<(), BenchError> {
    let directory = out.join("histograms");
    create_dir(&directory)?;
    let id = measured.figure.id.clone();
    for (row, samples) in measured.figure.rows.iter_mut().zip(&measured.samples) {
        let name = file_name(&id, &row.case, &row.series);
        write(&directory.join(&name), &samples.to_v2()?)?;
        row.histogram = Some(format!("histograms/{name}"));
    }
    Ok(())
}

/// Writes `report.json` below `out`: whole or not at all, so that a killed run leaves no half one.
///
/// # Errors
/// If it cannot be written.
pub fn write_report(out: &Path, report: &Report) -> Result<(), BenchError> {
    create_dir(out)?;
    let partial = out.join("report.json.partial");
    write(&partial, to_json(report).as_bytes())?;
    let target = out.join("report.json");
    fs::rename(&partial, &target).map_err(|e| os("rename to", &target, e))
}

/// The report as indented JSON with a newline at its end.
#[must_use]
pub fn to_json(report: &Report) -> String {
    let mut text = serde_json::to_string_pretty(report).expect("plain data always serialises");
    text.push('\n');
    text
}

fn file_name(id: &str, case: &str, series: &str) -> String {
    let words = format!("{id} {case} {series}").to_lowercase();
    let mut name = String::new();
    for c in words.chars() {
        match c {
            'a'..='z' | '0'..='9' => name.push(c),
            _ if name.ends_with('-') => {}
            _ => name.push('-'),
        }
    }
    format!("{}.hdr", name.trim_matches('-'))
}

fn create_dir(path: &Path) -> Result<(), BenchError> {
    fs::create_dir_all(path).map_err(|e| os("make the directory", path, e))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), BenchError> {
    fs::write(path, bytes).map_err(|e| os("write", path, e))
}

fn os(what: &str, path: &Path, error: io::Error) -> BenchError {
    BenchError::os(format!("{what} {}", path.display()), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Report {
        let samples: Samples = (1..=4).map(|i| i * 1000).collect();
        let mut row = Row::new(
            "local bus, awake",
            "Python",
            Unit::Us,
            &samples,
            Some(787e3),
        );
        row.histogram = Some("histograms/5b-local-bus-awake-python.hdr".into());
        let figure = Figure {
            id: "5b".into(),
            title: "Message delivery".into(),
            source: "SAND, figure 5b".into(),
            substitutions: vec!["one broker".into()],
            rows: vec![row],
            ratios: BTreeMap::from([("5b.parked_over_futex.rust".into(), 1.25)]),
        };
        Report {
            schema: SCHEMA.into(),
            machine: Machine {
                cpu: "a CPU".into(),
                cpus: 2,
                ..Machine::default()
            },
            validity: vec!["a shared virtual machine".into()],
            figures: vec![figure],
        }
    }

    #[test]
    fn a_report_is_the_golden_one() {
        let golden = include_str!("../tests/report.golden.json");
        assert_eq!(to_json(&example()), golden);
    }

    #[test]
    fn a_report_read_back_is_the_same() {
        let back: Report = serde_json::from_str(&to_json(&example())).unwrap();
        assert_eq!(back, example());
    }

    #[test]
    fn histograms_are_written_beside_the_report_and_named_in_it() {
        let out = tempfile::tempdir().unwrap();
        let samples: Samples = (1..=4).collect();
        let mut measured = MeasuredFigure {
            figure: Figure {
                rows: example().figures[0].rows.clone(),
                ..example().figures[0].clone()
            },
            samples: vec![samples],
            notes: vec![],
        };
        write_histograms(out.path(), &mut measured).unwrap();
        let name = measured.figure.rows[0].histogram.clone().unwrap();
        assert_eq!(name, "histograms/5b-local-bus-awake-python.hdr");
        assert!(out.path().join(name).metadata().unwrap().len() > 0);
        write_report(out.path(), &example()).unwrap();
        let written = fs::read_to_string(out.path().join("report.json")).unwrap();
        assert_eq!(written, to_json(&example()));
    }
}

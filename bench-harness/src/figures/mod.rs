//! The figures, one file each.

mod agent_death;
mod bus;
mod chain;
mod death;
mod figure_5b;
mod figure_5c;
mod figure_7;
mod floor;
mod keepalive;
mod neighbours;
mod overload;

use std::path::PathBuf;

use crate::error::BenchError;
use crate::progress::Progress;
use crate::report::{Figure, MeasuredFigure, Row, Unit};
use crate::rounds::{Outcome, Plan, run};

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// One round of a few samples: shows that everything runs, says nothing about speed.
    Smoke,
    /// All figures in at most six minutes.
    Quick,
    /// More rounds and samples.
    Full,
}

impl Profile {
    /// Rounds that count (a cold one precedes them).
    #[must_use]
    pub fn rounds(self) -> usize {
        match self {
            Profile::Smoke => 1,
            Profile::Quick => 7,
            Profile::Full => 25,
        }
    }

    /// Samples a round of a case that takes `quick` in the quick profile.
    #[must_use]
    pub fn samples(self, quick: usize) -> usize {
        match self {
            Profile::Smoke => (quick / 20).clamp(5, quick.max(5)),
            Profile::Quick => quick,
            Profile::Full => quick * 3,
        }
    }
}

/// What a figure needs from the run.
#[derive(Debug)]
pub struct Setting<'a> {
    /// How much to measure.
    pub profile: Profile,
    /// Where to say what is being done.
    pub progress: &'a Progress,
    /// The repository (for scripts, examples and Python files).
    pub root: PathBuf,
}

/// One figure: its names and how it is measured.
#[derive(Clone, Copy)]
pub struct FigureKind {
    /// Stable name.
    pub id: &'static str,
    /// What it shows.
    pub title: &'static str,
    /// Where the paper's values are from.
    pub source: &'static str,
    measure: fn(&Setting<'_>) -> Result<Parts, BenchError>,
}

/// What a figure's own file gives.
#[derive(Default)]
pub struct Parts {
    substitutions: Vec<String>,
    rows: Vec<(Row, crate::stats::Samples)>,
    ratios: Vec<(String, f64)>,
    notes: Vec<String>,
}

/// All figures, in the order of a report.
pub const FIGURES: &[FigureKind] = &[
    figure_5b::FIGURE,
    figure_5c::FIGURE,
    figure_7::FIGURE,
    chain::FIGURE,
    bus::FIGURE,
    death::FIGURE,
    agent_death::FIGURE,
    neighbours::FIGURE,
    overload::FIGURE,
    keepalive::FIGURE,
    floor::FIGURE,
];

/// The figures of a comma-separated list; "all" is each of them.
///
/// # Errors
/// [`BenchError::UnknownFigure`] naming the right ones.
pub fn choose(names: &[String]) -> Result<Vec<&'static FigureKind>, BenchError> {
    let known = || {
        FIGURES
            .iter()
            .map(|figure| figure.id)
            .collect::<Vec<_>>()
            .join(", ")
    };
    for name in names {
        if name != "all" && FIGURES.iter().all(|figure| figure.id != name) {
            return Err(BenchError::UnknownFigure {
                name: name.clone(),
                known: known(),
            });
        }
    }
    let wanted = |figure: &&FigureKind| names.iter().any(|n| n == "all" || n == figure.id);
    Ok(FIGURES.iter().filter(wanted).collect())
}

impl FigureKind {
    /// Measures it.
    ///
    /// # Errors
    /// If nothing of it can be measured; a row that cannot run is a note instead.
    pub fn measure(&self, setting: &Setting<'_>) -> Result<MeasuredFigure, BenchError> {
        setting.progress.figure(self.id, self.title);
        let parts = (self.measure)(setting)?;
        let (rows, samples) = parts.rows.into_iter().unzip();
        let figure = Figure {
            id: self.id.to_owned(),
            title: self.title.to_owned(),
            source: self.source.to_owned(),
            substitutions: parts.substitutions,
            rows,
            ratios: parts.ratios.into_iter().collect(),
        };
        let notes = parts
            .notes
            .into_iter()
            .map(|note| format!("{}: {note}", self.id))
            .collect();
        Ok(MeasuredFigure {
            figure,
            samples,
            notes,
        })
    }
}

impl Parts {
    /// Runs a plan and adds its rows (in `unit`, the paper's mean by case index), ratios and notes.
    fn measure(
        &mut self,
        setting: &Setting<'_>,
        plan: Plan<'_>,
        unit: Unit,
        paper_ns: impl Fn(&str, &str) -> Option<f64>,
    ) -> Result<Outcome, BenchError> {
        let names: Vec<(String, String)> = plan
            .cases
            .iter()
            .map(|c| (c.case.clone(), c.series.clone()))
            .collect();
        let outcome = run(plan, setting.profile.rounds(), setting.progress)?;
        for ((case, series), samples) in names.iter().zip(&outcome.cases) {
            if samples.count() > 0 {
                let paper = paper_ns(case, series);
                self.rows.push((
                    Row::new(case, series, unit, samples, paper),
                    samples.clone(),
                ));
            }
        }
        for (name, _) in &outcome.ratios {
            if let Some(value) = outcome.ratio(name) {
                self.ratios.push(((*name).to_owned(), value));
            }
        }
        self.notes.extend(outcome.failures.iter().cloned());
        self.notes.extend(outcome.notes.iter().cloned());
        Ok(outcome)
    }
}

//! Interleaved rounds: cases that are compared run back to back, ratios are taken inside a block.

mod plan;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::clock::two_cpus;
use crate::error::BenchError;
use crate::placement::{Look, Placement};
use crate::progress::Progress;
use crate::stats::{Samples, median};

pub use plan::{Block, Case, Of, Plan, RatioOf, Runner, Side};

/// One run of one block.
#[derive(Debug)]
struct BlockRun {
    block: usize,
    placement: Placement,
    /// Samples of each case, in the block's order; `None` where a case has failed.
    samples: Vec<Option<Samples>>,
}

/// What the rounds gave.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Samples of each case over the rounds that count, in the plan's order.
    pub cases: Vec<Samples>,
    /// The ratio of each round that counts, by the plan's order of ratios.
    pub ratios: Vec<(&'static str, Vec<f64>)>,
    /// The same in the placements that do not count, beside them: median over rounds.
    pub elsewhere: Vec<(&'static str, Placement, f64)>,
    /// Cases that gave nothing, and why.
    pub failures: Vec<String>,
    /// What a reader must know about the rounds.
    pub notes: Vec<String>,
}

impl Outcome {
    /// The median over rounds of a ratio; `None` if no round counts.
    #[must_use]
    pub fn ratio(&self, name: &str) -> Option<f64> {
        self.ratios
            .iter()
            .find(|(n, _)| *n == name)
            .and_then(|(_, values)| median(values))
    }
}

/// How long a near block waits while the host keeps the cores far apart.
const NEAR_WAIT_MAX: Duration = Duration::from_millis(1500);
/// How long all blocks of a run wait together, if it has more than one round: a host may keep the
/// cores far apart for minutes.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause between two looks at the placement while waiting.
const NEAR_LOOK_EVERY: Duration = Duration::from_millis(10);
/// Part of the samples that the cold round takes.
const COLD_SHARE: usize = 4;

/// Runs `rounds` rounds after a cold one that is set aside.
///
/// A case that fails is named in the outcome and left out of later rounds; the others go on.
///
/// # Errors
/// If the placement itself cannot be probed.
pub fn run(plan: Plan<'_>, rounds: usize, progress: &Progress) -> Result<Outcome, BenchError> {
    let mut runner = RoundRunner {
        broken: BTreeSet::new(),
        failures: Vec::new(),
        dropped: 0,
        runs: Vec::new(),
        timed: rounds > 1,
        patience: if rounds > 1 { PATIENCE } else { Duration::ZERO },
        plan,
        progress,
    };
    // A single round says nothing about speed, so it needs no cold one.
    let first = usize::from(rounds == 1);
    progress.steps((rounds + 1 - first) * runner.plan.blocks.len());
    for round in first..=rounds {
        for turn in 0..runner.plan.blocks.len() {
            let block = (turn + round) % runner.plan.blocks.len();
            runner.block(round, block)?;
            progress.step();
        }
    }
    Ok(runner.outcome())
}

struct RoundRunner<'a, 'p> {
    plan: Plan<'a>,
    progress: &'p Progress,
    runs: Vec<BlockRun>,
    dropped: usize,
    broken: BTreeSet<usize>,
    failures: Vec<String>,
    /// Whether the figures mean anything: a single round only shows that every case runs, so none
    /// of its blocks is dropped.
    timed: bool,
    /// How much longer this run waits for cores that are far apart.
    patience: Duration,
}

impl RoundRunner<'_, '_> {
    fn block(&mut self, round: usize, block: usize) -> Result<(), BenchError> {
        let Block {
            cases,
            near,
            in_order,
        } = self.plan.blocks[block].clone();
        let cold = round == 0;
        let before = look((near && !cold).then_some(&mut self.patience))?;
        let mut samples: Vec<Option<Samples>> = vec![None; cases.len()];
        // Every other round backwards, so that no case is always the one that runs first.
        let mut order: Vec<usize> = (0..cases.len()).collect();
        if round % 2 == 1 && !in_order {
            order.reverse();
        }
        for place in order {
            samples[place] = self.case(cases[place], cold);
        }
        if cold {
            return Ok(());
        }
        if near && self.timed && moved(before, look(None)?) {
            self.dropped += 1;
        } else {
            self.runs.push(BlockRun {
                block,
                placement: before.map_or(Placement::Sibling, Look::placement),
                samples,
            });
        }
        Ok(())
    }

    fn case(&mut self, index: usize, cold: bool) -> Option<Samples> {
        if self.broken.contains(&index) {
            return None;
        }
        let case = &mut self.plan.cases[index];
        self.progress
            .doing(&format!("{} ({})", case.case, case.series));
        let wanted = if cold {
            case.samples.div_ceil(COLD_SHARE)
        } else {
            case.samples
        };
        match (case.run)(wanted) {
            Ok(samples) => Some(samples),
            Err(error) => {
                self.broken.insert(index);
                self.failures
                    .push(format!("{} ({}): {error}", case.case, case.series));
                None
            }
        }
    }

    fn outcome(self) -> Outcome {
        let mut notes = Vec::new();
        if self.dropped > 0 {
            let of = self.runs.len() + self.dropped;
            let dropped = self.dropped;
            notes.push(format!(
                "{dropped} of {of} blocks dropped: the placement of the cores \
                 changed inside them"
            ));
        }
        let chosen = self.chosen_placement(&mut notes);
        let counts = |run: &&BlockRun| {
            !self.plan.blocks[run.block].near || chosen.is_none_or(|p| p == run.placement)
        };
        let mut cases = self.samples(counts);
        let everywhere = self.samples(|_| true);
        for (index, samples) in cases.iter_mut().enumerate() {
            if samples.count() == 0 && everywhere[index].count() > 0 {
                let Case { case, series, .. } = &self.plan.cases[index];
                notes.push(format!(
                    "{case} ({series}): all its blocks had another placement"
                ));
                samples.merge(&everywhere[index]);
            }
        }
        let ratios = self.plan.ratios.iter().map(|ratio| {
            let runs = self.runs.iter().filter(counts);
            let values = runs.filter_map(|run| self.pair(run, ratio));
            (ratio.name, values.collect())
        });
        Outcome {
            ratios: ratios.collect(),
            elsewhere: self.elsewhere(chosen),
            cases,
            failures: self.failures,
            notes,
        }
    }

    /// The samples of each case over the runs that count.
    fn samples(&self, counts: impl Fn(&&BlockRun) -> bool) -> Vec<Samples> {
        let mut cases: Vec<Samples> = self.plan.cases.iter().map(|_| Samples::new()).collect();
        for run in self.runs.iter().filter(counts) {
            for (place, samples) in run.samples.iter().enumerate() {
                if let Some(samples) = samples {
                    cases[self.plan.blocks[run.block].cases[place]].merge(samples);
                }
            }
        }
        cases
    }

    /// The ratios of the blocks that ran in another placement than the chosen one.
    fn elsewhere(&self, chosen: Option<Placement>) -> Vec<(&'static str, Placement, f64)> {
        let others = [Placement::Sibling, Placement::Near, Placement::Far]
            .into_iter()
            .filter(|placement| chosen.is_some_and(|chosen| chosen != *placement));
        let of = |placement: Placement, ratio: &RatioOf| {
            let runs = self
                .runs
                .iter()
                .filter(|run| self.plan.blocks[run.block].near && run.placement == placement);
            let values: Vec<f64> = runs.filter_map(|run| self.pair(run, ratio)).collect();
            median(&values).map(|value| (ratio.name, placement, value))
        };
        others
            .flat_map(|placement| {
                self.plan
                    .ratios
                    .iter()
                    .filter_map(move |r| of(placement, r))
            })
            .collect()
    }

    /// Near if at least a quarter of the runs were; else the placement with the most runs.
    fn chosen_placement(&self, notes: &mut Vec<String>) -> Option<Placement> {
        let near_runs = || {
            self.runs
                .iter()
                .filter(|run| self.plan.blocks[run.block].near)
        };
        let count = |placement| near_runs().filter(|run| run.placement == placement).count();
        let all = near_runs().count();
        if all == 0 {
            return None;
        }
        let [sibling, near, far] =
            [Placement::Sibling, Placement::Near, Placement::Far].map(|p| (count(p), p));
        let chosen = if near.0 * 4 >= all {
            Placement::Near
        } else {
            [sibling, near, far]
                .into_iter()
                .max_by_key(|(n, _)| *n)
                .map_or(near.1, |(_, p)| p)
        };
        notes.push(format!(
            "placement of the two cores in {all} pinned blocks: {} sibling, {} near, {} far; rows \
             and ratios are of the {chosen} ones",
            sibling.0, near.0, far.0
        ));
        Some(chosen)
    }

    fn pair(&self, run: &BlockRun, ratio: &RatioOf) -> Option<f64> {
        let cases = &self.plan.blocks[run.block].cases;
        let of = |index: usize| {
            let place = cases.iter().position(|case| *case == index)?;
            run.samples[place]
                .as_ref()
                .filter(|samples| samples.count() > 0)
        };
        let value = |case: usize| {
            of(case).map(|samples| match ratio.of {
                Of::Quantile(q) => samples.quantile_ns(q),
                Of::Mean => samples.mean_ns(),
            })
        };
        let side = |side: &Side| match side {
            Side::Case(case) => value(*case),
            Side::Fastest(cases) => {
                let values = cases.iter().filter_map(|case| value(*case));
                values.min_by(f64::total_cmp)
            }
            Side::Ns(unit_ns) => Some(*unit_ns),
        };
        let (over, under) = (side(&ratio.over)?, side(&ratio.under)?);
        (under > 0.0).then(|| over / under)
    }
}

/// The placement now, or, with patience, as soon as the cores are not far apart (bounded); `None`
/// on a machine with one CPU.
fn look(mut patience: Option<&mut Duration>) -> Result<Option<Look>, BenchError> {
    let Ok(cpus) = two_cpus() else {
        return Ok(None);
    };
    let start = Instant::now();
    loop {
        let look = Look::now(cpus)?;
        let far = look.placement() == Placement::Far;
        let wait_max = patience.as_deref().map_or(Duration::ZERO, |p| *p);
        let waited = start.elapsed();
        if !far || waited >= wait_max.min(NEAR_WAIT_MAX) {
            if let Some(patience) = patience.as_deref_mut() {
                *patience = patience.saturating_sub(waited);
            }
            return Ok(Some(look));
        }
        std::thread::sleep(NEAR_LOOK_EVERY);
    }
}

fn moved(before: Option<Look>, after: Option<Look>) -> bool {
    before
        .zip(after)
        .is_some_and(|(before, after)| after.moved_since(before))
}

#[cfg(test)]
mod tests;

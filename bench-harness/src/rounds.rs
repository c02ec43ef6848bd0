//! Interleaved rounds: cases that are compared run back to back, ratios are taken inside a block.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::clock::two_cpus;
use crate::error::BenchError;
use crate::placement::{Look, Placement};
use crate::progress::Progress;
use crate::stats::{Samples, median};

/// Measures one case: takes the number of samples wanted, gives about as many.
pub type Runner<'a> = Box<dyn FnMut(usize) -> Result<Samples, BenchError> + 'a>;

/// One thing measured.
pub struct Case<'a> {
    /// What, as the report's rows name it.
    pub case: String,
    /// By whom: Rust, Python, floor…
    pub series: String,
    /// Samples wanted in each round.
    pub samples: usize,
    /// How.
    pub run: Runner<'a>,
}

/// Cases that run back to back between two probes of the placement.
#[derive(Clone, Debug)]
pub struct Block {
    /// Indices into the plan's cases; a case may be in several blocks.
    pub cases: Vec<usize>,
    /// Whether it is repeated only while the cores are near each other, if they ever are.
    pub near: bool,
}

/// A ratio of two cases' medians inside one block.
#[derive(Clone, Debug)]
pub struct RatioOf {
    /// Its stable name.
    pub name: &'static str,
    /// The case on top.
    pub over: usize,
    /// What it is divided by.
    pub under: Under,
}

/// What stands below a ratio.
#[derive(Clone, Copy, Debug)]
pub enum Under {
    /// The median of another case of the same block.
    Case(usize),
    /// So many ns: the ratio is the case's own median in a unit.
    Ns(f64),
}

/// What a figure wants measured.
#[derive(Default)]
pub struct Plan<'a> {
    /// All cases; also the order of the report's rows.
    pub cases: Vec<Case<'a>>,
    /// Which of them run back to back.
    pub blocks: Vec<Block>,
    /// What to compare; both cases of a ratio must share a block.
    pub ratios: Vec<RatioOf>,
}

impl<'a> Plan<'a> {
    /// Adds a case and gives its index.
    pub fn case(
        &mut self,
        case: &str,
        series: &str,
        samples: usize,
        run: impl FnMut(usize) -> Result<Samples, BenchError> + 'a,
    ) -> usize {
        self.cases.push(Case {
            case: case.to_owned(),
            series: series.to_owned(),
            samples,
            run: Box::new(run),
        });
        self.cases.len() - 1
    }

    /// Adds a block whose placement matters.
    pub fn near_block(&mut self, cases: &[usize]) {
        self.blocks.push(Block {
            cases: cases.to_vec(),
            near: true,
        });
    }

    /// Adds a block of cases that the scheduler places as it likes.
    pub fn block(&mut self, cases: &[usize]) {
        self.blocks.push(Block {
            cases: cases.to_vec(),
            near: false,
        });
    }

    /// Adds a ratio.
    pub fn ratio(&mut self, name: &'static str, over: usize, under: usize) {
        self.ratios.push(RatioOf {
            name,
            over,
            under: Under::Case(under),
        });
    }

    /// Adds a number that is no quotient of two cases: the median of one, in units of `unit_ns`.
    pub fn value(&mut self, name: &'static str, case: usize, unit_ns: f64) {
        self.ratios.push(RatioOf {
            name,
            over: case,
            under: Under::Ns(unit_ns),
        });
    }
}

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
        plan,
        progress,
    };
    progress.steps((rounds + 1) * runner.plan.blocks.len());
    for round in 0..=rounds {
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
}

impl RoundRunner<'_, '_> {
    fn block(&mut self, round: usize, block: usize) -> Result<(), BenchError> {
        let Block { cases, near } = self.plan.blocks[block].clone();
        let cold = round == 0;
        let before = look(near && !cold)?;
        let mut samples: Vec<Option<Samples>> = vec![None; cases.len()];
        // Every other round backwards, so that no case is always the one that runs first.
        let mut order: Vec<usize> = (0..cases.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for place in order {
            samples[place] = self.case(cases[place], cold);
        }
        if cold {
            return Ok(());
        }
        if near && moved(before, look(false)?) {
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
        let mut cases: Vec<Samples> = self.plan.cases.iter().map(|_| Samples::new()).collect();
        for run in self.runs.iter().filter(counts) {
            for (place, samples) in run.samples.iter().enumerate() {
                if let Some(samples) = samples {
                    cases[self.plan.blocks[run.block].cases[place]].merge(samples);
                }
            }
        }
        let ratios = self.plan.ratios.iter().map(|ratio| {
            let values = self
                .runs
                .iter()
                .filter(counts)
                .filter_map(|run| self.pair(run, ratio));
            (ratio.name, values.collect())
        });
        Outcome {
            ratios: ratios.collect(),
            cases,
            failures: self.failures,
            notes,
        }
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
        let over = of(ratio.over)?.p50_ns();
        let under = match ratio.under {
            Under::Case(case) => of(case)?.p50_ns(),
            Under::Ns(unit_ns) => unit_ns,
        };
        (under > 0.0).then(|| over / under)
    }
}

/// The placement now, or, `wanting_near`, as soon as the cores are not far apart (bounded); `None`
/// on a machine with one CPU.
fn look(wanting_near: bool) -> Result<Option<Look>, BenchError> {
    let Ok(cpus) = two_cpus() else {
        return Ok(None);
    };
    let start = Instant::now();
    loop {
        let look = Look::now(cpus)?;
        let far = look.placement() == Placement::Far;
        if !wanting_near || !far || start.elapsed() > NEAR_WAIT_MAX {
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

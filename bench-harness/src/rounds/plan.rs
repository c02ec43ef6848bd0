//! What a figure wants measured: cases, the blocks in which they run, and what to compare.

use crate::error::BenchError;
use crate::stats::Samples;

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
    /// Whether the cases always run in their order: a pair, whose first is the floor.
    pub in_order: bool,
}

/// What of a case's samples a ratio compares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Of {
    /// A quantile: 0.5 is the median.
    Quantile(f64),
    /// The mean: of throughputs, since a stall costs what it costs.
    Mean,
}

/// A ratio of two cases' medians (or another value) inside one block.
#[derive(Clone, Debug)]
pub struct RatioOf {
    /// Its stable name.
    pub name: &'static str,
    /// What is compared.
    pub of: Of,
    /// What is divided.
    pub over: Side,
    /// What it is divided by.
    pub under: Side,
}

/// What stands above or below a ratio.
#[derive(Clone, Debug)]
pub enum Side {
    /// A case of the block.
    Case(usize),
    /// The fastest of several cases of the block, in each round: a peer that comes in several
    /// forms. One that has failed does not count; it is named among the failures.
    Fastest(Vec<usize>),
    /// So many ns: the ratio is the other side's own value in a unit.
    Ns(f64),
}

impl From<usize> for Side {
    fn from(case: usize) -> Side {
        Side::Case(case)
    }
}

/// What a figure wants measured.
#[derive(Default)]
pub struct Plan<'a> {
    /// All cases; also the order of the report's rows.
    pub cases: Vec<Case<'a>>,
    /// Which of them run back to back.
    pub blocks: Vec<Block>,
    /// What to compare; all cases of a ratio must share a block.
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
            in_order: false,
        });
    }

    /// Adds a block of cases that the scheduler places as it likes.
    pub fn block(&mut self, cases: &[usize]) {
        self.blocks.push(Block {
            cases: cases.to_vec(),
            near: false,
            in_order: false,
        });
    }

    /// Adds a ratio.
    pub fn ratio(&mut self, name: &'static str, over: usize, under: usize) {
        self.ratios.push(RatioOf {
            name,
            of: Of::Quantile(0.5),
            over: over.into(),
            under: under.into(),
        });
    }

    /// Adds a pair: `under` runs just before `over`, and the ratio is taken inside.
    pub fn pair(&mut self, name: &'static str, of: Of, over: usize, under: usize) {
        self.pair_block(&[under, over]);
        self.ratio_of(name, of, over, under);
    }

    /// Adds a block of cases that always run in their order, and whose placement matters.
    pub fn pair_block(&mut self, cases: &[usize]) {
        self.blocks.push(Block {
            cases: cases.to_vec(),
            near: true,
            in_order: true,
        });
    }

    /// Adds a ratio of something else than medians.
    pub fn ratio_of(
        &mut self,
        name: &'static str,
        of: Of,
        over: impl Into<Side>,
        under: impl Into<Side>,
    ) {
        self.ratios.push(RatioOf {
            name,
            of,
            over: over.into(),
            under: under.into(),
        });
    }

    /// Adds a number that is no quotient of two cases: the median of one, in units of `unit_ns`.
    pub fn value(&mut self, name: &'static str, case: usize, unit_ns: f64) {
        self.ratios.push(RatioOf {
            name,
            of: Of::Quantile(0.5),
            over: case.into(),
            under: Side::Ns(unit_ns),
        });
    }
}

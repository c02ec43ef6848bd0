//! SAND's figure 5c: from the end of one function to the start of the next.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sandpipe_grain::Mode;

use super::{FigureKind, Parts, Setting};
use crate::clock::{pin, unpin, usable_cpus};
use crate::error::BenchError;
use crate::paper;
use crate::probes::wake::{Bell, Cores, one_way};
use crate::python::{self, Python};
use crate::report::Unit;
use crate::rounds::Plan;
use crate::stage::{Grain, Stage};
use crate::stamps::Stamps;
use crate::stats::Samples;

pub(super) const FIGURE: FigureKind = FigureKind {
    id: "5c",
    title: "Function interaction: end of F1 to start of F2",
    source: "SAND, figure 5c",
    measure,
};

const SUBSTITUTIONS: [&str; 6] = [
    "the paper measured Python; its SAND value stands beside every mode",
    "OpenWhisk and Greengrass are not run here: 19.97 and 8.76 ms warm in the paper",
    "the floor of a forked instance is a futex wake and a fork until the child runs, in the same \
     executable or with the same Python modules loaded",
    "a floor's waker stays at work for 10 us after its wake, as a publisher does; one that slept \
     at once would leave its warm core to the woken and lower the floor",
    "5c.pool_over_floor.rust and 5c.ahead_over_pool.rust are taken with all processes on one core, \
     the wake as well",
    "one event at a time with a pause, so that fork and exit keep up; \"saturated\" rows have none",
];

/// Events of each run that are not counted.
const COLD: usize = 10;
/// Instances forked ahead.
const SPARES: u16 = 2;
/// Environment variable that tells the Rust grain how much heap to touch.
const HEAP_VARIABLE: &str = "BENCH_GRAIN_HEAP_MIB";

/// How F2's instance is made.
#[derive(Clone, Copy)]
struct Way {
    mode: Mode,
    spares: u16,
}

const DEMAND: Way = Way {
    mode: Mode::Fork,
    spares: 0,
};
const AHEAD: Way = Way {
    mode: Mode::Fork,
    spares: SPARES,
};
const POOL: Way = Way {
    mode: Mode::Pool,
    spares: 0,
};

fn measure(setting: &Setting<'_>) -> Result<Parts, BenchError> {
    let mut parts = Parts::default();
    parts.substitutions.extend(SUBSTITUTIONS.map(str::to_owned));
    let python = PythonGrain::find(setting);
    let mut plan = Plan::default();
    rust(setting, &mut plan);
    match &python {
        Ok(grain) => python_rows(setting, &mut plan, grain),
        Err(error) => parts.notes.push(format!("all Python rows: {error}")),
    }
    parts.measure(setting, plan, Unit::Us, |case, _| {
        (!case.starts_with("floor"))
            .then(|| paper::mean_ns("5c", "warm", "SAND"))
            .flatten()
    })?;
    Ok(parts)
}

fn rust(setting: &Setting<'_>, plan: &mut Plan<'_>) {
    let pause = Duration::from_millis(4);
    let large_pause = Duration::from_millis(15);
    let events = setting.profile.samples(80);
    let fewer = setting.profile.samples(40);
    let mut case = |name: &str, way: Way, heap_mib: usize, pause: Duration| {
        let samples = if heap_mib == 0 { events } else { fewer };
        let series = if heap_mib == 0 {
            "Rust"
        } else {
            "Rust, 64 MiB heap"
        };
        plan.case(name, series, samples, move |n| {
            interactions(&rust_grain(way, heap_mib)?, n, pause)
        })
    };
    let demand = case("forked on demand", DEMAND, 0, pause);
    let ahead = case("forked ahead", AHEAD, 0, pause);
    let pool = case("pool", POOL, 0, pause);
    let saturated = case("forked ahead, saturated", AHEAD, 0, Duration::ZERO);
    let large_demand = case("forked on demand", DEMAND, 64, large_pause);
    let large_ahead = case("forked ahead", AHEAD, 64, large_pause);
    let wake = plan.case("floor: futex wake", "floor", events, move |n| {
        one_way(Bell::Futex, Cores::Anywhere, pause, n)
    });
    let one_core_pool = plan.case("pool, all on one core", "Rust", events, move |n| {
        on_one_core(|_| interactions(&rust_grain(POOL, 0)?, n, pause))
    });
    let one_core_ahead = plan.case("forked ahead, all on one core", "Rust", events, move |n| {
        on_one_core(|_| interactions(&rust_grain(AHEAD, 0)?, n, pause))
    });
    let one_core_wake = plan.case("floor: futex wake, one core", "floor", events, move |n| {
        on_one_core(|core| one_way(Bell::Futex, Cores::Pinned([core, core]), pause, n))
    });
    let mut floor = |heap_mib: usize, series: &str, pause: Duration| {
        plan.case("floor: futex wake + fork", series, fewer, move |n| {
            rust_floor(heap_mib, n, pause)
        })
    };
    let fork = floor(0, "Rust", pause);
    let large_fork = floor(64, "Rust, 64 MiB heap", large_pause);
    plan.block(&[fork, demand]);
    plan.block(&[wake, pool, ahead]);
    plan.block(&[one_core_wake, one_core_pool, one_core_ahead]);
    plan.block(&[large_fork, large_demand, large_ahead]);
    plan.block(&[saturated]);
    plan.ratio("5c.fork_over_floor.rust", demand, fork);
    plan.ratio("5c.ahead_over_pool.rust", one_core_ahead, one_core_pool);
    plan.ratio("5c.demand_over_ahead.rust_64MiB", large_demand, large_ahead);
    plan.ratio("5c.pool_over_floor.rust", one_core_pool, one_core_wake);
}

fn python_rows<'a>(setting: &Setting<'_>, plan: &mut Plan<'a>, grain: &'a PythonGrain) {
    let pause = Duration::from_millis(12);
    let events = setting.profile.samples(50);
    let mut case = |name: &str, way: Way, pause: Duration| {
        plan.case(name, "Python", events, move |n| {
            interactions(&grain.stage(way), n, pause)
        })
    };
    let demand = case("forked on demand", DEMAND, pause);
    let ahead = case("forked ahead", AHEAD, pause);
    let pool = case("pool", POOL, pause);
    let saturated = case("forked ahead, saturated", AHEAD, Duration::ZERO);
    let fork = plan.case("floor: futex wake + fork", "Python", events, move |n| {
        let (count, pause) = (n.to_string(), pause.as_millis().to_string());
        let module = grain.module.to_string_lossy();
        let arguments = ["--module", &module, "--count", &count, "--pause-ms", &pause];
        grain.python.latencies("fork_floor.py", &arguments)
    });
    plan.block(&[fork, demand, ahead, pool]);
    plan.block(&[saturated]);
    plan.ratio("5c.fork_over_floor.python", demand, fork);
    plan.ratio("5c.ahead_over_pool.python", ahead, pool);
    plan.ratio("5c.demand_over_ahead.python", demand, ahead);
}

/// F2's start minus F1's end, of `count` events with a pause before each.
fn interactions(grain: &Grain, count: usize, pause: Duration) -> Result<Samples, BenchError> {
    let mut stage = Stage::start("bench-5c", &[grain.clone(), grain.clone()])?;
    let mut samples = Samples::new();
    for turn in 0..COLD + count {
        std::thread::sleep(pause);
        let answer = stage.invoke(&[])?;
        let [first, second] = Stamps::of_grains(&answer)?;
        if turn >= COLD {
            samples.record(second.start_ns.saturating_sub(first.end_ns));
        }
    }
    Ok(samples)
}

/// Runs a case with every process of it on one core: where the scheduler may choose, a wake costs
/// 3 or 20 us by whether it meets a halted core, and a ratio says more about that than about us.
fn on_one_core(
    case: impl FnOnce(usize) -> Result<Samples, BenchError>,
) -> Result<Samples, BenchError> {
    let everywhere = usable_cpus();
    let core = everywhere[0];
    pin(core)?;
    let samples = case(core);
    unpin(&everywhere)?;
    samples
}

/// The Rust grain, which lies beside this program.
pub(super) fn rust_program() -> Result<PathBuf, BenchError> {
    let mine = std::env::current_exe().map_err(|e| BenchError::os("find this program", e))?;
    let program = mine.with_file_name("bench-grain");
    if program.is_file() {
        return Ok(program);
    }
    Err(BenchError::missing(
        "the Rust rows",
        format!("there is no {}", program.display()),
        "build it: cargo build --release -p sandpipe-bench",
    ))
}

fn rust_grain(way: Way, heap_mib: usize) -> Result<Grain, BenchError> {
    let program = rust_program()?.to_string_lossy().into_owned();
    Ok(Grain {
        command: vec![program.clone()],
        handler: program,
        mode: way.mode,
        spares: way.spares,
        env: vec![(HEAP_VARIABLE.to_owned(), heap_mib.to_string())],
        reads: vec![],
    })
}

fn rust_floor(heap_mib: usize, count: usize, pause: Duration) -> Result<Samples, BenchError> {
    let output = Command::new(rust_program()?)
        .args(["floor", &count.to_string(), &pause.as_micros().to_string()])
        .env(HEAP_VARIABLE, heap_mib.to_string())
        .output()
        .map_err(|e| BenchError::os("start bench-grain", e))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(BenchError::peer("bench-grain floor", said));
    }
    let said = String::from_utf8_lossy(&output.stdout);
    Ok(python::parse("bench-grain floor", &said)?
        .into_iter()
        .collect())
}

/// The Python grain and its interpreter.
struct PythonGrain {
    python: Python,
    module: PathBuf,
    reads: Vec<PathBuf>,
}

impl PythonGrain {
    fn find(setting: &Setting<'_>) -> Result<PythonGrain, BenchError> {
        let python = Python::with(&setting.root, "sandpipe")?;
        let module = absolute(&setting.root.join("bench-harness/python/bench_grain.py"))?;
        let mut reads = python.prefixes()?;
        // The module sandpipe is a link into the repository.
        reads.push(absolute(&setting.root)?);
        Ok(PythonGrain {
            python,
            module,
            reads,
        })
    }

    fn stage(&self, way: Way) -> Grain {
        let interpreter = self.python.interpreter().to_string_lossy().into_owned();
        Grain {
            command: vec![interpreter, "-m".into(), "sandpipe".into()],
            handler: format!("{}:handle", self.module.display()),
            mode: way.mode,
            spares: way.spares,
            env: vec![],
            reads: self.reads.clone(),
        }
    }
}

fn absolute(path: &Path) -> Result<PathBuf, BenchError> {
    path.canonicalize()
        .map_err(|e| BenchError::os(path.display().to_string(), e))
}

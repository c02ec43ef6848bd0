//! More requests than an application can do: what it still does, and what the rest is told.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::figure_5c::rust_program;
use super::{FigureKind, Parts, Setting};
use crate::app::App;
use crate::clock::now_ns;
use crate::error::BenchError;
use crate::http::Connection;
use crate::load::{Load, run};
use crate::report::{Row, Unit};
use crate::rounds::{Block, Of, Plan};
use crate::stats::Samples;

pub(super) const FIGURE: FigureKind = FigureKind {
    id: "overload",
    title: "Three times the capacity: answers, refusals, memory",
    source: "the paper has none",
    measure,
};

const SUBSTITUTIONS: [&str; 3] = [
    "one pooled grain whose handler sleeps for 10 ms; its capacity is what as many clients as it \
     has room for get, who ask without a pause",
    "the overload is open: requests are due at three times that rate whatever the answers do, on \
     64 connections",
    "agent, grain and load share the machine's CPUs",
];

/// What the application does at once, and holds in all.
const CONCURRENCY: usize = 4;
const ROOM: usize = 8;
const PACE_US: u32 = 10_000;
/// Answers are kept no longer. The overloads before the measured ones last a multiple of it, so
/// that what the agent holds is level when they begin.
const KEPT: Duration = Duration::from_secs(1);
const WARM: Duration = Duration::from_secs(4);
const TIMES: f64 = 3.0;
const CONNECTIONS: usize = 64;
/// Answers of the capacity's run in the quick profile, and requests of the overload.
const ANSWERS: usize = 400;
const REQUESTS: usize = 1200;

/// What the overloads left beside their answers.
#[derive(Default)]
struct Beside {
    /// How long a refusal took, from when the request was due.
    refusals: RefCell<Samples>,
    answered: Cell<u64>,
    offered: Cell<u64>,
}

fn measure(setting: &Setting<'_>) -> Result<Parts, BenchError> {
    let mut parts = Parts::default();
    parts.substitutions.extend(SUBSTITUTIONS.map(str::to_owned));
    let app = start()?;
    let profile = setting.profile;
    let beside = Beside::default();
    // Warm: what it needs for a crowd it has from now on.
    let per_s = rate(&at_capacity(&app, profile.samples(ANSWERS))?);
    let warm = Instant::now() + WARM;
    while Instant::now() < warm {
        overloaded(&app, per_s, profile.samples(REQUESTS), &Beside::default())?;
    }
    let memory = app.resident_bytes();
    let mut plan = Plan::default();
    let capacity = Cell::new(per_s);
    let best = plan.case(
        "between two answers, at capacity",
        "Rust",
        profile.samples(ANSWERS),
        |n| {
            let gaps = at_capacity(&app, n)?;
            capacity.set(rate(&gaps));
            Ok(gaps)
        },
    );
    let case = "between two answers, at three times the capacity";
    let crowded = plan.case(case, "Rust", profile.samples(REQUESTS), |n| {
        overloaded(&app, capacity.get(), n, &beside)
    });
    plan.blocks.push(Block {
        cases: vec![best, crowded],
        near: false,
        in_order: true,
    });
    // The fewer answers, the longer between two of them.
    plan.ratio_of("overload.goodput_over_best", Of::Mean, best, crowded);
    parts.measure(setting, plan, Unit::Ms, |_, _| None)?;
    beside.fill(&mut parts);
    let grown = app.resident_bytes() as f64 / memory as f64;
    parts
        .ratios
        .push(("overload.rss_after_over_before".to_owned(), grown));
    Ok(parts)
}

fn start() -> Result<App, BenchError> {
    let program = rust_program()?;
    let text = format!(
        "name = \"bench-overload\"\n[workflow]\nchain = [\"f\"]\n[limits]\nmax_in_flight = {ROOM}\n\
         deadline_ms = {}\n\
         [[grain]]\nname = \"f\"\nruntime = \"rust\"\nhandler = {program:?}\nmode = \"pool\"\n\
         concurrency = {CONCURRENCY}\nenv = {{ BENCH_GRAIN_PACE_US = \"{PACE_US}\" }}\n",
        KEPT.as_millis()
    );
    App::start("bench-overload", &text)
}

/// Answers a second of these times between two.
fn rate(gaps: &Samples) -> f64 {
    1e9 / gaps.mean_ns()
}

/// The times between `count` answers to clients that just fill its room.
fn at_capacity(app: &App, count: usize) -> Result<Samples, BenchError> {
    let next = AtomicUsize::new(0);
    let mut arrivals = std::thread::scope(|scope| {
        let client = || {
            let mut connection = Connection::open(&app.address)?;
            let mut arrivals = Vec::new();
            while next.fetch_add(1, Ordering::Relaxed) < count {
                let answer = connection.post(&app.path, &[], b"")?;
                // Its predecessor may not have been counted out yet.
                match answer.status {
                    200 => arrivals.push(now_ns()),
                    429 => {}
                    _ => return Err(unexpected(&answer)),
                }
            }
            Ok(arrivals)
        };
        let clients: Vec<_> = (0..ROOM).map(|_| scope.spawn(client)).collect();
        let join = |client: std::thread::ScopedJoinHandle<'_, _>| {
            client.join().expect("a client does not panic")
        };
        let lists: Result<Vec<Vec<u64>>, BenchError> = clients.into_iter().map(join).collect();
        lists.map(|lists| lists.concat())
    })?;
    Ok(gaps(&mut arrivals))
}

/// The times between two answers when requests come at three times `per_s`.
fn overloaded(app: &App, per_s: f64, count: usize, beside: &Beside) -> Result<Samples, BenchError> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "some thousands a second"
    )]
    let rate_per_s = (TIMES * per_s).round() as u32;
    let answers = run(&Load {
        address: &app.address,
        path: &app.path,
        body: b"",
        rate_per_s,
        count,
        connections: CONNECTIONS,
    })?;
    let mut arrivals = Vec::new();
    for one in &answers {
        match (one.answer.status, one.answer.header("retry-after")) {
            (200, _) => arrivals.push(one.arrived_ns),
            (429, Some(_)) => {
                let took = one.arrived_ns.saturating_sub(one.due_ns);
                beside.refusals.borrow_mut().record(took);
            }
            _ => return Err(unexpected(&one.answer)),
        }
    }
    beside
        .answered
        .set(beside.answered.get() + arrivals.len() as u64);
    beside.offered.set(beside.offered.get() + count as u64);
    Ok(gaps(&mut arrivals))
}

fn unexpected(answer: &crate::http::Answer) -> BenchError {
    let detail = format!("answered {}: {}", answer.status, answer.text());
    BenchError::peer("the application", detail)
}

fn gaps(arrivals: &mut [u64]) -> Samples {
    arrivals.sort_unstable();
    arrivals.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

impl Beside {
    fn fill(self, parts: &mut Parts) {
        let refusals = self.refusals.into_inner();
        parts.notes.push(format!(
            "of {} requests at three times the capacity {} were answered and {} refused",
            self.offered.get(),
            self.answered.get(),
            refusals.count()
        ));
        let case = "from due until refused (429), at three times the capacity";
        let row = Row::new(case, "Rust", Unit::Ms, &refusals, None);
        parts.rows.push((row, refusals));
    }
}

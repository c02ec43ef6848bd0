//! What an application at full load does to its neighbour.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::figure_5c::rust_program;
use super::{FigureKind, Parts, Setting};
use crate::app::App;
use crate::error::BenchError;
use crate::http::Connection;
use crate::load::{Load, run};
use crate::raw::First;
use crate::report::Unit;
use crate::rounds::{Of, Plan};
use crate::stats::Samples;

pub(super) const FIGURE: FigureKind = FigureKind {
    id: "neighbours",
    title: "An application's latency while its neighbour is at full load",
    source: "the paper has none",
    measure,
};

const SUBSTITUTIONS: [&str; 4] = [
    "each application has an agent of its own",
    "a latency counts from the moment a request was due until its answer is there (open loop, \
     corrected for coordinated omission)",
    "the neighbour is asked by eight clients without a pause; agents, grains and both loads share \
     the machine's CPUs",
    "whoever measures runs before every other thread (SCHED_FIFO), in both cases: on a host of its \
     own it would not stand in line behind the neighbour's clients",
];

/// Events a second of the application that is measured.
const RATE_PER_S: u32 = 200;
const CONNECTIONS: usize = 16;
/// Clients of its neighbour, and what it can do at once.
const CLIENTS: usize = 8;
const CONCURRENCY: u16 = 4;

fn measure(setting: &Setting<'_>) -> Result<Parts, BenchError> {
    let mut parts = Parts::default();
    parts.substitutions.extend(SUBSTITUTIONS.map(str::to_owned));
    let events = setting.profile.samples(400);
    let (measured, neighbour) = (start("bench-measured")?, start("bench-neighbour")?);
    let answered = AtomicU64::new(0);
    let mut plan = Plan::default();
    let quiet = plan.case("neighbour idle", "Rust", events, |n| {
        latencies(&measured, n)
    });
    let loaded = plan.case("neighbour at full load", "Rust", events, |n| {
        beside(&neighbour, &answered, || latencies(&measured, n))
    });
    plan.block(&[quiet, loaded]);
    plan.ratio_of(
        "neighbours.p99_loaded_over_quiet",
        Of::Quantile(0.99),
        loaded,
        quiet,
    );
    plan.ratio("neighbours.p50_loaded_over_quiet", loaded, quiet);
    parts.measure(setting, plan, Unit::Us, |_, _| None)?;
    let note = format!("the neighbour answered {} events", answered.into_inner());
    parts.notes.push(note);
    if let Some(why) = First::in_line().refusal() {
        let note = format!(
            "whoever measures stood in line with the neighbour's clients: SCHED_FIFO is refused \
             ({why}); run as root, or raise RLIMIT_RTPRIO"
        );
        parts.notes.push(note);
    }
    Ok(parts)
}

fn start(name: &str) -> Result<App, BenchError> {
    let program = rust_program()?;
    let text = format!(
        "name = \"{name}\"\n[workflow]\nchain = [\"f\"]\n[[grain]]\nname = \"f\"\n\
         runtime = \"rust\"\nhandler = {program:?}\nmode = \"pool\"\nconcurrency = {CONCURRENCY}\n"
    );
    App::start(name, &text)
}

fn latencies(app: &App, count: usize) -> Result<Samples, BenchError> {
    let _first = First::in_line();
    let answered = run(&Load {
        address: &app.address,
        path: &app.path,
        body: b"",
        rate_per_s: RATE_PER_S,
        count,
        connections: CONNECTIONS,
    })?;
    let latency = |one: crate::load::Answered| match one.answer.status {
        200 => Ok(one.arrived_ns.saturating_sub(one.due_ns)),
        other => Err(BenchError::peer(
            "the application",
            format!("answered {other}"),
        )),
    };
    answered.into_iter().map(latency).collect()
}

/// Does `work` while the neighbour is asked for as much as it can do.
fn beside<T>(
    neighbour: &App,
    answered: &AtomicU64,
    work: impl FnOnce() -> Result<T, BenchError>,
) -> Result<T, BenchError> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| scope.spawn(|| ask_until(neighbour, &over, answered)))
            .collect();
        let result = work();
        over.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().expect("a client does not panic")?;
        }
        result
    })
}

fn ask_until(app: &App, over: &AtomicBool, answered: &AtomicU64) -> Result<(), BenchError> {
    let mut connection = Connection::open(&app.address)?;
    while !over.load(Ordering::Relaxed) {
        let answer = connection.post(&app.path, &[], b"")?;
        if answer.status != 200 {
            let detail = format!("answered {}: {}", answer.status, answer.text());
            return Err(BenchError::peer("the neighbour", detail));
        }
        answered.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

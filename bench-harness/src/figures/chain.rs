//! What the backup costs: a chain of three pooled grains under load, with it and without.

use super::figure_5c::rust_program;
use super::{FigureKind, Parts, Setting};
use crate::app::App;
use crate::error::BenchError;
use crate::load::{Answered, Load, run};
use crate::report::Unit;
use crate::rounds::Plan;
use crate::stamps::Stamps;
use crate::stats::Samples;

pub(super) const FIGURE: FigureKind = FigureKind {
    id: "chain",
    title: "Three pooled grains at 5,000 events a second, backup on and off",
    source: "the paper has none",
    measure,
};

const SUBSTITUTIONS: [&str; 3] = [
    "a latency counts from the moment a request was due until the last handler's end (open loop, \
     corrected for coordinated omission)",
    "front door, agent, three grains and the load share the machine's CPUs",
    "backup on the embedded global bus",
];

/// Events a second.
const RATE_PER_S: u32 = 5_000;
/// Requests under way at once, at most.
const CONNECTIONS: usize = 64;
/// Instances that each grain has.
const CONCURRENCY: u16 = 1;
const GRAINS: [&str; 3] = ["f1", "f2", "f3"];
/// The rate was held if the last answer came so soon after it was due.
const BEHIND_NS_MAX: u64 = 100_000_000;

fn measure(setting: &Setting<'_>) -> Result<Parts, BenchError> {
    let mut parts = Parts::default();
    parts.substitutions.extend(SUBSTITUTIONS.map(str::to_owned));
    let events = setting.profile.samples(3000);
    let (with, without) = (start("async")?, start("none")?);
    let behind = std::cell::Cell::new(0_u32);
    let mut plan = Plan::default();
    let mut case = |name: &str, app: &'_ App| {
        let (address, path) = (app.address.clone(), app.path.clone());
        let behind = &behind;
        plan.case(name, "Rust", events, move |n| {
            latencies(&address, &path, n, behind)
        })
    };
    let off = case("no backup", &without);
    let on = case("backup, async", &with);
    plan.block(&[off, on]);
    plan.ratio("chain.async_over_none.p50", on, off);
    parts.measure(setting, plan, Unit::Us, |_, _| None)?;
    if behind.get() > 0 {
        parts.notes.push(format!(
            "{} runs could not keep {RATE_PER_S} events a second on this machine: their latencies \
             are a queue's, not the path's",
            behind.get()
        ));
    }
    Ok(parts)
}

fn start(backup: &str) -> Result<App, BenchError> {
    let program = rust_program()?;
    let mut text =
        format!("name = \"bench-chain\"\n[workflow]\nchain = {GRAINS:?}\nbackup = \"{backup}\"\n");
    for grain in GRAINS {
        text.push_str(&format!(
            "[[grain]]\nname = \"{grain}\"\nruntime = \"rust\"\nhandler = {program:?}\n\
             mode = \"pool\"\nconcurrency = {CONCURRENCY}\n"
        ));
    }
    App::start("bench-chain", &text)
}

fn latencies(
    address: &str,
    path: &str,
    count: usize,
    behind: &std::cell::Cell<u32>,
) -> Result<Samples, BenchError> {
    let load = Load {
        address,
        path,
        body: b"",
        rate_per_s: RATE_PER_S,
        count,
        connections: CONNECTIONS,
    };
    let answered = run(&load)?;
    if answered
        .last()
        .is_some_and(|last| last.arrived_ns - last.due_ns > BEHIND_NS_MAX)
    {
        behind.set(behind.get() + 1);
    }
    answered.iter().map(latency).collect()
}

/// From due until the last handler's end.
fn latency(answered: &Answered) -> Result<u64, BenchError> {
    let answer = &answered.answer;
    if answer.status != 200 {
        let detail = format!("answered {}: {}", answer.status, answer.text());
        return Err(BenchError::peer("the chain", detail));
    }
    let [_, _, last] = Stamps::of_grains(&answer.body)?;
    Ok(last.end_ns.saturating_sub(answered.due_ns))
}

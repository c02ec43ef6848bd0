//! The machine's own prices, without Sandpipe: what every other figure stands on.

use super::{FigureKind, Parts, Setting};
use crate::clock::two_cpus;
use crate::error::BenchError;
use crate::probes::cache_line;
use crate::probes::fork::{Heap, until_child_runs};
use crate::probes::wake::{Bell, Cores, SETTLE, one_way};
use crate::report::Unit;
use crate::rounds::Plan;

pub(super) const FIGURE: FigureKind = FigureKind {
    id: "floor",
    title: "What the machine charges: cache line, wake-up, fork",
    source: "floor probes; the paper has none",
    measure,
};

fn measure(setting: &Setting<'_>) -> Result<Parts, BenchError> {
    let cpus = two_cpus()?;
    let same = [cpus[0], cpus[0]];
    let wakes = setting.profile.samples(300);
    let forks = setting.profile.samples(60);
    let mut plan = Plan::default();
    let line = plan.case(
        "cache line, round trip",
        "floor",
        setting.profile.samples(200),
        |n| cache_line::round_trips(cpus, n),
    );
    let mut cross = vec![line];
    let mut alike = Vec::new();
    for (bell, name) in [
        (Bell::Futex, "futex wake, one way"),
        (Bell::Eventfd, "eventfd, one way"),
        (Bell::Pipe, "pipe, one way, 1 KiB"),
    ] {
        cross.push(
            plan.case(&format!("{name}, cross core"), "floor", wakes, move |n| {
                one_way(bell, Cores::Pinned(cpus), SETTLE, n)
            }),
        );
        alike.push(
            plan.case(&format!("{name}, same core"), "floor", wakes, move |n| {
                one_way(bell, Cores::Pinned(same), SETTLE, n)
            }),
        );
    }
    for (mib, name) in [
        (0, "fork until the child runs"),
        (64, "the same, 64 MiB heap"),
    ] {
        alike.push(plan.case(name, "floor", forks, move |n| {
            until_child_runs(&Heap::touched(mib), n)
        }));
    }
    plan.near_block(&cross);
    plan.block(&alike);
    let mut parts = Parts::default();
    parts.measure(setting, plan, Unit::Us, |_, _| None)?;
    Ok(parts)
}

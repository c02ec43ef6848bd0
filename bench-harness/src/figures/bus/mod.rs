//! The local bus alone, beside its floors and its peers.

mod counts;
mod crowd;
mod local;
mod one_way;
mod parked;
mod peers;
mod round_trips;

use super::{FigureKind, Parts, Profile, Setting};
use crate::clock::two_cpus;
use crate::error::BenchError;
use crate::report::Unit;
use crate::rounds::{Of, Plan};
use crate::stats::Samples;
use peers::Peers;

pub(super) const FIGURE: FigureKind = FigureKind {
    id: "bus",
    title: "The local bus beside the least that could work, and its peers",
    source: "the paper has none",
    measure,
};

const SUBSTITUTIONS: [&str; 6] = [
    "every message is filled by its sender and read by its receiver, except where its case says \
     how many bytes are touched; acknowledgements are committed with the answers",
    "Aeron C by its C client and driver (the crates rusteron-*), Aeron Java by its Java client and \
     driver; the driver is a third process that no core is pinned for; exclusive publications, \
     terms of 16 MiB, MTU 65504; no row of 16 MiB",
    "a ratio over Aeron is, in each block, over the faster of the two by what the ratio compares",
    "iceoryx2 with publish-subscribe of byte slices, both sides polling",
    "one way: the time of 1000 messages at the consumer, which is alone on its core; all producers \
     share the other; nothing is dropped",
    "the agent of the row with its copy is played by the pinging process, which empties the \
     agent's queue after each sample",
];

/// A plan under construction.
struct Sheet<'a> {
    plan: Plan<'a>,
    profile: Profile,
    cpus: [usize; 2],
}

impl<'a> Sheet<'a> {
    /// Adds a case that takes `quick` samples a round in the quick profile.
    fn case(
        &mut self,
        case: &str,
        series: &str,
        quick: usize,
        run: impl FnMut(usize) -> Result<Samples, BenchError> + 'a,
    ) -> usize {
        let samples = self.profile.samples(quick);
        self.plan.case(case, series, samples, run)
    }

    /// A pair whose medians are compared.
    fn median(&mut self, name: &'static str, over: usize, under: usize) {
        self.plan.pair(name, Of::Quantile(0.5), over, under);
    }
}

fn measure(setting: &Setting<'_>) -> Result<Parts, BenchError> {
    let peers = Peers::find(&setting.root);
    let mut sheet = Sheet {
        plan: Plan::default(),
        profile: setting.profile,
        cpus: two_cpus()?,
    };
    let mut parts = Parts::default();
    parts.substitutions.extend(SUBSTITUTIONS.map(str::to_owned));
    parts.substitutions.push(parked::company());
    parts.notes.extend(peers.missing.iter().cloned());
    round_trips::add(&mut sheet, &peers);
    parked::add(&mut sheet);
    one_way::add(&mut sheet, &peers);
    crowd::add(&mut sheet);
    counts::add(&mut sheet);
    let outcome = parts.measure(setting, sheet.plan, Unit::Us, |_, _| None)?;
    // The goals hold for near cores; the other placements stand beside them.
    for (name, placement, value) in outcome.elsewhere {
        parts.ratios.push((format!("{name}@{placement}"), value));
    }
    counts::count(&mut parts);
    Ok(parts)
}

/// A size as the rows name it.
fn size(bytes: usize) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

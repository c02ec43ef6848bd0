//! One way: as much as goes through.

use sandpipe_link::one_way::Stream;
use sandpipe_link::program::{Kind, Task};

use super::local::{self, Lane};
use super::peers::{Library, Peers, task};
use super::round_trips::peer_cases;
use super::{Profile, Sheet, size};
use crate::rounds::{Of, Side};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// A size, and how it is streamed.
struct Row {
    len: usize,
    samples: usize,
    together: usize,
    /// Messages that a producer's lane holds: 256 as in an application by default (and in the queue
    /// of the peer iceoryx2), of large ones no more than stay in the caches.
    lane_slots: u32,
    /// Messages of one commit where they are published in batches.
    batch: usize,
}

const ROWS: [Row; 4] = [
    Row {
        len: 64,
        samples: 100,
        together: 20_000,
        lane_slots: 256,
        batch: 16,
    },
    Row {
        len: KIB,
        samples: 60,
        together: 2000,
        lane_slots: 256,
        batch: 16,
    },
    Row {
        len: 64 * KIB,
        samples: 40,
        together: 100,
        lane_slots: 64,
        batch: 16,
    },
    Row {
        len: MIB,
        samples: 30,
        together: 10,
        lane_slots: 4,
        batch: 4,
    },
];
/// Bytes that go through a link before anything counts: more than its buffers hold.
const WARM_UP_BYTES: usize = 96 * MIB;
/// Messages that come first, at the most.
const WARM_UP_MAX: usize = 20_000;
const PRODUCERS: [u16; 3] = [1, 2, 8];

pub(super) fn add<'a>(sheet: &mut Sheet<'a>, peers: &'a Peers) {
    for row in &ROWS {
        let own = row.own(sheet);
        let [one, .., eight] = own;
        let [single, batch] = one;
        let mut paired = vec![single, batch];
        if row.len == 64 {
            let [eight_single, _] = eight;
            sheet.plan.pair_block(&[single, eight_single]);
            throughput(sheet, "bus.producers.8_over_1", eight_single, single);
        }
        for (library, forms) in peers.carrying(row.len) {
            let (samples, together) = (row.samples / 4, row.together(sheet));
            let task = Task {
                warm_up: row.warm_up(sheet),
                ..task(Kind::OneWay, sheet.cpus, row.len, samples, together)
            };
            let theirs = peer_cases(sheet, &row.name(), forms, &task);
            sheet
                .plan
                .pair_block(&[&theirs[..], &[single, batch]].concat());
            paired.clear();
            let theirs = Side::Fastest(theirs);
            match (row.len, library) {
                (64, Library::Aeron) => {
                    let name = "bus.oneway_64.over_aeron.single";
                    throughput(sheet, name, single, theirs.clone());
                    throughput(sheet, "bus.oneway_64.over_aeron.batch", batch, theirs);
                }
                (64, Library::Iceoryx2) => {
                    throughput(sheet, "bus.oneway_64.over_iceoryx2", batch, theirs);
                }
                (0x1_0000, Library::Aeron) => {
                    throughput(sheet, "bus.oneway_64KiB.over_aeron", single, theirs);
                }
                (MIB, Library::Iceoryx2) => {
                    throughput(sheet, "bus.oneway_1MiB.over_iceoryx2", single, theirs);
                }
                _ => {}
            }
        }
        if !paired.is_empty() {
            sheet.plan.pair_block(&paired);
        }
        for cases in &own[1..] {
            sheet.plan.pair_block(cases);
        }
    }
}

/// Messages a second over messages a second: the inverse of their times.
fn throughput(sheet: &mut Sheet<'_>, name: &'static str, over: usize, under: impl Into<Side>) {
    sheet.plan.ratio_of(name, Of::Mean, under, over);
}

impl Row {
    fn name(&self) -> String {
        format!("1000 × {} one way", size(self.len))
    }

    /// Messages timed together: fewer where nobody looks at the time.
    fn together(&self, sheet: &Sheet<'_>) -> usize {
        match sheet.profile {
            Profile::Smoke => self.together.div_ceil(20),
            _ => self.together,
        }
    }

    /// Messages that come first.
    fn warm_up(&self, sheet: &Sheet<'_>) -> usize {
        match sheet.profile {
            Profile::Smoke => self.together(sheet),
            _ => (WARM_UP_BYTES / self.len).min(WARM_UP_MAX),
        }
    }

    /// Our cases: for each count of producers, published one at a time and in batches.
    fn own(&'static self, sheet: &mut Sheet<'_>) -> [[usize; 2]; PRODUCERS.len()] {
        let cpus = sheet.cpus;
        let (together, warm_up) = (self.together(sheet), self.warm_up(sheet));
        PRODUCERS.map(|producers| {
            // Rows that stand in fewer pairs need fewer samples.
            let quick = match producers {
                1 => self.samples,
                _ => self.samples / 2,
            };
            [1, self.batch].map(|batch| {
                let lane = Lane {
                    slots: self.lane_slots,
                    batch,
                    producers,
                };
                let published = match batch {
                    1 => "one at a time".to_owned(),
                    _ => format!("by {batch}"),
                };
                let plural = if producers == 1 { "" } else { "s" };
                let name = format!(
                    "{}, {producers} producer{plural}, {published}, lane of {}",
                    self.name(),
                    self.lane_slots
                );
                sheet.case(&name, "Sandpipe", quick, move |samples| {
                    let stream = Stream {
                        len: self.len,
                        samples,
                        together,
                        warm_up,
                    };
                    local::one_way(cpus, stream, lane)
                })
            })
        })
    }
}

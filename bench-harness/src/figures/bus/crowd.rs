//! More processes than cores: fan-out, and a circle of eight grains.

use std::collections::VecDeque;

use sandpipe::{Bus, FamilyIndex, Mapping, Topology};
use sandpipe_link::round_trip::{Trips, echo};
use sandpipe_link::{Link, now_ns, number};

use super::Sheet;
use super::local::{FIRST, family, topology};
use crate::clock::{die_with_parent, pin};
use crate::crew::{self, Member};
use crate::error::BenchError;
use crate::links::Results;
use crate::links::stream::{StreamEnd, wide_pipe};
use crate::port::{Habit, Port, Wait};
use crate::raw::fork;
use crate::rounds::Of;
use crate::stats::Samples;

const LEN: usize = 64;
const LANE_SLOTS: u32 = 64;
const GRAINS: u16 = 8;
/// Samples of a round.
const FANS: usize = 500;
const LAPS: usize = 600;
/// Laps that come first and are not counted.
const COLD: usize = 40;

pub(super) fn add(sheet: &mut Sheet<'_>) {
    let [first, second] = sheet.cpus;
    let fans = [1, 2, 8].map(|leaves| {
        let plural = if leaves == 1 { "" } else { "s" };
        let name = format!("fan-out to {leaves} reader{plural} and all answers, 64 B");
        sheet.case(&name, "Sandpipe", FANS, move |n| {
            fan_out([first, second], leaves, n)
        })
    });
    sheet.plan.pair_block(&fans);
    let mut pair = |name: &str, under_way| {
        let pipe = sheet.case(name, "pipe", LAPS, move |n| {
            pipes([first, second], under_way, n)
        });
        let own = sheet.case(name, "Sandpipe", LAPS, move |n| {
            circle([first, second], under_way, n)
        });
        [pipe, own]
    };
    let chain = pair("chain of 8 grains on 2 cores, 1 event under way", 1);
    let crowd = pair("chain of 8 grains on 2 cores, 8 events under way", 8);
    sheet.plan.pair_block(&chain);
    let [pipe, own] = crowd;
    let tail = Of::Quantile(0.99);
    sheet
        .plan
        .pair("bus.oversubscribed.8_grains_p99_over_pipe", tail, own, pipe);
}

/// One commit shows a message to each of `leaves` readers, all on the other core; a sample is the
/// time until all have answered.
fn fan_out(cpus: [usize; 2], leaves: u16, samples: usize) -> Result<Samples, BenchError> {
    let readers: Vec<FamilyIndex> = (2..leaves + 2).map(FamilyIndex).collect();
    let mut families = vec![
        family(1, &[], 2, vec![]),
        family(1, &readers, LANE_SLOTS, vec![]),
    ];
    families.extend(
        readers
            .iter()
            .map(|_| family(1, &[FIRST], LANE_SLOTS, vec![])),
    );
    let results = Results::new(samples)?;
    let trips = Trips::busy(LEN, samples, 1);
    let hub = Member::new(FIRST, cpus[0], |seat| {
        let mut port = Port::new(&seat.bus, Habit::to(readers[0], LEN));
        let mut message = [1; LEN];
        for turn in 1..=trips.all() {
            number(&mut message, turn as u64);
            let start = now_ns();
            for reader in &readers {
                port.turn_to(*reader);
                port.stage(&message)?;
            }
            port.commit();
            for _ in &readers {
                port.receive()?;
            }
            if let Some(index) = (turn - 1).checked_sub(trips.warm_up()) {
                results.put(index, now_ns() - start);
            }
        }
        Ok(())
    });
    let wait = if leaves == 1 { Wait::Spin } else { Wait::Yield };
    let leaf = |&reader: &FamilyIndex| {
        Member::new(reader, cpus[1], move |seat| {
            let habit = Habit {
                wait,
                ..Habit::to(FIRST, LEN)
            };
            echo(&mut Port::new(&seat.bus, habit), trips)
        })
    };
    let members = std::iter::once(hub).chain(readers.iter().map(leaf));
    crew::run(topology(families)?, members.collect())?;
    Ok(results.samples())
}

/// Sends events into a circle and takes them out at its end, `under_way` at once; a sample is an
/// event's way through all grains.
fn circulate<L: Link>(
    link: &mut L,
    under_way: usize,
    samples: usize,
    mut sample: impl FnMut(usize, u64),
) -> Result<(), L::Error> {
    let all = COLD + samples;
    let mut message = [1; LEN];
    let mut starts = VecDeque::with_capacity(under_way);
    let mut sent = 0;
    for turn in 0..all {
        while sent < all && starts.len() < under_way {
            sent += 1;
            number(&mut message, sent as u64);
            starts.push_back(now_ns());
            link.send(&message)?;
        }
        let seen = link.receive()?;
        let now = now_ns();
        let expected = turn as u64 + 1;
        if seen.first != expected {
            return Err(L::out_of_order(expected, seen));
        }
        let start = starts.pop_front().unwrap_or(now);
        if let Some(index) = turn.checked_sub(COLD) {
            sample(index, now - start);
        }
    }
    Ok(())
}

/// Hands every event on.
fn relay<L: Link>(link: &mut L, samples: usize) -> Result<(), L::Error> {
    let mut message = [1; LEN];
    for _ in 0..COLD + samples {
        number(&mut message, link.receive()?.first);
        link.send(&message)?;
    }
    Ok(())
}

/// A circle of grains that sleep whenever nothing is there, every other one on the same core.
fn circle(cpus: [usize; 2], under_way: usize, samples: usize) -> Result<Samples, BenchError> {
    let results = Results::new(samples)?;
    let port = |bus: &Bus<Mapping>, to| {
        let habit = Habit {
            wait: Wait::Park,
            ..Habit::to(to, LEN)
        };
        Port::new(bus, habit)
    };
    let next = |grain: u16| FamilyIndex(grain % GRAINS + 1);
    let member = |grain: u16| {
        let cpu = cpus[usize::from(grain % 2)];
        let (port, results) = (&port, &results);
        Member::new(FamilyIndex(grain), cpu, move |seat| {
            let mut port = port(&seat.bus, next(grain));
            if grain == 1 {
                circulate(&mut port, under_way, samples, |index, ns| {
                    results.put(index, ns)
                })
            } else {
                relay(&mut port, samples)
            }
        })
    };
    crew::run(circle_topology(next)?, (1..=GRAINS).map(member).collect())?;
    Ok(results.samples())
}

fn circle_topology(next: impl Fn(u16) -> FamilyIndex) -> Result<Topology, BenchError> {
    let mut families = vec![family(1, &[], 2, vec![])];
    families.extend((1..=GRAINS).map(|grain| family(1, &[next(grain)], LANE_SLOTS, vec![])));
    topology(families)
}

/// The same over pipes.
fn pipes(cpus: [usize; 2], under_way: usize, samples: usize) -> Result<Samples, BenchError> {
    let results = Results::new(samples)?;
    let mut reads = VecDeque::new();
    let mut writes = Vec::new();
    for _ in 0..GRAINS {
        let (read, write) = wide_pipe()?;
        reads.push_back(read);
        writes.push(write);
    }
    // Grain i writes into pipe i and reads from the one before it.
    reads.rotate_right(1);
    let mut grains = Vec::new();
    for (index, (read, write)) in reads.into_iter().zip(writes).enumerate() {
        let mut end = StreamEnd::new(read, write, LEN);
        let results = &results;
        grains.push(fork(move || {
            die_with_parent();
            let run = pin(cpus[(index + 1) % 2]).and_then(|()| match index {
                0 => circulate(&mut end, under_way, samples, |i, ns| results.put(i, ns)),
                _ => relay(&mut end, samples),
            });
            i32::from(run.is_err())
        })?);
    }
    for grain in grains {
        match grain.wait()? {
            Some(0) => {}
            end => return Err(BenchError::peer("a grain", format!("ended with {end:?}"))),
        }
    }
    Ok(results.samples())
}

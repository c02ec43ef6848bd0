//! What is counted and not timed, and the time to attach.

use rustix::fs::fstat;
use sandpipe::{FamilyIndex, FamilySpec, SlotIndex};
use sandpipe_link::Link;

use super::local::{FIRST, SECOND, chunks, family, topology};
use super::{Parts, Sheet};
use crate::clock::{now_ns, two_cpus};
use crate::crew::{self, Member};
use crate::error::BenchError;
use crate::links::Results;
use crate::port::{Habit, Port};
use crate::raw::{Stretch, count_calls, fork, own_private_pages, page_faults};
use crate::stats::Samples;

const LANE_SLOTS: u32 = 64;
/// Attached pairs a round.
const ATTACHED: usize = 10;
/// Messages whose system calls are counted.
const MESSAGES: u64 = 1000;

pub(super) fn add(sheet: &mut Sheet<'_>) {
    let cpus = sheet.cpus;
    let case = sheet.case("attach two processes", "Sandpipe", ATTACHED, move |n| {
        (0..n)
            .map(|_| attach(cpus))
            .collect::<Result<Samples, BenchError>>()
    });
    sheet.plan.block(&[case]);
}

/// Adds the counts, each as a number by its name.
pub(super) fn count(parts: &mut Parts) {
    let mut put = |name: &str, counted: Result<f64, BenchError>| match counted {
        Ok(value) => parts.ratios.push((name.to_owned(), value)),
        Err(error) => parts.notes.push(format!("{name}: {error}")),
    };
    put("bus.publish_syscalls_awake", publish_syscalls());
    put(
        "bus.first_publish_after_fork.faults",
        first_publish_faults(),
    );
    put("bus.memory.idle_queue_bytes", idle_queue_bytes());
    put("bus.memory.idle_lane_bytes", idle_lane_bytes());
}

/// From before the fork of two families' processes until both are attached and have ended.
fn attach(cpus: [usize; 2]) -> Result<u64, BenchError> {
    let topology = topology(vec![
        family(1, &[], 2, vec![]),
        family(1, &[SECOND], LANE_SLOTS, chunks(1024, 64)),
        family(1, &[FIRST], LANE_SLOTS, chunks(1024, 64)),
    ])?;
    let done = Results::new(2)?;
    let start = now_ns();
    let member = |family: FamilyIndex, index: usize| {
        let done = &done;
        Member::new(family, cpus[index], move |_| {
            done.put(index, now_ns() - start);
            Ok(())
        })
    };
    crew::run(topology, vec![member(FIRST, 0), member(SECOND, 1)])?;
    Ok(done.samples().quantile_ns(1.0) as u64)
}

/// System calls of messages to a receiver that is awake: 64 bytes in the lane, 1 KiB in a chunk.
#[expect(clippy::cast_precision_loss, reason = "a few thousand")]
fn publish_syscalls() -> Result<f64, BenchError> {
    let cpus = two_cpus()?;
    let topology = topology(vec![
        family(1, &[], 2, vec![]),
        family(1, &[SECOND], LANE_SLOTS, chunks(1024, 80)),
        family(1, &[], 2, vec![]),
    ])?;
    let sender = Member::new(FIRST, cpus[0], |seat| {
        let mut port = Port::new(&seat.bus, Habit::to(SECOND, 64));
        let stretch = Stretch::new()?;
        stretch.mark();
        let mut sent = Ok(());
        for _ in 0..MESSAGES {
            sent = sent.and_then(|()| port.send(&[1; 64]));
            sent = sent.and_then(|()| port.send(&[1; 1024]));
        }
        stretch.mark();
        sent
    });
    let receiver = Member::new(SECOND, cpus[1], |seat| {
        let mut port = Port::new(&seat.bus, Habit::to(FIRST, 64));
        for _ in 0..2 * MESSAGES {
            port.receive()?;
        }
        Ok(())
    });
    let (_guardian, children) = crew::start(topology, vec![receiver, sender])?;
    let calls = count_calls(&children[1])?;
    crew::finish(children)?;
    Ok(calls as f64)
}

/// Page faults in shared memory from an instance's fork until its first message is out. Its
/// worker has made its end of the bus before, as a grain's worker does.
fn first_publish_faults() -> Result<f64, BenchError> {
    let cpus = two_cpus()?;
    let topology = topology(vec![
        family(1, &[], 2, vec![]),
        family(2, &[SECOND], LANE_SLOTS, vec![]),
        family(1, &[], 2, vec![]),
    ])?;
    let faults = Results::new(1)?;
    let worker = Member::new(FIRST, cpus[0], |seat| {
        let habit = Habit {
            slot: SlotIndex(1),
            ..Habit::to(SECOND, 64)
        };
        let mut port = Port::new(&seat.bus, habit);
        let instance = fork(|| {
            let published = own_private_pages().and_then(|()| {
                let before = page_faults()?;
                seat.bus.touch_slot(SlotIndex(1));
                port.send(&[1; 64])?;
                faults.put(0, page_faults()? - before);
                Ok(())
            });
            i32::from(published.is_err())
        })?;
        match instance.wait()? {
            Some(0) => Ok(()),
            end => Err(BenchError::peer(
                "an instance",
                format!("ended with {end:?}"),
            )),
        }
    });
    let receiver = Member::new(SECOND, cpus[1], |_| Ok(()));
    crew::run(topology, vec![receiver, worker])?;
    Ok(faults.samples().mean_ns())
}

/// Memory that one more idle queue takes, the family's segment with it.
fn idle_queue_bytes() -> Result<f64, BenchError> {
    let one = || family(1, &[], 2, vec![]);
    let without = allocated(vec![one(), one()])?;
    Ok(allocated(vec![one(), one(), one()])? - without)
}

/// Memory that one more idle lane of 64 messages takes on both its sides.
fn idle_lane_bytes() -> Result<f64, BenchError> {
    const MORE: u16 = 16;
    let lanes = |slots| {
        let target = family(1, &[], 2, vec![]);
        let families = vec![
            family(1, &[], 2, vec![]),
            family(slots, &[SECOND], LANE_SLOTS, vec![]),
            target,
        ];
        allocated(families)
    };
    Ok((lanes(1 + MORE)? - lanes(1)?) / f64::from(MORE))
}

/// Bytes that the segments of all families but the agent occupy once everybody has attached.
#[expect(clippy::cast_precision_loss, reason = "below 2^53")]
fn allocated(families: Vec<FamilySpec>) -> Result<f64, BenchError> {
    let cpu = two_cpus()?[0];
    let present = (1..families.len()).map(|index| FamilyIndex(index as u16));
    let members = present.map(|family| Member::new(family, cpu, |_| Ok(())));
    let (guardian, children) = crew::start(topology(families)?, members.collect())?;
    crew::finish(children)?;
    let (_, segments) = guardian.peers_message(FamilyIndex::AGENT);
    let mut bytes = 0;
    for segment in segments {
        let stat = fstat(segment).map_err(|e| BenchError::os("fstat", e.into()))?;
        bytes += stat.st_blocks * 512;
    }
    Ok(bytes as f64)
}

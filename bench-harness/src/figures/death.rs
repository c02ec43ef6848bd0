//! How soon a SIGKILL is noticed, and the dead one's message handled again, by the memory that the
//! dead one leaves behind.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::process::{Signal, kill_process};
use sandpipe::lease::{LeaseState, lease_state, wait_for_change};
use sandpipe::recover::recover_slot;
use sandpipe::{Bus, ChunkClass, FamilySpec, Lease, Mapping, SlotIndex, Target, Topology};

use super::{FigureKind, Parts, Setting};
use crate::clock::{die_with_parent, now_ns, spin_until, two_cpus, unpin, usable_cpus};
use crate::crew::{self, Member};
use crate::error::BenchError;
use crate::links::Results;
use crate::pair::{FIRST, SECOND};
use crate::port::{Habit, Hands, Port, Wait};
use crate::probes::fork::Heap;
use crate::raw::{Child, SharedWords, fork};
use crate::report::Unit;
use crate::rounds::{Block, Plan};
use crate::stats::Samples;

pub(super) const FIGURE: FigureKind = FigureKind {
    id: "death",
    title: "From SIGKILL until it is seen, and until the message is handled again",
    source: "the paper has none",
    measure,
};

const SUBSTITUTIONS: [&str; 2] = [
    "seen: by another family, asleep on the dead instance's lease",
    "handled again: the worker has reaped the dead one, recovered its slot and rung; a second \
     instance, asleep, has claimed the message",
];

/// Resident memory of the victim, and victims a round.
const SIZES_MIB: [(usize, usize); 3] = [(0, 20), (64, 10), (256, 6)];
const VICTIM: SlotIndex = SlotIndex(1);
const SPARE: SlotIndex = SlotIndex(2);
const LEN: usize = 64;
/// Time for a process to fall asleep.
const SETTLE: Duration = Duration::from_millis(1);

/// Words that the processes share: whose turn it is, and when something happened.
const ARMED: usize = 0;
const SEEN: usize = 1;
const AGAIN: usize = 2;
const OVER: usize = 3;

fn measure(setting: &Setting<'_>) -> Result<Parts, BenchError> {
    let mut parts = Parts::default();
    parts.substitutions.extend(SUBSTITUTIONS.map(str::to_owned));
    let cpu = two_cpus()?[0];
    let mut plan = Plan::default();
    let cases = SIZES_MIB.map(|(mib, quick)| {
        let wanted = setting.profile.samples(quick);
        // One death gives both numbers: the second case takes what the first one kept.
        let kept = Rc::new(RefCell::new(Samples::new()));
        let keep = Rc::clone(&kept);
        let name = format!("{mib} MiB resident, until the death is seen");
        let seen = plan.case(&name, "Sandpipe", wanted, move |n| {
            let [seen, again] = deaths(cpu, mib, n)?;
            *keep.borrow_mut() = again;
            Ok(seen)
        });
        let name = format!("{mib} MiB resident, until the message is handled again");
        let again = plan.case(&name, "Sandpipe", wanted, move |_| Ok(kept.take()));
        [seen, again]
    });
    plan.blocks.push(Block {
        cases: cases.as_flattened().to_vec(),
        near: false,
        in_order: true,
    });
    let [[seen_small, _], _, [seen_large, again_large]] = cases;
    plan.ratio("death.detect.256MiB_over_0.p50", seen_large, seen_small);
    let outcome = parts.measure(setting, plan, Unit::Us, |_, _| None)?;
    let again = &outcome.cases[again_large];
    if again.count() > 0 {
        let p99_ms = again.quantile_ns(0.99) / 1e6;
        parts
            .ratios
            .push(("death.redelivery_ms.p99".to_owned(), p99_ms));
    }
    Ok(parts)
}

/// Kills `count` instances that hold a message; the times until it is seen, and handled again.
fn deaths(cpu: usize, mib: usize, count: usize) -> Result<[Samples; 2], BenchError> {
    let everywhere = usable_cpus();
    let words = SharedWords::new(4)?;
    let (seen, again) = (Results::new(count)?, Results::new(count)?);
    let watcher = Member::new(FIRST, cpu, |seat| {
        unpin(&everywhere)?;
        let mut port = Port::new(&seat.bus, Habit::to(SECOND, LEN));
        for turn in 1..=count as u64 {
            send(&mut port, turn)?;
            wait_for(&words, ARMED, turn)?;
            while lease_state(&seat.bus, SECOND, VICTIM) != Some(LeaseState::Died) {
                wait_for_change(&seat.bus, SECOND, VICTIM, Duration::from_secs(1));
            }
            words.word(SEEN).store(now_ns(), Ordering::Release);
            // The next message must not reach this turn's spare.
            wait_for(&words, OVER, turn)?;
        }
        Ok(())
    });
    let worker = Member::new(SECOND, cpu, |seat| {
        unpin(&everywhere)?;
        for index in 0..count {
            let times = one_death(&seat.bus, &words, mib, index as u64 + 1)?;
            seen.put(index, times[0]);
            again.put(index, times[1]);
            words.word(OVER).store(index as u64 + 1, Ordering::Release);
        }
        Ok(())
    });
    crew::run(topology()?, vec![watcher, worker])?;
    Ok([seen.samples(), again.samples()])
}

fn topology() -> Result<Topology, BenchError> {
    let family = |slots, targets: Vec<Target>| FamilySpec {
        slots,
        targets,
        chunks: Vec::<ChunkClass>::new(),
    };
    let lane = Target {
        queue: SECOND,
        lane_slots: 64,
    };
    let families = vec![family(1, vec![]), family(1, vec![lane]), family(3, vec![])];
    Topology::new(families).map_err(|e| BenchError::peer("the topology", e.to_string()))
}

fn send(port: &mut Port, turn: u64) -> Result<(), BenchError> {
    let mut message = [0; LEN];
    sandpipe_link::number(&mut message, turn);
    sandpipe_link::Link::send(port, &message)
}

/// The worker's part of one death; the times since the kill.
fn one_death(
    bus: &Bus<Mapping>,
    words: &SharedWords,
    mib: usize,
    turn: u64,
) -> Result<[u64; 2], BenchError> {
    let victim = fork_instance(|| {
        let heap = Heap::touched(mib);
        let held = Lease::hold(bus, VICTIM).map_err(|e| BenchError::os("lease", e))?;
        receive(bus, VICTIM, Wait::Yield, turn)?;
        words.word(ARMED).store(turn, Ordering::Release);
        // Until the kill.
        std::thread::sleep(Duration::from_secs(60));
        heap.keep();
        drop(held);
        Ok(())
    })?;
    wait_for(words, ARMED, turn)?;
    let spare = fork_instance(|| {
        receive(bus, SPARE, Wait::Park, turn)?;
        words.word(AGAIN).store(now_ns(), Ordering::Release);
        Ok(())
    })?;
    std::thread::sleep(SETTLE);
    let start = now_ns();
    kill_process(victim.pid(), Signal::KILL).map_err(|e| BenchError::os("kill", e.into()))?;
    victim.wait()?;
    recover_slot(bus, VICTIM);
    bus.ring_after_recovery();
    match spare.wait()? {
        Some(0) => {}
        end => return Err(BenchError::peer("the spare", format!("ended with {end:?}"))),
    }
    let since = |index: usize| {
        words
            .word(index)
            .load(Ordering::Acquire)
            .saturating_sub(start)
    };
    spin_until("the watcher", || since(SEEN) > 0)?;
    Ok([since(SEEN), since(AGAIN)])
}

fn fork_instance(body: impl FnOnce() -> Result<(), BenchError>) -> Result<Child, BenchError> {
    fork(|| {
        die_with_parent();
        i32::from(body().is_err())
    })
}

/// Claims message `turn`; it is acknowledged only by whom the caller lets live.
fn receive(bus: &Bus<Mapping>, slot: SlotIndex, wait: Wait, turn: u64) -> Result<(), BenchError> {
    let habit = Habit {
        slot,
        hands: Hands::Table,
        wait,
        ..Habit::to(SECOND, LEN)
    };
    let mut port = Port::new(bus, habit);
    let seen = sandpipe_link::Link::receive(&mut port)?;
    if slot == SPARE {
        port.commit();
    }
    match seen.first == turn {
        true => Ok(()),
        false => Err(BenchError::peer("an instance", "got another message")),
    }
}

fn wait_for(words: &SharedWords, index: usize, value: u64) -> Result<(), BenchError> {
    spin_until("a bus process", || {
        std::thread::yield_now();
        words.word(index).load(Ordering::Acquire) >= value
    })
}

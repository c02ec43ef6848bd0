//! Fork until the child's first line runs, for a process with a given heap; alone, and after a
//! wake-up, which is the least that a fresh process for a message can cost.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::wake::AT_WORK;
use crate::clock::{die_with_parent, futex_wait, futex_wake, now_ns, spin_for, spin_until};
use crate::error::BenchError;
use crate::raw::{SharedWords, fork, fork_unchecked};
use crate::stats::Samples;

/// Touched heap, in 4 KiB pages unless the system gives huge ones by itself.
#[derive(Debug)]
pub struct Heap {
    bytes: Vec<u8>,
}

impl Heap {
    /// Allocates `mib` MiB and writes to each page.
    #[must_use]
    pub fn touched(mib: usize) -> Heap {
        // A byte that is not zero, so that the pages are written and not only reserved.
        Heap {
            bytes: vec![1; mib << 20],
        }
    }

    /// Keeps the optimiser from dropping the heap before here.
    pub fn keep(&self) {
        std::hint::black_box(self.bytes.as_ptr());
    }
}

/// Latencies of `count` forks from the call until the child reads the clock, after three that are
/// not counted. Each child is reaped before the next fork.
///
/// # Errors
/// If fork is refused or a child dies.
pub fn until_child_runs(heap: &Heap, count: usize) -> Result<Samples, BenchError> {
    const COLD: usize = 3;
    let shared = SharedWords::new(1)?;
    let ran = shared.word(0);
    // Checks once that this process has one thread; the loop below leaves the check out.
    fork(|| 0)?.wait()?;
    let mut samples = Samples::new();
    for turn in 0..count + COLD {
        let start = now_ns();
        let child = fork_unchecked(|| {
            ran.store(now_ns(), Ordering::Release);
            0
        })?;
        match child.wait()? {
            Some(0) => {}
            end => {
                return Err(BenchError::peer(
                    "a forked child",
                    format!("ended with {end:?}"),
                ));
            }
        }
        if turn >= COLD {
            samples.record(ran.load(Ordering::Acquire).saturating_sub(start));
        }
    }
    heap.keep();
    Ok(samples)
}

/// Words shared by the waker, the worker and its children.
const BELL: usize = 0;
const STAMP: usize = 1;
const RAN: usize = 2;
const ACKED: usize = 3;

/// Latencies of `count` fresh processes for a message: from the stamp before a futex wake, through
/// a worker that sleeps on it and forks at once, until the child reads the clock. The worker's
/// heap is `heap_mib` MiB larger than this process; `pause` lies between two messages.
///
/// # Errors
/// If fork is refused, or the worker or a child dies.
pub fn woken_until_child_runs(
    heap_mib: usize,
    count: usize,
    pause: Duration,
) -> Result<Vec<u64>, BenchError> {
    const COLD: usize = 3;
    let shared = SharedWords::new(4)?;
    let turns = count + COLD;
    let worker = fork(|| worker(&shared, heap_mib, turns))?;
    let mut latencies = Vec::with_capacity(count);
    for turn in 1..=turns {
        std::thread::sleep(pause);
        let number = u32::try_from(turn).expect("a probe makes far fewer than 2^32 turns");
        let start = now_ns();
        shared.word(STAMP).store(start, Ordering::Relaxed);
        shared.futex(BELL).store(number, Ordering::Release);
        futex_wake(shared.futex(BELL));
        spin_for(AT_WORK);
        spin_until("the forking worker", || {
            std::thread::sleep(Duration::from_micros(500));
            shared.futex(ACKED).load(Ordering::Acquire) == number
        })?;
        if turn > COLD {
            latencies.push(
                shared
                    .word(RAN)
                    .load(Ordering::Acquire)
                    .saturating_sub(start),
            );
        }
    }
    match worker.wait()? {
        Some(0) => Ok(latencies),
        end => Err(BenchError::peer(
            "the forking worker",
            format!("ended with {end:?}"),
        )),
    }
}

fn worker(shared: &SharedWords, heap_mib: usize, turns: usize) -> i32 {
    die_with_parent();
    let heap = Heap::touched(heap_mib);
    for turn in 1..=u32::try_from(turns).unwrap_or(u32::MAX) {
        while shared.futex(BELL).load(Ordering::Acquire) != turn {
            futex_wait(shared.futex(BELL), turn - 1);
        }
        let child = fork_unchecked(|| {
            shared.word(RAN).store(now_ns(), Ordering::Release);
            0
        });
        match child.and_then(crate::raw::Child::wait) {
            Ok(Some(0)) => shared.futex(ACKED).store(turn, Ordering::Release),
            _ => return 1,
        }
    }
    heap.keep();
    0
}

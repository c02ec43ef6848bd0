//! Fork until the child's first line runs, for a process with a given heap.

use std::sync::atomic::Ordering;

use crate::clock::now_ns;
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

//! One cache line to another core and back: the least that two cores pay to exchange a message.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::{die_with_parent, now_ns, pin, spin_until, unpin, usable_cpus};
use crate::error::BenchError;
use crate::raw::{SharedWords, fork};
use crate::stats::Samples;

/// Round trips timed together: one takes about 100 ns, the clock ticks in 10 ns and costs 30.
const BATCH: u64 = 100;
/// Tells the echo to end.
const STOP: u64 = u64::MAX;

/// Means of `batches` × 100 round trips in ns, the caller pinned to `cpus[0]` meanwhile, an echo
/// to `cpus[1]`.
///
/// # Errors
/// If a CPU cannot be used, fork is refused, or the echo stays silent.
pub fn round_trips(cpus: [usize; 2], batches: usize) -> Result<Samples, BenchError> {
    let everywhere = usable_cpus();
    let shared = SharedWords::new(1)?;
    let line = shared.word(0);
    let echo = fork(|| echo(line, cpus[1]))?;
    pin(cpus[0])?;
    let result = ping(line, batches);
    line.store(STOP, Ordering::Release);
    unpin(&everywhere)?;
    let samples = result?;
    match echo.wait()? {
        Some(0) => Ok(samples),
        end => Err(BenchError::peer(
            "the cache-line echo",
            format!("ended with {end:?}"),
        )),
    }
}

fn ping(line: &AtomicU64, batches: usize) -> Result<Samples, BenchError> {
    let mut samples = Samples::new();
    let mut value = 1;
    // The first batch waits for the echo to start: it is cold and not counted.
    for batch in 0..=batches {
        let start = now_ns();
        for _ in 0..BATCH {
            line.store(value, Ordering::Release);
            spin_until("the cache-line echo", || {
                line.load(Ordering::Acquire) == value + 1
            })?;
            value += 2;
        }
        if batch > 0 {
            samples.record((now_ns() - start) / BATCH);
        }
    }
    Ok(samples)
}

fn echo(line: &AtomicU64, cpu: usize) -> i32 {
    die_with_parent();
    if pin(cpu).is_err() {
        return 1;
    }
    let mut expected = 1;
    loop {
        let mut seen = 0;
        let answered = spin_until("the pinger", || {
            seen = line.load(Ordering::Acquire);
            seen >= expected
        });
        match (answered, seen) {
            (Err(_), _) => return 2,
            (Ok(()), STOP) => return 0,
            (Ok(()), _) => line.store(expected + 1, Ordering::Release),
        }
        expected += 2;
    }
}

//! One clock for all processes, pinning, and waits that end.

use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{CpuSet, futex, sched_getaffinity, sched_setaffinity};
use rustix::time::Timespec;

use crate::error::BenchError;

pub use sandpipe_link::now_ns;

/// How long a peer may stay silent before a probe gives up on it: far beyond any hand-over, so
/// that it fires for a dead peer and never for a slow machine.
pub const PEER_SILENCE_MAX: Duration = Duration::from_secs(20);

/// Pins the calling thread to one CPU.
///
/// # Errors
/// If the CPU does not exist or is not ours.
pub fn pin(cpu: usize) -> Result<(), BenchError> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).map_err(|e| BenchError::os(format!("pin to CPU {cpu}"), e.into()))
}

/// Lets the calling thread run on all of `cpus` again.
///
/// # Errors
/// If none of them is ours.
pub fn unpin(cpus: &[usize]) -> Result<(), BenchError> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu);
    }
    sched_setaffinity(None, &set).map_err(|e| BenchError::os("unpin", e.into()))
}

/// The CPUs that this thread may run on, ascending.
#[must_use]
pub fn usable_cpus() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(None) else {
        return vec![0];
    };
    (0..CpuSet::MAX_CPU)
        .filter(|cpu| set.is_set(*cpu))
        .collect()
}

/// Two different CPUs to measure between.
///
/// # Errors
/// [`BenchError::Missing`] on a machine with one.
pub fn two_cpus() -> Result<[usize; 2], BenchError> {
    match usable_cpus()[..] {
        [first, second, ..] => Ok([first, second]),
        _ => Err(BenchError::missing(
            "a hand-over between two cores",
            "this process may use one CPU only",
            "give it two (taskset, cpuset, the VM's size)",
        )),
    }
}

/// Ends this child when its parent dies, so that no probe's half outlives a killed harness.
pub fn die_with_parent() {
    // Cannot fail for a valid signal; and if it did, the peer's deadline ends the child too.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
}

/// Spins until `done` or a deadline; the clock is read once in 2^16 looks.
///
/// # Errors
/// [`BenchError::Peer`] after [`PEER_SILENCE_MAX`].
#[inline]
pub fn spin_until(what: &str, mut done: impl FnMut() -> bool) -> Result<(), BenchError> {
    let mut looks = 0_u32;
    let mut start = None;
    while !done() {
        looks = looks.wrapping_add(1);
        std::hint::spin_loop();
        if looks & 0xffff == 0 {
            let start = start.get_or_insert_with(Instant::now);
            if start.elapsed() > PEER_SILENCE_MAX {
                let silence_s = PEER_SILENCE_MAX.as_secs();
                return Err(BenchError::peer(what, format!("silent for {silence_s} s")));
            }
        }
    }
    Ok(())
}

/// Spins for a pause: the caller's CPU stays awake, as a busy producer's does.
#[inline]
pub fn spin_for(pause: Duration) {
    let end = now_ns() + u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX);
    while now_ns() < end {
        std::hint::spin_loop();
    }
}

/// Sleeps in the kernel while `word` is `value`, at most one second (callers loop).
#[inline]
pub fn futex_wait(word: &AtomicU32, value: u32) {
    let second = Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    };
    // EAGAIN (the value has moved), EINTR and ETIMEDOUT all mean: look again.
    let _ = futex::wait(word, futex::Flags::empty(), value, Some(&second));
}

/// Wakes one sleeper of `word`.
#[inline]
pub fn futex_wake(word: &AtomicU32) {
    // Waking nobody is no error.
    let _ = futex::wake(word, futex::Flags::empty(), 1);
}

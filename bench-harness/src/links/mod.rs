//! Links without Sandpipe: the floors, and what an operating system has by itself.

pub mod futex;
pub mod ring;
pub mod stream;

use std::sync::atomic::Ordering;

use sandpipe_link::Link;
use sandpipe_link::round_trip::{Trips, echo, ping};

use crate::clock::{die_with_parent, pin, unpin, usable_cpus};
use crate::error::BenchError;
use crate::raw::{SharedWords, fork};
use crate::stats::Samples;

/// Round trips over a link of which both ends are given: the first stays in this process, pinned
/// to `cpus[0]` meanwhile, the second goes to an echo on `cpus[1]`.
///
/// # Errors
/// If a CPU cannot be used, fork is refused, or an end breaks.
pub fn round_trips<L: Link<Error = BenchError>>(
    cpus: [usize; 2],
    trips: Trips,
    mut first: L,
    mut second: L,
) -> Result<Samples, BenchError> {
    let everywhere = usable_cpus();
    let other = fork(|| {
        die_with_parent();
        let echoed = pin(cpus[1]).and_then(|()| echo(&mut second, trips));
        i32::from(echoed.is_err())
    })?;
    drop(second);
    pin(cpus[0])?;
    let mut samples = Samples::new();
    let pinged = ping(&mut first, trips, |_, ns| samples.record(ns));
    unpin(&everywhere)?;
    pinged?;
    match other.wait()? {
        Some(0) => Ok(samples),
        end => Err(BenchError::peer("the echo", format!("ended with {end:?}"))),
    }
}

/// Samples that a child process writes and its parent reads.
#[derive(Debug)]
pub struct Results(SharedWords, usize);

impl Results {
    /// Room for `count` samples.
    ///
    /// # Errors
    /// If the memory cannot be mapped.
    pub fn new(count: usize) -> Result<Results, BenchError> {
        Ok(Results(SharedWords::packed(count)?, count))
    }

    /// Writes one.
    pub fn put(&self, index: usize, ns: u64) {
        self.0.word(index).store(ns, Ordering::Relaxed);
    }

    /// Reads all.
    #[must_use]
    pub fn samples(&self) -> Samples {
        let ns = |index| self.0.word(index).load(Ordering::Relaxed);
        (0..self.1).map(ns).collect()
    }
}

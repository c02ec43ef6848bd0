//! The least that can carry 64 bytes both ways: a ring of two cache lines a message (a stamp and
//! the payload in 128 bytes), no head, no commit, no bell, no recovery.

use std::array::from_fn;
use std::sync::atomic::Ordering;

use crate::clock::{die_with_parent, now_ns, pin, spin_until, unpin, usable_cpus};
use crate::error::BenchError;
use crate::raw::{SharedWords, fork};
use crate::stats::Samples;

/// Messages that the ring holds; only one is under way at a time.
const SLOTS: u64 = 1024;
/// Words of a slot: stamp, length, eight of payload, padding to 128 bytes.
const SLOT_WORDS: usize = 16;
/// Round trips timed together, as in the cache-line probe.
pub const BATCH: u64 = 100;
/// First payload word of the message that ends the echo.
const STOP: u64 = u64::MAX;

/// Sixty-four bytes.
type Payload = [u64; 8];

struct Ring(SharedWords);

impl Ring {
    fn new() -> Result<Ring, BenchError> {
        let words = usize::try_from(SLOTS).expect("1024 fits") * SLOT_WORDS;
        SharedWords::packed(words).map(Ring)
    }

    fn base(position: u64) -> usize {
        usize::try_from(position % SLOTS).expect("below 1024") * SLOT_WORDS
    }

    #[inline]
    fn put(&self, position: u64, payload: &Payload) {
        let base = Ring::base(position);
        self.0.word(base + 1).store(64, Ordering::Relaxed);
        for (index, word) in payload.iter().enumerate() {
            self.0
                .word(base + 2 + index)
                .store(*word, Ordering::Relaxed);
        }
        self.0.word(base).store(position + 1, Ordering::Release);
    }

    #[inline]
    fn take(&self, position: u64) -> Result<Payload, BenchError> {
        let base = Ring::base(position);
        spin_until("the other end of the ring", || {
            self.0.word(base).load(Ordering::Acquire) == position + 1
        })?;
        Ok(from_fn(|index| {
            self.0.word(base + 2 + index).load(Ordering::Relaxed)
        }))
    }
}

/// Means of `batches` × [`BATCH`] round trips of 64 bytes.
///
/// # Errors
/// If a CPU cannot be used, fork is refused, or the echo dies or stays silent.
pub fn round_trips(cpus: [usize; 2], batches: usize) -> Result<Samples, BenchError> {
    let everywhere = usable_cpus();
    let (there, back) = (Ring::new()?, Ring::new()?);
    let echo = fork(|| echo(&there, &back, cpus[1]))?;
    pin(cpus[0])?;
    let result = ping(&there, &back, batches);
    unpin(&everywhere)?;
    let samples = result?;
    match echo.wait()? {
        Some(0) => Ok(samples),
        end => Err(BenchError::peer(
            "the ring's echo",
            format!("ended with {end:?}"),
        )),
    }
}

fn ping(there: &Ring, back: &Ring, batches: usize) -> Result<Samples, BenchError> {
    let mut samples = Samples::new();
    let mut position = 0;
    for batch in 0..=batches {
        let start = now_ns();
        for _ in 0..BATCH {
            there.put(position, &[position; 8]);
            std::hint::black_box(back.take(position)?);
            position += 1;
        }
        if batch > 0 {
            samples.record((now_ns() - start) / BATCH);
        }
    }
    there.put(position, &[STOP; 8]);
    Ok(samples)
}

fn echo(there: &Ring, back: &Ring, cpu: usize) -> i32 {
    die_with_parent();
    if pin(cpu).is_err() {
        return 1;
    }
    for position in 0.. {
        match there.take(position) {
            Ok([STOP, ..]) => return 0,
            Ok(payload) => back.put(position, &payload.map(|word| word ^ 1)),
            Err(_) => return 2,
        }
    }
    3
}

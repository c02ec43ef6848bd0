//! One sleeping process woken by another, one way: futex, eventfd, pipe.
//!
//! The producer writes a stamp of the shared clock and wakes; the consumer, asleep in the kernel,
//! reads the clock as its first act. Between two messages the producer waits until the consumer
//! has had time to fall asleep (and a virtual CPU to halt): this is the price of one lone message.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::pipe::pipe;

use crate::clock::{
    die_with_parent, futex_wait, futex_wake, now_ns, pin, spin_for, spin_until, unpin, usable_cpus,
};
use crate::error::BenchError;
use crate::raw::{SharedWords, fork};
use crate::stats::Samples;

/// How the sleeper is woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bell {
    /// FUTEX_WAKE on a shared word.
    Futex,
    /// A write to an eventfd that the sleeper reads.
    Eventfd,
    /// A write of 1 KiB into a pipe that the sleeper reads.
    Pipe,
}

/// Time for the consumer to be asleep again after it acknowledged a message: the least pause.
pub const SETTLE: Duration = Duration::from_micros(150);

const MESSAGE_BYTES: usize = 1024;

/// Words that both sides share.
const BELL: usize = 0;
const STAMP: usize = 1;
const ACKED: usize = 2;

/// The two ends of what is not in shared memory.
enum Ends {
    None,
    Counter(OwnedFd),
    Pipe { read: OwnedFd, write: OwnedFd },
}

impl Ends {
    fn new(bell: Bell) -> Result<Ends, BenchError> {
        match bell {
            Bell::Futex => Ok(Ends::None),
            Bell::Eventfd => eventfd(0, EventfdFlags::empty())
                .map(Ends::Counter)
                .map_err(|e| BenchError::os("eventfd", e.into())),
            Bell::Pipe => pipe()
                .map(|(read, write)| Ends::Pipe { read, write })
                .map_err(|e| BenchError::os("pipe", e.into())),
        }
    }

    /// Rings once; message number `turn` (from 1).
    fn ring(&self, shared: &SharedWords, turn: u32, message: &mut [u8]) -> rustix::io::Result<()> {
        match self {
            Ends::None => {
                shared.word(STAMP).store(now_ns(), Ordering::Relaxed);
                shared.futex(BELL).store(turn, Ordering::Release);
                futex_wake(shared.futex(BELL));
                Ok(())
            }
            Ends::Counter(counter) => {
                shared.word(STAMP).store(now_ns(), Ordering::Release);
                rustix::io::write(counter, &1_u64.to_ne_bytes()).map(|_| ())
            }
            Ends::Pipe { write, .. } => {
                message[..8].copy_from_slice(&now_ns().to_ne_bytes());
                rustix::io::write(write, message).map(|_| ())
            }
        }
    }

    /// Sleeps until message `turn` is there; its latency in ns.
    fn sleep(&self, shared: &SharedWords, turn: u32, message: &mut [u8]) -> Option<u64> {
        match self {
            Ends::None => {
                while shared.futex(BELL).load(Ordering::Acquire) != turn {
                    futex_wait(shared.futex(BELL), turn - 1);
                }
                let now = now_ns();
                Some(now.saturating_sub(shared.word(STAMP).load(Ordering::Relaxed)))
            }
            Ends::Counter(counter) => {
                rustix::io::read(counter, &mut message[..8]).ok()?;
                let now = now_ns();
                Some(now.saturating_sub(shared.word(STAMP).load(Ordering::Acquire)))
            }
            Ends::Pipe { read, .. } => {
                // A pipe writes up to 4 KiB at once or not at all, so one read takes a message.
                let got = rustix::io::read(read, &mut message[..]).ok()?;
                let now = now_ns();
                let stamp = message[..8].try_into().ok()?;
                (got == MESSAGE_BYTES).then(|| now.saturating_sub(u64::from_ne_bytes(stamp)))
            }
        }
    }
}

/// How long a waker goes on working after a wake. A function that has published its output is not
/// done: it acknowledges its input, tells the agent, and looks for more. A waker that slept at once
/// would leave its core, warm and free, to the one it woke, which no publisher does.
pub const AT_WORK: Duration = Duration::from_micros(10);

/// Where the two processes run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cores {
    /// Producer and sleeper pinned; on two cores the producer stays awake, as a busy one does.
    Pinned([usize; 2]),
    /// Wherever the scheduler puts them, both asleep between two messages, the producer at work for
    /// [`AT_WORK`] after each: how grains live.
    Anywhere,
}

impl Cores {
    /// Whether the producer sleeps between two messages: on one core the sleeper runs only then.
    fn producer_sleeps(self) -> bool {
        match self {
            Cores::Pinned([producer, sleeper]) => producer == sleeper,
            Cores::Anywhere => true,
        }
    }

    fn pin(self, side: usize) -> Result<(), BenchError> {
        match self {
            Cores::Pinned(cpus) => pin(cpus[side]),
            Cores::Anywhere => Ok(()),
        }
    }
}

/// Latencies of `count` wake-ups with a pause before each, after ten that are not counted. The
/// longer the pause, the deeper the sleep of a core and the colder its caches.
///
/// # Errors
/// If a CPU cannot be used, the kernel refuses a part, or the sleeper dies or stays silent.
pub fn one_way(
    bell: Bell,
    cores: Cores,
    pause: Duration,
    count: usize,
) -> Result<Samples, BenchError> {
    const COLD: usize = 10;
    let turns = count + COLD;
    let everywhere = usable_cpus();
    let shared = SharedWords::new(3)?;
    let latencies = SharedWords::packed(turns)?;
    let ends = Ends::new(bell)?;
    let sleeper = fork(|| sleeper(&ends, &shared, &latencies, turns, cores))?;
    cores.pin(0)?;
    let rung = ring_all(&ends, &shared, turns, cores, pause);
    unpin(&everywhere)?;
    rung?;
    match sleeper.wait()? {
        Some(0) => {}
        end => {
            return Err(BenchError::peer(
                "the sleeper",
                format!("ended with {end:?}"),
            ));
        }
    }
    Ok((COLD..turns)
        .map(|i| latencies.word(i).load(Ordering::Relaxed))
        .collect())
}

fn ring_all(
    ends: &Ends,
    shared: &SharedWords,
    turns: usize,
    cores: Cores,
    pause: Duration,
) -> Result<(), BenchError> {
    let sleeps = cores.producer_sleeps();
    let mut message = [7_u8; MESSAGE_BYTES];
    for turn in 1..=turn_number(turns) {
        if sleeps {
            std::thread::sleep(pause);
        } else {
            spin_for(pause);
        }
        ends.ring(shared, turn, &mut message)
            .map_err(|e| BenchError::os("ring", e.into()))?;
        if cores == Cores::Anywhere {
            spin_for(AT_WORK);
        }
        let acked = || shared.futex(ACKED).load(Ordering::Acquire) == turn;
        spin_until("the sleeper", || {
            let done = acked();
            if !done && sleeps {
                std::thread::sleep(SETTLE);
            }
            done
        })?;
    }
    Ok(())
}

fn sleeper(
    ends: &Ends,
    shared: &SharedWords,
    latencies: &SharedWords,
    turns: usize,
    cores: Cores,
) -> i32 {
    die_with_parent();
    if cores.pin(1).is_err() {
        return 1;
    }
    let mut message = [0_u8; MESSAGE_BYTES];
    for turn in 1..=turn_number(turns) {
        let Some(ns) = ends.sleep(shared, turn, &mut message) else {
            return 2;
        };
        latencies
            .word(turn as usize - 1)
            .store(ns.max(1), Ordering::Relaxed);
        shared.futex(ACKED).store(turn, Ordering::Release);
    }
    0
}

fn turn_number(turns: usize) -> u32 {
    u32::try_from(turns).expect("a probe makes far fewer than 2^32 turns")
}

//! A peer's program: `PROGRAM KIND LEN SAMPLES TOGETHER TOUCHED WARM_UP CPU OTHER_CPU` measures
//! one case between two processes, itself on CPU and a second copy of itself on OTHER_CPU, and
//! prints one sample (ns) a line.

use std::fmt::Display;
use std::io::Read;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Signal, getpid, set_parent_process_death_signal};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::Link;
use crate::one_way::{Stream, consume, produce};
use crate::round_trip::{Trips, echo, ping};

/// What a case measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Round trips; both sides spin.
    RoundTrip,
    /// One way, as much as goes through.
    OneWay,
}

impl Kind {
    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::RoundTrip => "round-trip",
            Kind::OneWay => "one-way",
        }
    }
}

/// One case, as the command line gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// What is measured.
    pub kind: Kind,
    /// Bytes of a message.
    pub len: usize,
    /// Samples wanted.
    pub samples: usize,
    /// Messages or round trips timed together.
    pub together: usize,
    /// Bytes of a message that both sides touch.
    pub touched: usize,
    /// Messages of a stream that come first and are not counted.
    pub warm_up: usize,
    /// The CPUs of both processes.
    pub cpus: [usize; 2],
}

/// Which process this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    /// A name that both processes share and no other run does.
    pub tag: String,
    /// Whether this is the process that was started by the other.
    pub second: bool,
}

const TAG: &str = "SANDPIPE_PEER_TAG";
/// How long the other process may take to end before it is killed.
const END_MAX: Duration = Duration::from_secs(2);

impl Task {
    /// The arguments of a program that measures it.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let numbers = [
            self.len,
            self.samples,
            self.together,
            self.touched,
            self.warm_up,
        ];
        let numbers = numbers.into_iter().chain(self.cpus);
        let mut arguments = vec![self.kind.name().to_owned()];
        arguments.extend(numbers.map(|number| number.to_string()));
        arguments
    }

    /// Reads the arguments; `None` if they are no task.
    #[must_use]
    pub fn parse(arguments: &[String]) -> Option<Task> {
        let (kind, numbers) = arguments.split_first()?;
        let kind = [Kind::RoundTrip, Kind::OneWay]
            .into_iter()
            .find(|k| k.name() == kind)?;
        let numbers: Option<Vec<usize>> = numbers.iter().map(|n| n.parse().ok()).collect();
        let &[len, samples, together, touched, warm_up, first, second] = numbers?.as_slice() else {
            return None;
        };
        let touched_fits = (8..=len).contains(&touched);
        (samples > 0 && together > 0 && touched_fits).then_some(Task {
            kind,
            len,
            samples,
            together,
            touched,
            warm_up,
            cpus: [first, second],
        })
    }

    fn trips(&self) -> Trips {
        Trips::busy(self.len, self.samples, self.together)
    }

    fn stream(&self) -> Stream {
        Stream {
            len: self.len,
            samples: self.samples,
            together: self.together,
            warm_up: self.warm_up,
        }
    }
}

/// The main function of a peer's program: `open` makes this process's end of the link.
pub fn run<L>(open: impl FnOnce(&Task, &Side) -> Result<L, L::Error>) -> ExitCode
where
    L: Link,
    L::Error: Display,
{
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(task) = Task::parse(&arguments) else {
        eprintln!(
            "usage: PROGRAM round-trip|one-way LEN SAMPLES TOGETHER TOUCHED WARM_UP CPU OTHER_CPU"
        );
        return ExitCode::from(2);
    };
    let side = match std::env::var(TAG) {
        Ok(tag) => Side { tag, second: true },
        Err(_) => Side {
            tag: getpid().to_string(),
            second: false,
        },
    };
    match measure(&task, &side, open) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn measure<L>(
    task: &Task,
    side: &Side,
    open: impl FnOnce(&Task, &Side) -> Result<L, L::Error>,
) -> Result<(), String>
where
    L: Link,
    L::Error: Display,
{
    pin(task.cpus[usize::from(side.second)]);
    if side.second {
        end_with_parent();
        let mut link = open(task, side).map_err(|e| e.to_string())?;
        let done = match task.kind {
            Kind::RoundTrip => echo(&mut link, task.trips()),
            Kind::OneWay => {
                let stop = stop_at_end_of_input();
                produce(&mut link, task.len, || stop.load(Ordering::Relaxed))
            }
        };
        return done.map_err(|e| e.to_string());
    }
    let _second = Second::start(side)?;
    let mut link = open(task, side).map_err(|e| e.to_string())?;
    let mut samples = vec![0; task.samples];
    let sample = |index: usize, ns: u64| samples[index] = ns;
    let done = match task.kind {
        Kind::RoundTrip => ping(&mut link, task.trips(), sample),
        Kind::OneWay => consume(&mut link, task.stream(), sample),
    };
    done.map_err(|e| e.to_string())?;
    samples.iter().for_each(|ns| println!("{ns}"));
    Ok(())
}

/// Set once the other process has closed this one's input: it has all it wanted. (A kill would
/// leave a library's files behind.)
fn stop_at_end_of_input() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&stop);
    std::thread::spawn(move || {
        // An error is an end, too.
        let _ = std::io::stdin().read(&mut [0]);
        set.store(true, Ordering::Relaxed);
    });
    stop
}

/// The other process; ended with this one's measurement.
struct Second(Child);

impl Second {
    fn start(side: &Side) -> Result<Second, String> {
        let program = std::env::current_exe().map_err(|e| e.to_string())?;
        let child = Command::new(program)
            .args(std::env::args().skip(1))
            .env(TAG, &side.tag)
            .stdin(Stdio::piped())
            .spawn();
        child.map(Second).map_err(|e| e.to_string())
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let start = Instant::now();
        while matches!(self.0.try_wait(), Ok(None)) && start.elapsed() < END_MAX {
            std::thread::sleep(Duration::from_millis(1));
        }
        // Both fail only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Pins this process (its later threads inherit it); an unusable CPU shows in the placement.
fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    let _ = sched_setaffinity(None, &set);
}

/// Lets this process run on every CPU again: what a peer needs besides the two ends of its link.
pub fn unpin() {
    let mut set = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|cpu| set.set(cpu));
    // Cannot fail: the kernel takes those that there are.
    let _ = sched_setaffinity(None, &set);
}

/// Ends this process when its parent dies.
pub fn end_with_parent() {
    // Cannot fail for a valid signal.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_survives_its_arguments_and_nonsense_is_refused() {
        let task = Task {
            kind: Kind::OneWay,
            len: 64,
            samples: 10,
            together: 100,
            touched: 64,
            warm_up: 7,
            cpus: [0, 3],
        };
        assert_eq!(Task::parse(&task.arguments()), Some(task.clone()));
        let refused = |index: usize, word: &str| {
            let mut arguments = task.arguments();
            word.clone_into(&mut arguments[index]);
            Task::parse(&arguments).is_none()
        };
        assert!(refused(0, "both") && refused(1, "x") && refused(2, "0"));
        assert!(refused(4, "65"), "touches more than there is");
        assert!(Task::parse(&task.arguments()[1..]).is_none());
    }
}

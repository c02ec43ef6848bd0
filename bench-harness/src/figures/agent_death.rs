//! What applications notice of their agent's death: deliveries between grains meanwhile, and how
//! soon the next agent takes requests.

use std::time::Duration;

use super::figure_5c::rust_program;
use super::{FigureKind, Parts, Setting};
use crate::clock::now_ns;
use crate::error::BenchError;
use crate::host::Host;
use crate::http::{Answer, Connection};
use crate::report::{Row, Unit};
use crate::stamps::Stamps;
use crate::stats::Samples;

pub(super) const FIGURE: FigureKind = FigureKind {
    id: "agent_death",
    title: "Local delivery while the agent is killed, and until the next one is ready",
    source: "the paper has none",
    measure,
};

const SUBSTITUTIONS: [&str; 3] = [
    "three applications of two pooled grains; the first grain is a source: before the agent is \
     killed its queue holds accepted events, of which it passes one on every 4 ms and a bit",
    "a gap is the time between two events' first lines in the second grain of one application; \
     while no agent lives: the gaps that ended from SIGKILL until the next agent was ready",
    "ready: from SIGKILL until /readyz of the next agent, started at once, says 200, all three \
     sandboxes adopted",
];

const APPLICATIONS: [&str; 3] = ["bench-source-x", "bench-source-y", "bench-source-z"];
const SERIES: &str = "3 applications";
/// Events of one application in one kill's time: three seconds at the source's pace. The
/// agent's lanes hold more copies than that, so nobody waits for the dead one.
const EVENTS: usize = 800;
const PACE_US: u32 = 4000;
/// Time before the kill, and after the next agent is ready, that is looked at.
const BESIDE: Duration = Duration::from_millis(200);
/// How long an accepted event's answer may take.
const ANSWER_NS_MAX: u64 = 60_000_000_000;
/// Kills of the quick profile.
const KILLS: usize = 10;

/// One kill: when, and when the next agent was ready.
#[derive(Clone, Copy, Debug)]
struct Kill {
    at_ns: u64,
    ready_ns: u64,
}

/// What all kills gave.
#[derive(Default)]
struct Seen {
    before: Samples,
    during: Samples,
    after: Samples,
    /// The longest gap of each kill and application that touches the time without an agent.
    longest: Samples,
    ready: Samples,
    accepted: u64,
    answered: u64,
    /// Kills and applications whose source had run dry before the agent was back.
    dry: u32,
}

fn measure(setting: &Setting<'_>) -> Result<Parts, BenchError> {
    let mut parts = Parts::default();
    parts.substitutions.extend(SUBSTITUTIONS.map(str::to_owned));
    let kills = setting.profile.samples(KILLS);
    let mut host = Host::new()?;
    let program = rust_program()?;
    for name in APPLICATIONS {
        host.deploy(name, &application(name, &program.display().to_string()))?;
    }
    let mut seen = Seen::default();
    setting.progress.steps(kills);
    for _ in 0..kills {
        one_kill(&mut host, &mut seen)?;
        setting.progress.step();
    }
    seen.fill(&mut parts);
    Ok(parts)
}

fn application(name: &str, program: &str) -> String {
    let grain = |grain: &str, env: &str| {
        format!(
            "[[grain]]\nname = \"{grain}\"\nruntime = \"rust\"\nhandler = {program:?}\n\
             mode = \"pool\"\nconcurrency = 1\n{env}\n"
        )
    };
    let pace = format!("env = {{ BENCH_GRAIN_PACE_US = \"{PACE_US}\" }}");
    format!(
        "name = \"{name}\"\n[workflow]\nchain = [\"source\", \"next\"]\n{}{}",
        grain("source", &pace),
        grain("next", "")
    )
}

/// Fills the sources, kills the agent, starts the next one, and collects every answer.
fn one_kill(host: &mut Host, seen: &mut Seen) -> Result<(), BenchError> {
    let places = at_once(|name| accept(&host.address, name))?;
    std::thread::sleep(BESIDE);
    let at_ns = now_ns();
    host.kill()?;
    host.start()?;
    let kill = Kill {
        at_ns,
        ready_ns: now_ns(),
    };
    seen.ready.record(kill.ready_ns - kill.at_ns);
    std::thread::sleep(BESIDE);
    let mut places = places.into_iter();
    for name in APPLICATIONS {
        let places = places.next().expect("one list for each application");
        seen.accepted += places.len() as u64;
        let deliveries = collect(&host.address, name, &places)?;
        seen.answered += deliveries.len() as u64;
        seen.note(kill, &deliveries);
    }
    Ok(())
}

/// Does the same for all applications at once.
fn at_once<T: Send>(
    work: impl Fn(&'static str) -> Result<T, BenchError> + Sync,
) -> Result<Vec<T>, BenchError> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads = APPLICATIONS.map(|name| scope.spawn(move || work(name)));
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<T, BenchError>>| {
            thread.join().expect("a client does not panic")
        };
        threads.into_iter().map(join).collect()
    })
}

/// Has events accepted for later; where their answers will be.
fn accept(address: &str, name: &str) -> Result<Vec<String>, BenchError> {
    let mut connection = Connection::open(address)?;
    let path = format!("/{name}");
    let mut one = |_| {
        let answer = connection.post(&path, &[("prefer", "respond-async")], b"")?;
        match (answer.status, answer.header("location")) {
            (202, Some(place)) => Ok(place.to_owned()),
            _ => Err(wrong(name, &answer)),
        }
    };
    (0..EVENTS).map(&mut one).collect()
}

fn wrong(name: &str, answer: &Answer) -> BenchError {
    BenchError::peer(
        name,
        format!("answered {}: {}", answer.status, answer.text()),
    )
}

/// When each accepted event was delivered to the second grain, in order. One whose answer is no
/// output, or never comes, is missing.
fn collect(address: &str, name: &str, places: &[String]) -> Result<Vec<u64>, BenchError> {
    let mut connection = Connection::open(address)?;
    let end = now_ns() + ANSWER_NS_MAX;
    let mut deliveries = Vec::with_capacity(places.len());
    for place in places {
        let mut answer = connection.get(place)?;
        while answer.status == 202 && now_ns() < end {
            std::thread::sleep(Duration::from_millis(1));
            answer = connection.get(place)?;
        }
        if answer.status == 200 {
            let [_, next] = Stamps::of_grains::<2>(&answer.body)?;
            deliveries.push(next.start_ns);
        } else if answer.status < 400 {
            return Err(wrong(name, &answer));
        }
    }
    deliveries.sort_unstable();
    Ok(deliveries)
}

impl Seen {
    /// Sorts the gaps of one application around one kill.
    fn note(&mut self, kill: Kill, deliveries: &[u64]) {
        let beside = u64::try_from(BESIDE.as_nanos()).unwrap_or(u64::MAX);
        if deliveries.last().is_none_or(|&last| last < kill.ready_ns) {
            self.dry += 1;
            return;
        }
        let mut longest = 0;
        for pair in deliveries.windows(2) {
            let (from, to) = (pair[0], pair[1]);
            let gap = to - from;
            if to > kill.at_ns && from < kill.ready_ns {
                longest = longest.max(gap);
            }
            if (kill.at_ns - beside..kill.at_ns).contains(&to) {
                self.before.record(gap);
            } else if (kill.at_ns..kill.ready_ns).contains(&to) {
                self.during.record(gap);
            } else if (kill.ready_ns..kill.ready_ns + beside).contains(&to) {
                self.after.record(gap);
            }
        }
        self.longest.record(longest);
    }

    fn fill(self, parts: &mut Parts) {
        let lost = self.accepted - self.answered;
        parts.notes.push(format!(
            "{} kills, {} events accepted, {lost} without their answer",
            self.ready.count(),
            self.accepted
        ));
        if self.dry > 0 {
            parts.notes.push(format!(
                "{} times a source had run dry before the agent was back: not in the gaps",
                self.dry
            ));
        }
        let over = |samples: &Samples| samples.quantile_ns(0.99) / self.before.quantile_ns(0.99);
        let ratios = [
            ("agent_death.gap_p99.during_over_before", over(&self.during)),
            ("agent_death.gap_p99.after_over_before", over(&self.after)),
            (
                "agent_death.longest_gap_ms",
                self.longest.quantile_ns(1.0) / 1e6,
            ),
            ("agent_death.ready_ms.p50", self.ready.p50_ns() / 1e6),
            ("agent_death.lost", lost as f64),
        ];
        // A quotient of nothing is no number.
        let ratios = ratios.into_iter().filter(|(_, value)| value.is_finite());
        parts
            .ratios
            .extend(ratios.map(|(name, value)| (name.to_owned(), value)));
        for (case, samples) in [
            ("between two deliveries, before the agent dies", self.before),
            (
                "between two deliveries, while no agent is ready",
                self.during,
            ),
            (
                "between two deliveries, after the next is ready",
                self.after,
            ),
            (
                "longest time between two deliveries around each death",
                self.longest,
            ),
            ("from SIGKILL until the next agent is ready", self.ready),
        ] {
            let row = Row::new(case, SERIES, Unit::Ms, &samples, None);
            parts.rows.push((row, samples));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_gap_belongs_to_the_time_in_which_it_ends_and_the_longest_touches_the_agents_absence() {
        let kill = Kill {
            at_ns: 1000 * MS,
            ready_ns: 1100 * MS,
        };
        // Long gaps: one far before, one over the kill, one that begins before it is ready.
        let deliveries = [700, 890, 894, 1008, 1012, 1098, 1130, 1134, 1500].map(|ms| ms * MS);
        let mut seen = Seen::default();
        seen.note(kill, &deliveries);
        let counts = [&seen.before, &seen.during, &seen.after].map(Samples::count);
        assert_eq!((counts, seen.dry), ([2, 3, 2], 0));
        assert_eq!(seen.longest.summary().max, (114 * MS) as f64);
    }

    #[test]
    fn a_source_that_ran_dry_while_no_agent_was_there_gives_no_gap() {
        let kill = Kill {
            at_ns: 1000 * MS,
            ready_ns: 1100 * MS,
        };
        let mut seen = Seen::default();
        seen.note(kill, &[990 * MS, 1050 * MS]);
        assert_eq!((seen.dry, seen.during.count()), (1, 0));
    }
}

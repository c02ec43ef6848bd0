//! A long day: requests, logs, commands and new deployments, and what the agent holds meanwhile.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::fleet::{Agent, Fleet, Stops, say};
use super::harness::is_full;

/// Answers are kept no longer than this, so what is held is level from then on.
const KEPT: Duration = Duration::from_secs(10);
const LETTERS: [&str; 2] = ["x", "y"];
/// Pause of a caller between two requests.
const PAUSE: Duration = Duration::from_millis(20);
/// Looks at the holdings in the whole run.
const LOOKS: u32 = 120;

/// Counters of the metrics page that stand still while nothing goes wrong.
const ERRORS: [&str; 17] = [
    "failed",
    "busy",
    "late",
    "folded",
    "redelivered",
    "dead",
    "dead_dropped",
    "worker_restarts",
    "connections_displaced",
    "connections_timed_out",
    "connections_refused",
    "bus_full",
    "bus_exhausted",
    "bus_quarantined",
    "bus_recovered_commits",
    "bus_recovered_lanes",
    "bus_recovered_messages",
];

/// The same, but on the page only once they have moved.
const RARE_ERRORS: [&str; 2] = ["limit_hits", "quarantined"];

/// What a process holds.
#[derive(Clone, Copy, Debug)]
struct Look {
    resident_kib: u64,
    descriptors: u64,
}

impl Look {
    fn at(pid: u32) -> Look {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.unwrap().split_whitespace().next().unwrap();
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        Look {
            resident_kib: kib.parse().unwrap(),
            descriptors: descriptors.count() as u64,
        }
    }
}

/// A process that must not grow: its most in the last quarter of the run is no more than its most
/// in the second quarter and this.
struct Watched {
    name: String,
    pid: u32,
    looks: Vec<Look>,
    spare_kib: u64,
    spare_descriptors: u64,
}

impl Watched {
    fn new(name: &str, pid: u32, spare_kib: u64, spare_descriptors: u64) -> Watched {
        Watched {
            name: name.to_owned(),
            pid,
            looks: Vec::new(),
            spare_kib,
            spare_descriptors,
        }
    }

    fn assert_level(&self) {
        let quarter = self.looks.len() / 4;
        let (second, last) = (
            &self.looks[quarter..2 * quarter],
            &self.looks[3 * quarter..],
        );
        let most = |looks: &[Look], of: fn(&Look) -> u64| looks.iter().map(of).max().unwrap();
        for (what, of, spare) in [
            (
                "KiB",
                (|look| look.resident_kib) as fn(&Look) -> u64,
                self.spare_kib,
            ),
            (
                "descriptors",
                |look| look.descriptors,
                self.spare_descriptors,
            ),
        ] {
            let (before, after) = (most(second, of), most(last, of));
            say(&format!("{}: {before} {what}, later {after}", self.name));
            assert!(
                after <= before + spare,
                "{}: {before} {what}, later {after}",
                self.name
            );
        }
    }
}

/// The error counters that are not 0, and answers that are none, as the metrics page has them.
fn errors(agent: &Agent<'_>) -> Vec<String> {
    let page = agent.call("GET", "/metrics", &[], b"").text();
    let is_error = |line: &&str| {
        let Some((name, value)) = line.rsplit_once(' ') else {
            return false;
        };
        let counter = name.split('{').next().unwrap_or_default();
        let counter = counter.strip_prefix("sandpipe_").unwrap_or_default();
        let counter = counter.strip_suffix("_total").unwrap_or_default();
        let refused = counter == "http_requests" && !name.contains("code=\"2");
        value != "0" && (refused || ERRORS.contains(&counter) || RARE_ERRORS.contains(&counter))
    };
    assert!(page.ends_with("# EOF\n"), "{page}");
    for counter in ERRORS {
        let family = format!("# TYPE sandpipe_{counter} counter\n");
        assert!(page.contains(&family), "{counter} is no counter any more");
    }
    page.lines().filter(is_error).map(str::to_owned).collect()
}

/// Asks one application again and again; every tenth handling writes to the log.
fn ask_until(agent: &Agent<'_>, letter: &str, stop: &AtomicBool, answered: &AtomicUsize) {
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let order = if number % 10 == 0 { "*: log " } else { "" };
        let text = format!("{order}n{number}.");
        let answer = agent.post(letter, &text);
        assert_eq!((answer.status, answer.text()), (200, text + "ab"));
        answered.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(PAUSE);
    }
}

/// One application comes, gets a second version and goes; somebody reads lists and logs.
fn one_round(fleet: &Fleet, agent: &Agent<'_>) {
    fleet.deploy(&fleet.write("z", &["a"], "", ""));
    assert_eq!(fleet.ok(&["invoke", &fleet.app("z"), "--data", "1"]), "1a");
    fleet.deploy(&fleet.write("z", &["a", "b"], "", ""));
    assert_eq!(agent.post("z", "2").text(), "2ab");
    assert_eq!(errors(agent), [""; 0]);
    let place = agent.accept("x", "later.");
    assert_eq!(agent.collect(&place).text(), "later.ab");
    assert!(fleet.ok(&["ps"]).contains(&fleet.app("z")));
    assert!(
        fleet
            .ok(&["logs", &fleet.app("x")])
            .contains("plain on stdout")
    );
    fleet.ok(&["undeploy", &fleet.app("z"), "--purge"]);
}

/// Rounds for so long; `look` is called from time to time.
fn rounds(fleet: &Fleet, agent: &Agent<'_>, time: Duration, mut look: impl FnMut()) -> usize {
    let begin = Instant::now();
    let mut done = 0;
    let mut looks = 0;
    while begin.elapsed() < time {
        one_round(fleet, agent);
        done += 1;
        // Between two rounds, so that no half-made deployment is seen.
        while begin.elapsed() > time * looks / LOOKS && looks < LOOKS {
            look();
            looks += 1;
        }
    }
    done
}

#[test]
fn through_a_long_day_neither_memory_nor_descriptors_grow_and_no_error_is_counted() {
    let time = Duration::from_secs(if is_full() { 1800 } else { 30 });
    let fleet = Fleet::new();
    let agent = fleet.start();
    let limits = format!("deadline_ms = {}\nresult_ttl_s = 5", KEPT.as_millis());
    for (letter, mode) in LETTERS.into_iter().zip(["", "mode = \"pool\""]) {
        fleet.deploy(&fleet.write(letter, &["a", "b"], &limits, mode));
    }
    // A round holds more at its peak than between two: the allocator gives it back late.
    let mut watched = vec![Watched::new("agent", agent.pid(), 4 << 10, 8)];
    for letter in LETTERS {
        let init = fleet.inits(letter)[0];
        watched.push(Watched::new(&format!("init of {letter}"), init, 512, 4));
    }
    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let done = std::thread::scope(|scope| {
        let _stops = Stops(&stop);
        for letter in LETTERS {
            let (agent, stop, answered) = (&agent, &stop, &answered);
            scope.spawn(move || ask_until(agent, letter, stop, answered));
        }
        rounds(&fleet, &agent, KEPT, || ());
        rounds(&fleet, &agent, time, || {
            for process in &mut watched {
                process.looks.push(Look::at(process.pid));
            }
        })
    });
    assert_eq!(errors(&agent), [""; 0]);
    say(&format!(
        "{time:?}: {done} rounds of deployments, {} requests answered",
        answered.into_inner()
    ));
    watched.iter().for_each(Watched::assert_level);
    agent.stop();
    fleet.assert_clean();
}

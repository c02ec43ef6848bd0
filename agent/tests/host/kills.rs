//! The agent killed at every moment, three applications at work.

use std::collections::HashMap;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sandpipe_global_bus::{EmbeddedBus, EmbeddedOptions, GlobalBus, Payload, RESULTS};

use super::fleet::{Agent, Fleet};
use super::harness::until;

const LETTERS: [&str; 3] = ["x", "y", "z"];

/// Sends accepted requests to all three applications until the agent is killed; what was accepted.
fn load(agent: &Agent<'_>, fleet: &Fleet, round: usize, stop: &AtomicBool) -> Vec<Accepted> {
    let accepted = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for letter in LETTERS {
            let (accepted, path) = (&accepted, format!("/{}", fleet.app(letter)));
            scope.spawn(move || {
                for number in 0.. {
                    let text = format!("r{round}n{number}.");
                    let headers = [("prefer", "respond-async")];
                    let answer = sandpipe_agent::client::request(
                        agent.address,
                        "POST",
                        &path,
                        &headers,
                        text.as_bytes(),
                        super::harness::WATCHDOG,
                    );
                    // Without an answer nothing was promised.
                    let Ok(answer) = answer else { return };
                    if answer.status == 202 {
                        let place = answer.header("location").unwrap().to_owned();
                        accepted.lock().unwrap().push(Accepted {
                            letter,
                            text,
                            place,
                        });
                    }
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
    });
    accepted.into_inner().unwrap()
}

/// A request that was accepted for later: its application, what was sent, where its answer will be.
pub struct Accepted {
    pub letter: &'static str,
    pub text: String,
    pub place: String,
}

/// How long until it takes requests to all three again, from the start of the next agent on.
fn until_ready(agent: &Agent<'_>, since: Instant) -> Duration {
    until("it is ready again", || {
        agent.call("GET", "/readyz", &[], b"").status == 200
    });
    since.elapsed()
}

/// Each accepted request has one answer on its global bus, and nothing is unfinished there.
pub fn assert_effects_once(fleet: &Fleet, accepted: &[Accepted]) {
    for letter in LETTERS {
        let app = fleet.app(letter);
        let log = fleet.path("data").join(&app).join("log");
        let (mut bus, _) = EmbeddedBus::open(&log, EmbeddedOptions::default()).unwrap();
        let mut answers: HashMap<String, String> = HashMap::new();
        let found = bus.replay(&app, &mut |record| {
            if &*record.grain != RESULTS {
                return; // it is counted as unfinished
            }
            let Payload::Inline(bytes) = record.payload else {
                panic!("no answer here is that large")
            };
            let answer = String::from_utf8(bytes).unwrap();
            let before = answers.insert(record.id.to_string(), answer);
            assert_eq!(before, None, "two answers of {}", record.id);
        });
        let found = found.unwrap();
        assert_eq!(found.messages, 0, "{letter}: nothing is unfinished");
        let of_app: Vec<_> = accepted.iter().filter(|a| a.letter == letter).collect();
        assert!(found.results >= of_app.len() as u64);
        for Accepted { text, place, .. } in of_app {
            let id = place.rsplit('/').next().unwrap();
            assert_eq!(answers.remove(id), Some(format!("{text}ab")), "{letter}");
        }
        // Nobody was told of these: durable when the agent died, and finished all the same.
        for answer in answers.values() {
            assert!(answer.ends_with(".ab"), "{letter}: {answer}");
        }
    }
}

#[test]
fn an_agent_killed_again_and_again_under_the_load_of_three_applications_loses_nothing() {
    let kills = if super::harness::is_full() { 50 } else { 10 };
    let fleet = Fleet::new();
    let mut agent = fleet.start();
    let limits = "max_in_flight = 10000\nresult_ttl_s = 3600";
    for letter in LETTERS {
        fleet.deploy(&fleet.write(letter, &["a", "b"], limits, ""));
    }
    let inits: Vec<Vec<u32>> = LETTERS.iter().map(|letter| fleet.inits(letter)).collect();
    let (mut accepted, mut ready) = (Vec::new(), Vec::new());
    for round in 0..kills {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let sending = scope.spawn(|| load(&agent, &fleet, round, &stop));
            std::thread::sleep(Duration::from_millis(40 + 37 * (round as u64 % 8)));
            super::harness::kill(agent.pid(), "KILL");
            stop.store(true, Ordering::Relaxed);
            accepted.extend(sending.join().unwrap());
        });
        agent.kill();
        let begin = Instant::now();
        agent = fleet.start();
        assert_eq!(agent.announced["resumed"], 3);
        ready.push(until_ready(&agent, begin));
    }
    let now: Vec<Vec<u32>> = LETTERS.iter().map(|letter| fleet.inits(letter)).collect();
    assert_eq!(now, inits, "the sandboxes are adopted, not made anew");
    for Accepted {
        letter,
        text,
        place,
    } in &accepted
    {
        let answer = agent.collect(place);
        assert_eq!(
            (answer.status, answer.text()),
            (200, format!("{text}ab")),
            "of {letter}"
        );
    }
    assert!(accepted.len() > 10 * kills, "only {}", accepted.len());
    ready.sort();
    agent.stop();
    assert_effects_once(&fleet, &accepted);
    fleet.assert_clean();
    // Past libtest, which keeps what a passed test prints.
    let _ = writeln!(
        std::io::stderr(),
        "{kills} kills, {} accepted requests answered once; ready again after {:?} (median), {:?} \
         (longest)",
        accepted.len(),
        ready[kills / 2],
        ready[kills - 1]
    );
}

/// Killed at ever later moments of a replacement: one of the two versions is deployed, whole.
#[test]
fn an_agent_killed_while_a_version_takes_over_leaves_one_of_the_two() {
    let steps = if super::harness::is_full() { 60 } else { 12 };
    let fleet = Fleet::new();
    let mut agent = fleet.start();
    fleet.deploy(&fleet.write("x", &["a"], "", ""));
    let (mut accepted, mut seen) = (Vec::new(), [0, 0]);
    for step in 0..steps {
        let grains: &[&str] = if step % 2 == 0 { &["a", "b"] } else { &["a"] };
        let file = fleet.write("x", grains, "", "");
        let text = format!("s{step}.");
        let place = agent.accept("x", &text);
        let mut deploying = std::process::Command::new(super::harness::SANDPIPE)
            .arg("deploy")
            .arg(&file)
            .env("SANDPIPE_RUN_DIR", fleet.run_dir())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(10 * step as u64));
        agent.kill();
        deploying.wait().unwrap();
        agent = fleet.start();
        assert_eq!(agent.announced["resumed"], 1);
        until("it is ready", || agent.app("x").not_ready.is_none());
        assert_eq!(
            fleet.inits("x").len(),
            1,
            "the other version's sandbox is gone"
        );
        let answer = agent.post("x", "1").text();
        let which = ["1a", "1ab"].iter().position(|version| *version == answer);
        seen[which.unwrap_or_else(|| panic!("{answer}"))] += 1;
        accepted.push((text, place));
    }
    for (text, place) in accepted {
        let answer = agent.collect(&place).text();
        assert!(
            [format!("{text}a"), format!("{text}ab")].contains(&answer),
            "{answer}"
        );
    }
    eprintln!("versions after the kills: {seen:?}");
    agent.stop();
    fleet.assert_clean();
}

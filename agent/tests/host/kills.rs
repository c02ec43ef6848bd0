//! The agent killed at every moment, three applications at work.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

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

struct Accepted {
    letter: &'static str,
    text: String,
    place: String,
}

#[test]
fn an_agent_killed_again_and_again_under_the_load_of_three_applications_loses_nothing() {
    let kills = if super::harness::is_full() { 50 } else { 8 };
    let fleet = Fleet::new();
    let mut agent = fleet.start();
    let limits = "max_in_flight = 10000\nresult_ttl_s = 3600";
    for letter in LETTERS {
        fleet.deploy(&fleet.write(letter, &["a", "b"], limits, ""));
    }
    let inits: Vec<Vec<u32>> = LETTERS.iter().map(|letter| fleet.inits(letter)).collect();
    let mut accepted = Vec::new();
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
        agent = fleet.start();
        assert_eq!(agent.announced["resumed"], 3);
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
    eprintln!(
        "{kills} kills, {} accepted requests answered",
        accepted.len()
    );
    agent.stop();
    fleet.assert_clean();
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

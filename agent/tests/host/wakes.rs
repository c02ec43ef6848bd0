//! Wake-ups of the agent by real messages.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::bounds::{assert_named, limit};
use super::fleet::{Agent, Fleet};
use super::harness::until;

fn woken(agent: &Agent<'_>, letter: &str) -> u64 {
    agent.app(letter).bus[0].counts["woken"]
}

#[test]
fn a_storm_of_messages_wakes_the_agent_up_to_its_bound_and_is_answered_beside_a_calm_neighbour() {
    let bound = 100;
    let fleet = Fleet::new();
    let agent = fleet.start();
    let pool = "mode = \"pool\"";
    let limits = format!("wakes_per_s = {bound}");
    fleet.deploy(&fleet.write("x", &["a", "b"], &limits, pool));
    fleet.deploy(&fleet.write("y", &["a"], "", pool));
    assert_eq!(agent.post("x", "1").text(), "1ab");
    let ended = AtomicBool::new(false);
    let (storm, calm) = std::thread::scope(|scope| {
        let storm = || {
            let mut answered = 0u64;
            while !ended.load(Ordering::Relaxed) {
                assert_eq!(agent.post("x", "1").text(), "1ab");
                answered += 1;
            }
            answered
        };
        let storms: Vec<_> = (0..4).map(|_| scope.spawn(storm)).collect();
        until("the bound holds", || limit(&agent, "wakes_per_s").hits > 0);
        let (before, since) = (woken(&agent, "x"), Instant::now());
        let mut calm = 0;
        while since.elapsed() < Duration::from_secs(3) {
            assert_eq!(agent.post("y", "1").text(), "1a");
            calm += 1;
        }
        let seconds = since.elapsed().as_secs() + 2;
        let wakes = woken(&agent, "x") - before;
        ended.store(true, Ordering::Relaxed);
        assert!(wakes <= seconds * bound, "{wakes} in {seconds} s");
        let answered = storms.into_iter().map(|storm| storm.join().unwrap());
        (answered.sum::<u64>(), calm)
    });
    eprintln!("{storm} requests of the storm, {calm} of the neighbour");
    assert!(storm > 4 * bound, "{storm} requests are no storm");
    assert!(limit(&agent, "wakes_per_s").hits >= 3);
    assert_named(&fleet, &agent, "wakes_per_s");
    let hit = agent.app("y").limits.into_iter().find(|kept| kept.hits > 0);
    assert_eq!(hit, None, "the neighbour's");
    agent.stop();
    fleet.assert_clean();
}

//! A grain that does not return and takes every CPU cycle it gets, beside a neighbour.

use super::fleet::{Agent, Fleet};
use super::harness::children;

/// More spinning instances than most machines have CPUs left.
const SPINNERS: usize = 4;
const NEIGHBOURS_REQUESTS: usize = 300;

/// For an hour, if it were let.
fn spin(agent: &Agent<'_>) {
    let answer = agent.post("x", "b: spin 3600000 ");
    assert_eq!(answer.status, 500, "{}", answer.text());
    let said: serde_json::Value = serde_json::from_str(&answer.text()).unwrap();
    assert_eq!(
        (&said["error"], &said["grain"]),
        (&"timeout".into(), &"b".into())
    );
    let detail = said["detail"].as_str().unwrap();
    assert!(detail.contains("time limit of 1500 ms"), "{detail}");
}

fn worker(agent: &Agent<'_>, grain: &str) -> Option<u32> {
    let grains = agent.app("x").grains;
    grains.into_iter().find(|state| state.grain == grain)?.pid
}

/// CPU time that a process had, in ticks; none if it is gone.
fn ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(") ")?;
    let user = after_name.split(' ').nth(11)?;
    user.parse().ok()
}

#[test]
fn a_grain_that_spins_is_ended_at_its_time_limit_and_its_neighbour_gets_every_answer() {
    let fleet = Fleet::new();
    let agent = fleet.start();
    let pid = agent.pid();
    let grain = format!("time_limit_ms = 1500\nmode = \"pool\"\nconcurrency = {SPINNERS}");
    fleet.deploy(&fleet.write("x", &["a", "b"], "max_attempts = 2", &grain));
    fleet.deploy(&fleet.write("y", &["a", "b"], "", ""));
    let (inits, workers) = (fleet.inits("x"), [worker(&agent, "a"), worker(&agent, "b")]);
    std::thread::scope(|scope| {
        let spinning: Vec<_> = (0..2 * SPINNERS)
            .map(|_| scope.spawn(|| spin(&agent)))
            .collect();
        for number in 0..NEIGHBOURS_REQUESTS {
            let text = format!("n{number}.");
            let answer = agent.post("y", &text);
            assert_eq!((answer.status, answer.text()), (200, text + "ab"));
        }
        assert_eq!(agent.call("GET", "/readyz", &[], b"").status, 200);
        for one in spinning {
            one.join().unwrap();
        }
    });
    // Nobody spins on: what is there now has had next to nothing.
    for instance in workers[1].map(children).unwrap_or_default() {
        assert!(
            ticks(instance).is_none_or(|had| had < 100),
            "{instance} has spun"
        );
    }
    assert_eq!(agent.post("x", "z").text(), "zab", "it works again at once");
    assert_eq!((agent.pid(), agent.status().pid), (pid, pid));
    assert_eq!(fleet.inits("x"), inits, "its sandbox lives on");
    assert_eq!(
        [worker(&agent, "a"), worker(&agent, "b")],
        workers,
        "so do its workers"
    );
    agent.stop();
    fleet.assert_clean();
}

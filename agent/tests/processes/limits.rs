//! An application past the limits of its `app.toml`: it pays itself, whoever stands beside it.

use super::harness::{Agent, Place, skip, until};

/// Whether this machine has the controller for us; says that the test is skipped if not.
fn available(controller: &str) -> bool {
    let probes = sandpipe_sandbox::probe_isolation();
    let v1 = format!("cgroup v1 {controller}");
    let found = probes.iter().any(|probe| {
        let v2 = probe.name == "cgroup v2" && probe.reason.split(' ').any(|c| c == controller);
        probe.ok && (v2 || probe.name == v1)
    });
    if !found {
        skip(&format!("no cgroup with the {controller} controller here"));
    }
    found
}

/// What one of these files of the application's cgroups says.
fn in_cgroup(place: &Place, files: [&str; 2]) -> String {
    let cgroups = place.cgroups();
    let mut paths = cgroups
        .iter()
        .flat_map(|cgroup| files.map(|file| cgroup.join(file)));
    let text = paths.find_map(|path| std::fs::read_to_string(path).ok());
    text.unwrap_or_else(|| panic!("no {files:?} in {cgroups:?}"))
}

/// The agent, its sandbox and its grains are those of before.
fn unharmed(place: &Place, agent: &Agent<'_>, init: Option<u32>, neighbour: u32) {
    assert_eq!(agent.post(&[], "y").text(), "yab");
    assert_eq!(place.init(), init, "the sandbox lives on");
    assert_eq!(agent.worker("a"), neighbour, "so does the other grain");
    let app = agent.app();
    assert_eq!((app.attachments, app.refused.len()), (1, 0));
}

#[test]
fn an_application_past_its_memory_limit_gets_500_and_its_neighbours_notice_nothing() {
    let place = Place::chain(&["a", "b"], "memory_limit_mb = 96\nmax_attempts = 2", "");
    let other = Place::chain(&["a", "b"], "", "");
    let (agent, beside) = (place.start(), other.start());
    let (init, neighbour) = (place.init(), agent.worker("a"));
    if available("memory") {
        let limit = in_cgroup(&place, ["memory.limit_in_bytes", "memory.max"]);
        assert_eq!(limit.trim(), (96u64 << 20).to_string());
        for _ in 0..3 {
            let answer = agent.post(&[], "b: hoard 400 ");
            assert_eq!(answer.status, 500, "{}", answer.text());
            assert!(answer.text().contains("crashed"), "{}", answer.text());
            assert_eq!(beside.post(&[], "x").text(), "xab");
            unharmed(&place, &agent, init, neighbour);
        }
    }
    agent.stop();
    beside.stop();
    place.assert_clean();
    other.assert_clean();
}

#[test]
fn an_application_past_its_process_limit_is_refused_a_fork_and_the_agent_goes_on() {
    let place = Place::chain(&["a", "b"], "pids = 40\nmax_attempts = 2", "");
    let other = Place::chain(&["a", "b"], "", "");
    let (agent, beside) = (place.start(), other.start());
    let (init, neighbour) = (place.init(), agent.worker("a"));
    if available("pids") {
        assert_eq!(in_cgroup(&place, ["pids.max"; 2]).trim(), "40");
        std::thread::scope(|scope| {
            let call = scope.spawn(|| agent.post(&[], "b: crowd 1000 "));
            until("it has all it may have", || {
                in_cgroup(&place, ["pids.events"; 2]).trim() != "max 0"
            });
            assert_eq!(beside.post(&[], "x").text(), "xab", "while it is full");
            assert_eq!(agent.get("/healthz").status, 200);
            let answer = call.join().unwrap();
            assert_eq!(answer.status, 500, "{}", answer.text());
            assert!(
                answer.text().contains("children, then"),
                "{}",
                answer.text()
            );
        });
        unharmed(&place, &agent, init, neighbour);
    }
    agent.stop();
    beside.stop();
    place.assert_clean();
    other.assert_clean();
}

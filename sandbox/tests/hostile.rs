//! Workers that attack init and each other over the descriptors and paths that they have.
#![forbid(unsafe_code)]

mod common;

use common::{Agent, Scene, until};
use sandpipe_sandbox::WorkerState;

#[test]
fn a_worker_that_storms_its_line_is_ended_and_its_neighbour_hears_nothing() {
    let scene = Scene::new();
    let mut agent = Agent::start(&scene.spec(&["storming", "beating"]));
    until("it was ended for its storm", || {
        let worker = &agent.status().workers[0];
        let WorkerState::Backoff { last_exit, .. } = &worker.state else {
            return false;
        };
        last_exit == "killed by SIGKILL"
    });
    let storming = agent.status().workers[0].restarts;
    let neighbour = scene.beat("beating-1").expect("it beats");
    // It hears of each new life of its neighbour, once or twice; not of each message of the storm.
    assert!(
        neighbour.updates <= 2 * (storming + 2),
        "{} updates",
        neighbour.updates
    );
    let worker = &agent.status().workers[1];
    assert_eq!((&worker.state, worker.restarts), (&WorkerState::Running, 0));
    agent.shut_down();
}

#[test]
fn a_grain_cannot_claim_its_own_sandbox() {
    let scene = Scene::new();
    let mut spec = scene.spec(&["usurping", "beating"]);
    // Else it would not find the socket in the first place.
    spec.isolation.root = false;
    let mut agent = Agent::start(&spec);
    let isolated = agent.status().isolation.iter().any(|item| {
        item.name == "pid namespace" && item.state == sandpipe_sandbox::IsolationState::On
    });
    if !isolated {
        common::skip("no pid namespace here");
        return;
    }
    let said = scene.path().join("usurping-0.said");
    until("it tried", || said.exists());
    until("it has written what it heard", || {
        std::fs::read_to_string(&said).is_ok_and(|text| text.starts_with("answer: "))
    });
    let text = std::fs::read_to_string(&said).unwrap();
    assert!(!text.contains("claimed"), "{text}");
    assert_eq!(agent.status().epoch, 1, "the agent still owns the sandbox");
    agent.shut_down();
}

#[test]
fn an_accused_worker_is_ended_for_good_and_says_why() {
    let scene = Scene::new();
    let mut agent = Agent::start(&scene.spec(&["family", "beating"]));
    until("both run", || {
        let workers = agent.status().workers;
        workers
            .iter()
            .all(|worker| worker.state == WorkerState::Running)
    });
    let answer = agent.ask("quarantine 0 stamp-7");
    assert!(answer["error"].is_null(), "{answer}");
    until("its processes are gone", || {
        let worker = &agent.status().workers[0];
        worker.pid.is_none() && worker.restarts == 1
    });
    let reason = "stamp-7".to_owned();
    assert_eq!(
        agent.status().workers[0].state,
        WorkerState::Quarantined { reason }
    );
    // Longer than the first waits for a restart: it does not come.
    let beats = scene.beat("beating-1").unwrap().beats;
    until("its neighbour has gone on for a while", || {
        scene.beat("beating-1").unwrap().beats > beats + 300
    });
    assert_eq!(scene.starts("family-0").len(), 1);
    assert_eq!(agent.status().workers[1].restarts, 0);
    let refused = agent.ask("quarantine 9 nobody");
    assert!(
        refused["error"]
            .as_str()
            .unwrap()
            .contains("no such worker"),
        "{refused}"
    );
    agent.shut_down();
}

//! The whole application's limits: what stands in its cgroups, and what they do.
#![forbid(unsafe_code)]

mod common;

use std::fs;
use std::path::PathBuf;

use common::{Agent, Scene, until};
use sandpipe_sandbox::{IsolationState, SandboxSpec, WorkerState};

/// Takes half a gigabyte; bounded, so that a machine that enforces no limit outlives it.
const HOARD: &str = "a=x; while [ ${#a} -lt 500000000 ]; do a=$a$a; done; sleep 1000";
/// Forks a hundred children.
const FORKS: &str = "for i in $(seq 100); do sleep 1000 & done; sleep 1000";

/// A limit of the whole application as this machine holds it.
struct Held {
    /// The application's cgroup that has the limit's controller.
    cgroup: PathBuf,
    /// The file that the limit was written to.
    file: String,
}

impl Held {
    /// What the kernel says the limit is.
    fn value(&self) -> String {
        self.read(&self.file)
    }

    fn read(&self, file: &str) -> String {
        let path = self.cgroup.join(file);
        let text = fs::read_to_string(&path);
        text.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
            .trim()
            .to_owned()
    }

    /// A counter of a file of `name value` lines.
    fn counter(&self, file: &str, name: &str) -> u64 {
        let text = self.read(file);
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        let value = lines.find_map(|(key, value)| (key == name).then_some(value));
        value
            .unwrap_or_else(|| panic!("no {name} in {file}: {text}"))
            .parse()
            .unwrap()
    }
}

/// Whether this machine has the controller for us.
fn available(controller: &str) -> bool {
    let v1 = format!("cgroup v1 {controller}");
    sandpipe_sandbox::probe_isolation().iter().any(|probe| {
        let v2 = probe.name == "cgroup v2" && probe.reason.split(' ').any(|c| c == controller);
        probe.ok && (v2 || probe.name == v1)
    })
}

/// Where the limit called `item` is held; says why the test is skipped if it is not.
fn held(scene: &Scene, agent: &mut Agent, item: &str) -> Option<Held> {
    let controller = match item {
        "memory limit" => "memory",
        "process limit" => "pids",
        _ => "cpu",
    };
    let status = agent.status();
    let told = status.isolation.iter().find(|told| told.name == item);
    let told = told.unwrap_or_else(|| panic!("{item} is not reported"));
    if told.state != IsolationState::On {
        assert!(!available(controller), "{told:?}");
        common::skip(&format!("no {item}: {}", told.reason));
        return None;
    }
    let mut cgroups = scene.cgroups().into_iter();
    let cgroup = cgroups.find(|path| path.join(&told.reason).exists());
    Some(Held {
        cgroup: cgroup.unwrap_or_else(|| panic!("no cgroup has {}", told.reason)),
        file: told.reason.clone(),
    })
}

/// A sandbox of one worker that only lives, and of one that then runs this shell script: what it
/// takes must not be taken before the other has started.
fn scripted(scene: &Scene, script: &str) -> SandboxSpec {
    let mut spec = scene.spec(&["beating", "beating"]);
    let beat = scene.file("beating-1.beat");
    let script = format!(
        "until [ -s {} ]; do sleep 0.01; done; {script}",
        beat.display()
    );
    spec.workers[0].command = ["sh", "-c", &script].map(String::from).to_vec();
    spec
}

fn finish(scene: &Scene, mut agent: Agent) {
    let cgroups = scene.cgroups();
    agent.shut_down();
    agent.kill();
    scene.assert_nothing_left(&cgroups);
}

#[test]
fn the_applications_limits_are_what_the_kernel_says_and_hold_its_workers() {
    let scene = Scene::new();
    let mut spec = scene.spec(&["beating"]);
    spec.memory_limit_bytes = Some(96 << 20);
    spec.pids_limit = Some(40);
    spec.cpu_limit_millicores = Some(750);
    let mut agent = Agent::start(&spec);
    until("the worker runs", || scene.beat("beating-0").is_some());
    let worker = agent.status().workers[0].pid.unwrap().to_string();
    for (item, values) in [
        ("memory limit", ["100663296"].as_slice()),
        ("process limit", &["40"]),
        ("cpu limit", &["75000", "75000 100000"]), // v1, v2
    ] {
        let Some(held) = held(&scene, &mut agent, item) else {
            continue;
        };
        let value = held.value();
        assert!(values.contains(&value.as_str()), "{item}: {value}");
        // v2 has its workers in cgroups of their own, below.
        let mut procs = held.read("cgroup.procs");
        for entry in fs::read_dir(&held.cgroup).unwrap().flatten() {
            procs += "\n";
            procs += &fs::read_to_string(entry.path().join("cgroup.procs")).unwrap_or_default();
        }
        assert!(procs.lines().any(|pid| pid == worker), "{item}: {procs}");
    }
    finish(&scene, agent);
}

#[test]
fn past_its_cpu_limit_an_application_is_throttled() {
    let scene = Scene::new();
    let mut spec = scripted(&scene, "while :; do :; done");
    spec.cpu_limit_millicores = Some(100);
    let mut agent = Agent::start(&spec);
    if let Some(held) = held(&scene, &mut agent, "cpu limit") {
        until("twenty periods were throttled", || {
            held.counter("cpu.stat", "nr_throttled") >= 20
        });
    }
    finish(&scene, agent);
}

#[test]
fn past_its_memory_limit_an_application_loses_its_largest_process_and_goes_on() {
    let scene = Scene::new();
    let mut spec = scripted(&scene, HOARD);
    spec.memory_limit_bytes = Some(64 << 20);
    let mut agent = Agent::start(&spec);
    if held(&scene, &mut agent, "memory limit").is_some() {
        until("it was killed and backs off", || {
            let state = agent.status().workers[0].state.clone();
            matches!(state, WorkerState::Backoff { last_exit, .. } if last_exit.contains("SIGKILL"))
        });
        assert_eq!(agent.status().workers[1].state, WorkerState::Running);
        assert_eq!(agent.status().workers[1].restarts, 0);
    }
    finish(&scene, agent);
}

#[test]
fn past_its_process_limit_an_application_is_refused_a_fork_and_goes_on() {
    let scene = Scene::new();
    let mut spec = scripted(&scene, FORKS);
    spec.pids_limit = Some(24);
    let mut agent = Agent::start(&spec);
    if let Some(held) = held(&scene, &mut agent, "process limit") {
        until("a fork was refused", || {
            let now: u64 = held.read("pids.current").parse().unwrap();
            assert!(now <= 24, "{now} processes");
            held.counter("pids.events", "max") > 0
        });
        assert_eq!(agent.status().workers[1].state, WorkerState::Running);
        assert_eq!(agent.status().workers[1].restarts, 0);
    }
    finish(&scene, agent);
}

#[test]
fn a_memory_limit_below_what_the_queues_take_is_refused_by_name_and_leaves_nothing() {
    let scene = Scene::new();
    let mut spec = scene.spec(&["beating"]);
    let mut limit = 4096;
    spec.memory_limit_bytes = Some(limit);
    let answer = Agent::launch(&spec).answer();
    let refused = answer["error"].as_str().unwrap();
    assert!(
        refused.contains("a memory limit of 4096 bytes"),
        "{refused}"
    );
    assert!(!scene.app_dir().exists(), "refused before anything is made");
    // The least that it names is enough, and a byte less is not.
    let mut numbers = refused
        .split(' ')
        .filter_map(|word| word.parse::<u64>().ok());
    let needs = numbers.find(|&number| number != limit).unwrap();
    limit = needs - 1;
    spec.memory_limit_bytes = Some(limit);
    let answer = Agent::launch(&spec).answer();
    assert!(answer["error"].is_string(), "{answer}");
    spec.memory_limit_bytes = Some(needs);
    spec.workers[0].command = ["sleep", "1000"].map(String::from).to_vec();
    finish(&scene, Agent::start(&spec));
}

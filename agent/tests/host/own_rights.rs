//! What a running agent has given up, and its launcher's life and death.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::fleet::{Agent, EndsSandboxes, Fleet};
use super::harness::{is_root, kill, processes, skip, until};

/// A line of a process's or a thread's status.
fn line(status: &str, name: &str) -> String {
    let found = status.lines().find_map(|line| line.strip_prefix(name));
    let value = found.and_then(|rest| rest.strip_prefix(':'));
    value
        .unwrap_or_else(|| panic!("no {name}: {status}"))
        .trim()
        .to_owned()
}

fn status(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default()
}

fn statuses_of_threads(pid: u32) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let read = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("status")).ok();
    threads.filter_map(read).collect()
}

/// The children of a process, with their state and what they were started with.
fn children(pid: u32) -> Vec<(u32, char, String)> {
    let of = |child: u32| {
        let status = status(child);
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
        let own = parent.trim().parse() == Ok(pid);
        let state = line(&status, "State").chars().next()?;
        let words = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
        own.then(|| (child, state, String::from_utf8_lossy(&words).into_owned()))
    };
    processes().into_iter().filter_map(of).collect()
}

fn launcher(agent: &Agent<'_>) -> u32 {
    let children = children(agent.pid());
    let [(pid, _, words)] = &children[..] else {
        panic!("an agent has one child: {children:?}")
    };
    assert!(words.starts_with("sandpipe\0sandbox-launcher\0"), "{words}");
    *pid
}

fn zombies(pid: u32) -> Vec<(u32, char, String)> {
    let mut found = children(pid);
    found.retain(|(_, state, _)| *state == 'Z');
    found
}

#[test]
fn no_thread_of_a_serving_agent_has_a_right_that_it_does_not_need() {
    let fleet = Fleet::new();
    let mut command = fleet.command();
    command.args(["--restrict", "require"]);
    let agent = Agent::start(&fleet, command);
    fleet.deploy(&fleet.write("x", &["a"], "", ""));
    assert_eq!(agent.post("x", "1").text(), "1a");
    let threads = statuses_of_threads(agent.pid());
    assert!(threads.len() >= 5, "{}", threads.len());
    for thread in &threads {
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(line(thread, set), "0000000000000000", "{set}: {thread}");
        }
        assert_eq!(line(thread, "NoNewPrivs"), "1", "{thread}");
        assert_eq!(line(thread, "Seccomp"), "2", "{thread}");
        if is_root() {
            assert_eq!(line(thread, "CapBnd"), "0000000000000000", "{thread}");
        }
    }
    // The launcher has them still, and nothing but it.
    let launcher = launcher(&agent);
    let own = status(std::process::id());
    for set in ["CapEff", "CapBnd", "NoNewPrivs", "Seccomp"] {
        assert_eq!(line(&status(launcher), set), line(&own, set), "{set}");
    }
    let log = fleet.log();
    for part in [
        "launcher",
        "no privileges",
        "file rules",
        "system call filter",
    ] {
        let told = format!("restricted what=\"agent: {part}\"");
        assert_eq!(log.matches(&told).count(), 1, "{part}: {log}");
    }
    assert!(!log.contains("not restricted"), "{log}");
    fleet.ok(&["undeploy", &fleet.app("x")]);
    agent.stop();
    until("the launcher ends", || status(launcher).is_empty());
    fleet.assert_clean();
}

#[test]
fn an_agent_that_is_to_keep_its_rights_keeps_them_and_says_so() {
    let fleet = Fleet::new();
    let mut command = fleet.command();
    command.args(["--restrict", "off"]);
    let agent = Agent::start(&fleet, command);
    fleet.deploy(&fleet.write("x", &["a"], "", ""));
    assert_eq!(agent.post("x", "1").text(), "1a");
    let own = status(std::process::id());
    for set in ["CapEff", "CapBnd", "NoNewPrivs", "Seccomp"] {
        assert_eq!(line(&status(agent.pid()), set), line(&own, set), "{set}");
    }
    assert!(fleet.log().contains("keeps all its rights"));
    agent.stop();
    fleet.assert_clean();
}

#[test]
fn an_agent_deploys_only_from_where_it_may_read_and_says_what_to_configure() {
    let fleet = Fleet::new();
    let (near, far) = (
        fleet.write("x", &["a"], "", ""),
        fleet.write("y", &["a"], "", ""),
    );
    let config = fleet.path("settings");
    fs::create_dir(&config).unwrap();
    let config = config.join("agent.toml");
    let read = near.parent().unwrap();
    fs::write(&config, format!("[own_rights]\nread = [{read:?}]\n")).unwrap();
    let mut command = fleet.command();
    command.arg("--config").arg(&config);
    let agent = Agent::start(&fleet, command);
    fleet.deploy(&near);
    let refused = fleet.sandpipe(&["deploy", far.to_str().unwrap()]);
    let words = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{words}");
    let file = far.display().to_string();
    for part in [file.as_str(), "[own_rights] read", "restart the agent"] {
        assert!(words.contains(part), "no {part:?}: {words}");
    }
    // What it may not read is there, and others may.
    assert!(fs::read(&far).is_ok());
    assert_eq!(agent.post("x", "1").text(), "1a");
    // A new version reads the file again, a reload its own settings.
    fleet.deploy(&near);
    kill(agent.pid(), "HUP");
    until("it has read its settings again", || {
        fleet.log().contains("reloaded: ")
    });
    agent.stop();
    fleet.assert_clean();
}

#[test]
fn a_killed_agents_launcher_ends_and_its_sandboxes_do_not() {
    let fleet = Fleet::new();
    let agent = fleet.start();
    fleet.deploy(&fleet.write("x", &["a"], "", ""));
    let (old, inits) = (launcher(&agent), fleet.inits("x"));
    assert_eq!(inits.len(), 1);
    agent.kill();
    until("the launcher ends", || {
        status(old).is_empty() || line(&status(old), "State").starts_with('Z')
    });
    assert_eq!(fleet.inits("x"), inits);
    let agent = fleet.start();
    assert_eq!(agent.announced["resumed"], 1);
    until("it is ready", || agent.app("x").not_ready.is_none());
    assert_eq!(fleet.inits("x"), inits, "it is adopted");
    assert_eq!(agent.post("x", "1").text(), "1a");
    agent.stop();
    fleet.assert_clean();
}

#[test]
fn inits_that_die_leave_no_zombie_with_the_launcher() {
    let fleet = Fleet::new();
    let agent = fleet.start();
    fleet.deploy(&fleet.write("x", &["a"], "", ""));
    let launcher = launcher(&agent);
    for _ in 0..3 {
        let inits = fleet.inits("x");
        assert_eq!(children(launcher).len(), 1, "{:?}", children(launcher));
        kill(inits[0], "KILL");
        until("another sandbox serves", || {
            let now = fleet.inits("x");
            now.len() == 1 && now != inits && agent.app("x").not_ready.is_none()
        });
        assert_eq!(zombies(launcher), []);
    }
    fleet.ok(&["undeploy", &fleet.app("x")]);
    until("the launcher has no child", || {
        children(launcher).is_empty()
    });
    agent.stop();
    fleet.assert_clean();
}

#[test]
fn without_its_launcher_an_agent_goes_on_refuses_new_sandboxes_by_name_and_its_successor_has_one() {
    let fleet = Fleet::new();
    let _ends = EndsSandboxes(&fleet);
    let agent = fleet.start();
    fleet.deploy(&fleet.write("x", &["a"], "", ""));
    let (old, inits) = (launcher(&agent), fleet.inits("x"));
    kill(old, "KILL");
    until("it is said", || {
        fleet
            .log()
            .contains("the launcher has ended: what runs goes on")
    });
    until("it is reaped", || children(agent.pid()).is_empty());
    assert_eq!(agent.post("x", "1").text(), "1a", "what runs goes on");
    let refused = fleet.sandpipe(&["deploy", fleet.write("y", &["a"], "", "").to_str().unwrap()]);
    let words = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{words}");
    assert!(
        words.contains("the launcher of this agent has ended"),
        "{words}"
    );
    assert!(words.contains("restart the agent"), "{words}");
    assert_eq!(agent.post("x", "2").text(), "2a");
    agent.kill();
    let agent = fleet.start();
    assert_eq!(agent.announced["resumed"], 1);
    until("it is ready", || agent.app("x").not_ready.is_none());
    assert_eq!(fleet.inits("x"), inits, "it is adopted");
    fleet.deploy(&fleet.path("y").join("app.toml"));
    assert_eq!(agent.post("y", "3").text(), "3a");
    agent.stop();
    fleet.assert_clean();
}

#[test]
fn without_root_an_agent_gives_up_the_same() {
    const NOBODY: u32 = 65534;
    let fleet = Fleet::new();
    let program = fleet.command();
    let mut tried = Command::new(program.get_program());
    let runs = tried.arg("--version").uid(NOBODY).gid(NOBODY).output();
    if !is_root() || !runs.is_ok_and(|output| output.status.success()) {
        return skip("needs root to be somebody else, and a build directory open to others");
    }
    let file = fleet.write("x", &["a"], "", "");
    for path in [fleet.directory.path().to_path_buf(), fleet.path("x")] {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let mut command = fleet.command();
    command.args(["--restrict", "require"]);
    command.uid(NOBODY).gid(NOBODY).env_remove("HOME");
    let agent = Agent::start(&fleet, command);
    let deployed = Command::new(program.get_program())
        .arg("deploy")
        .arg(&file)
        .env("SANDPIPE_RUN_DIR", fleet.run_dir())
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&deployed.stderr);
    assert!(deployed.status.success(), "{words}\n{}", fleet.log());
    assert_eq!(agent.post("x", "1").text(), "1a");
    for thread in statuses_of_threads(agent.pid()) {
        assert_eq!(line(&thread, "CapEff"), "0000000000000000", "{thread}");
        assert_eq!(line(&thread, "NoNewPrivs"), "1", "{thread}");
        assert_eq!(line(&thread, "Seccomp"), "2", "{thread}");
    }
    agent.stop();
    fleet.assert_clean();
}

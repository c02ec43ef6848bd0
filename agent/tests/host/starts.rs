//! What the system refuses the agent at its own start: descriptors, and cgroups alone.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};

use super::fleet::{Agent, Fleet};
use super::harness::{is_root, kill, skip, until};

/// Words of whoever finds no descriptor: the loader's, the system's, ours.
const NAMES: [&str; 3] = ["Error 24", "open files", "raise LimitNOFILE"];

/// How an agent with so few descriptors fared.
enum Fared {
    /// It ended at once.
    Ended(ExitStatus),
    /// It runs, without its application.
    Alone(Child),
    /// It runs.
    Whole(Child),
}

/// Starts an agent that may have `descriptors`, with `x` configured. Its words are the fleet's log.
fn start(fleet: &Fleet, descriptors: u64) -> Fared {
    let log = fs::File::create(fleet.path("log")).unwrap();
    let plain = fleet.command();
    let mut command = Command::new("sh");
    let limited = format!("ulimit -n {descriptors} && exec \"$@\"");
    command.args(["-c", &limited, "sh"]);
    command.arg(plain.get_program()).args(plain.get_args());
    command.arg("--config").arg(fleet.path("agent.toml"));
    let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
    let mut line = String::new();
    let stdout = child.stdout.take().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    if line.is_empty() {
        return Fared::Ended(child.wait().unwrap());
    }
    if fleet.log().contains("not deployed") {
        Fared::Alone(child)
    } else {
        Fared::Whole(child)
    }
}

fn end(mut child: Child) {
    kill(child.id(), "TERM");
    until("the agent ends", || child.try_wait().unwrap().is_some());
}

#[test]
fn whatever_descriptor_the_agent_lacks_at_its_start_it_says_so_and_leaves_nothing() {
    let fleet = Fleet::new();
    let file = fleet.write("x", &["a"], "", "mode = \"pool\"\nconcurrency = 1");
    fs::write(
        fleet.path("agent.toml"),
        format!("applications = [{file:?}]"),
    )
    .unwrap();
    let (mut ended, mut alone, mut whole) = (0, 0, 0);
    for descriptors in 3.. {
        if whole == 3 {
            break;
        }
        assert!(descriptors < 200, "it never starts: {}", fleet.log());
        let what = format!("{descriptors} descriptors");
        let named = |log: &str| NAMES.iter().any(|name| log.contains(name));
        match start(&fleet, descriptors) {
            Fared::Ended(status) => {
                // 1 and 2 are ours, 127 is the loader's; a panic were 101.
                let code = status.code();
                let log = fleet.log();
                assert!(
                    [1, 2, 127].contains(&code.unwrap_or(0)),
                    "{what}: {status} {log}"
                );
                assert!(named(&log), "{what}: {log}");
                ended += 1;
            }
            Fared::Alone(child) => {
                assert!(named(&fleet.log()), "{what}: {}", fleet.log());
                end(child);
                alone += 1;
            }
            Fared::Whole(child) => {
                end(child);
                whole += 1;
            }
        }
        fleet.assert_clean();
        let _ = fs::remove_dir_all(fleet.path("data"));
    }
    eprintln!("{ended} ended, {alone} ran without the application");
    assert!(ended >= 5, "{ended}");
}

/// Root, with namespaces, but every cgroup read-only: its agent says what is off, and answers.
#[test]
fn where_cgroups_alone_are_refused_the_agent_says_so_by_name_and_answers() {
    if !is_root() {
        return skip("making cgroups read-only needs root");
    }
    let fleet = Fleet::new();
    let refuse = "mount --make-rprivate / || exit 9; \
                  for at in $(awk '$3 ~ /^cgroup/ { print $2 }' /proc/self/mounts); do \
                  mount -o remount,bind,ro $at || exit 9; done; exec \"$@\"";
    let probe = Command::new("unshare")
        .args(["--mount", "sh", "-c", refuse, "sh", "true"])
        .status();
    if !probe.is_ok_and(|status| status.success()) {
        return skip("no mount namespace in which cgroups can be read-only");
    }
    let plain = fleet.command();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", refuse, "sh"]);
    command.arg(plain.get_program()).args(plain.get_args());
    let agent = Agent::start(&fleet, command);
    fleet.deploy(&fleet.write("x", &["a"], "memory_limit_mb = 96", ""));
    assert_eq!(agent.post("x", "1").text(), "1a");
    assert!(fleet.cgroups().is_empty(), "{:?}", fleet.cgroups());
    let log = fleet.log();
    let told = |part: &str| {
        let mut lines = log.lines();
        lines.find(|line| line.contains("not isolated") && line.contains(part))
    };
    for part in ["cgroup v2", "cgroup kill", "memory limit", "process limit"] {
        let line = told(part);
        assert!(
            line.is_some_and(|line| line.contains("remedy=")),
            "{part}: {log}"
        );
    }
    for part in ["pid namespace", "mount namespace", "network namespace"] {
        assert_eq!(told(part), None, "{part}");
    }
    // What nobody counts is not said to be zero.
    let kept = agent.app("x").limits;
    assert!(
        kept.iter().all(|limit| limit.name != "memory_limit_mb"),
        "{kept:?}"
    );
    fleet.ok(&["undeploy", &fleet.app("x")]);
    agent.stop();
    fleet.assert_clean();
}

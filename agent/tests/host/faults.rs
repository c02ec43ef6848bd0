//! What the system refuses the agent while it deploys: descriptors, threads and processes, room
//! for its run directory, namespaces.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use super::fleet::{Agent, EndsSandboxes, Fleet};
use super::harness::{Mounted, SANDPIPE, is_root, kill, skip, until};
use super::rounds::{Holdings, settled};

/// Sets how many descriptors the agent may have; `None` is as many as before.
fn allow(agent: &Agent<'_>, descriptors: Option<u64>) {
    let pid = Pid::from_raw(i32::try_from(agent.pid()).unwrap());
    let own = rustix::process::getrlimit(Resource::Nofile);
    let limit = Rlimit {
        current: descriptors.or(own.current),
        maximum: own.maximum,
    };
    prlimit(pid, Resource::Nofile, limit).unwrap();
}

/// The limit that leaves the agent this many descriptors.
fn leaving(agent: &Agent<'_>, spare: usize) -> u64 {
    let open = fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap();
    let open: Vec<u64> = open
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    let mut unused = (0..).filter(|number| !open.contains(number));
    unused.nth(spare).expect("numbers go on")
}

/// `sandpipe deploy` of `x`, begun.
fn begin_deploy(fleet: &Fleet, file: &std::path::Path) -> Child {
    let mut command = Command::new(SANDPIPE);
    command.arg("deploy").arg(file);
    command.env("SANDPIPE_RUN_DIR", fleet.run_dir());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Whether it succeeded; if not, it said why in words that name what was missing.
fn judge(output: &Output, what: &str, names: &[&str]) -> bool {
    let words = String::from_utf8_lossy(&output.stderr);
    let named = names.iter().any(|name| words.contains(name));
    assert!(output.status.success() || named, "{what}: {words}");
    output.status.success()
}

/// Takes `x` away again if it is there; the neighbour answers.
fn recover(fleet: &Fleet, agent: &Agent<'_>, deployed: bool, what: &str) {
    if deployed {
        assert_eq!(agent.post("x", "1").text(), "1a", "{what}");
        fleet.ok(&["undeploy", &fleet.app("x"), "--purge"]);
    }
    let known = agent.status().deployments;
    assert_eq!(known.len(), 1, "{what}: {known:?}");
    assert_eq!(agent.post("y", "1").text(), "1a", "{what}");
    assert!(fleet.inits("x").is_empty(), "{what}: a sandbox is left");
}

/// An agent with a neighbour `y`, and the file of `x`; both made once before.
fn scene(fleet: &Fleet) -> (Agent<'_>, PathBuf, Holdings) {
    let agent = fleet.start();
    let grain = "mode = \"pool\"\nconcurrency = 1";
    fleet.deploy(&fleet.write("y", &["a"], "", grain));
    let file = fleet.write("x", &["a"], "", grain);
    for _ in 0..2 {
        fleet.deploy(&file);
        recover(fleet, &agent, true, "before");
    }
    let holdings = settled(fleet, &agent, None);
    (agent, file, holdings)
}

#[test]
fn whatever_descriptor_a_deployment_lacks_it_fails_by_name_or_succeeds_and_none_is_left() {
    let fleet = Fleet::new();
    let (agent, file, before) = scene(&fleet);
    let (mut failures, mut successes) = (0, 0);
    for spare in 0.. {
        if successes == 3 {
            break;
        }
        assert!(spare < 200, "{failures} failures: it never succeeds");
        let what = format!("{spare} descriptors to spare");
        allow(&agent, Some(leaving(&agent, spare)));
        let deploying = begin_deploy(&fleet, &file);
        if spare == 0 {
            // Who asks next waits for a descriptor.
            until("it is said that nobody is let in", || {
                fleet.log().contains("nobody is let in")
            });
        }
        let output = deploying.wait_with_output().unwrap();
        allow(&agent, None);
        let done = judge(&output, &what, &["descriptor", "open files", "os error 24"]);
        failures += usize::from(!done);
        successes += usize::from(done);
        recover(&fleet, &agent, done, &what);
    }
    assert!(failures >= 5, "only {failures} failures");
    assert_eq!(settled(&fleet, &agent, Some(&before)), before);
    // Those who look after the neighbour still do.
    let worker = agent.app("y").grains[0].pid.unwrap();
    kill(worker, "KILL");
    until("its restart is seen", || {
        agent.app("y").grains[0].restarts == 1
    });
    eprintln!("{failures} deployments failed by name");
    agent.stop();
    fleet.assert_clean();
}

/// A cgroup that counts processes and threads, with the agent in it; removed with the test.
struct Counted(PathBuf);

impl Counted {
    fn hold(agent: &Agent<'_>, name: &str) -> Option<Counted> {
        let path = PathBuf::from("/sys/fs/cgroup/pids").join(name);
        fs::create_dir(&path).ok()?;
        let counted = Counted(path);
        let pid = agent.pid().to_string();
        fs::write(counted.0.join("cgroup.procs"), pid).ok()?;
        Some(counted)
    }

    fn now(&self) -> u64 {
        let text = fs::read_to_string(self.0.join("pids.current")).unwrap();
        text.trim().parse().unwrap()
    }

    fn limit(&self, to: &str) {
        fs::write(self.0.join("pids.max"), to).unwrap();
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        // What is still in it, if the test panicked, goes up before it is removed.
        let procs = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        for pid in procs.lines() {
            let _ = fs::write("/sys/fs/cgroup/pids/cgroup.procs", pid);
        }
        // The last of them may just be ending.
        until("the cgroup is removed", || fs::remove_dir(&self.0).is_ok());
    }
}

#[test]
fn whatever_thread_or_process_a_deployment_is_refused_it_fails_by_name_and_nothing_is_left() {
    let fleet = Fleet::new();
    let (agent, file, before) = scene(&fleet);
    let Some(counted) = Counted::hold(&agent, &format!("faults-{}", std::process::id())) else {
        return skip("no cgroup v1 of pids that this user may make");
    };
    let idle = counted.now();
    let (mut failures, mut successes) = (0, 0);
    for spare in 0.. {
        if successes == 2 {
            break;
        }
        assert!(spare < 60, "{failures} failures: it never succeeds");
        let what = format!("{spare} processes to spare");
        until("all threads of before are gone", || counted.now() <= idle);
        counted.limit(&(idle + spare).to_string());
        let output = begin_deploy(&fleet, &file).wait_with_output().unwrap();
        counted.limit("max");
        let done = judge(&output, &what, &["no thread can be made", "os error 11"]);
        failures += usize::from(!done);
        successes += usize::from(done);
        recover(&fleet, &agent, done, &what);
    }
    assert!(failures >= 4, "only {failures} failures");
    assert_eq!(settled(&fleet, &agent, Some(&before)), before);
    eprintln!("{failures} deployments failed by name");
    agent.stop();
    drop(counted);
    fleet.assert_clean();
}

#[test]
fn with_a_full_run_directory_a_deployment_fails_by_name_and_passes_when_there_is_room() {
    if !is_root() {
        return skip("mounting a small tmpfs needs root");
    }
    let fleet = Fleet::new();
    fs::create_dir(fleet.run_dir()).unwrap();
    let Some(_mounted) = Mounted::tmpfs(&fleet.run_dir(), "nr_inodes=32") else {
        return skip("a tmpfs cannot be mounted here");
    };
    fs::set_permissions(
        fleet.run_dir(),
        std::os::unix::fs::PermissionsExt::from_mode(0o700),
    )
    .unwrap();
    let _ends = EndsSandboxes(&fleet);
    let (agent, file, before) = scene(&fleet);
    let filler = |number: usize| fleet.run_dir().join(format!("filler{number}"));
    let fillers = (0..).take_while(|&number| fs::File::create(filler(number)).is_ok());
    let fillers = fillers.count();
    // One after the other they are given back: each step of a deployment meets the full directory.
    let mut failures = 0;
    for number in 0..fillers {
        let what = format!("{number} files to spare");
        let output = begin_deploy(&fleet, &file).wait_with_output().unwrap();
        let done = judge(&output, &what, &["No space left", "os error 28"]);
        failures += usize::from(!done);
        let left = fleet.run_dir().join(fleet.app("x")).exists();
        assert_eq!(left, done, "{what}: its directory");
        recover(&fleet, &agent, done, &what);
        fs::remove_file(filler(number)).unwrap();
    }
    assert!(failures >= 2, "only {failures} of {fillers} failed");
    fleet.deploy(&file);
    recover(&fleet, &agent, true, "with room");
    assert_eq!(settled(&fleet, &agent, Some(&before)), before);
    agent.stop();
}

/// Root of a user namespace that may have no other namespaces: its agent says which parts are off,
/// and answers.
#[test]
fn where_namespaces_are_refused_the_agent_says_so_by_name_and_answers() {
    let fleet = Fleet::new();
    let refuse = "for kind in pid mnt ipc uts net cgroup user; do \
                  echo 0 > /proc/sys/user/max_${kind}_namespaces || exit 9; done; exec \"$@\"";
    let plain = fleet.command();
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "sh", "-c", refuse, "sh"]);
    let probe = Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "sh",
            "-c",
            refuse,
            "sh",
            "true",
        ])
        .status();
    if !probe.is_ok_and(|status| status.success()) {
        return skip("no user namespace in which others can be refused");
    }
    command.arg(plain.get_program()).args(plain.get_args());
    let agent = Agent::start(&fleet, command);
    fleet.deploy(&fleet.write("x", &["a"], "", ""));
    assert_eq!(agent.post("x", "1").text(), "1a");
    let log = fleet.log();
    for part in ["pid namespace", "mount namespace", "network namespace"] {
        let told = log
            .lines()
            .find(|line| line.contains("not isolated") && line.contains(part));
        assert!(
            told.is_some_and(|line| line.contains("remedy=")),
            "{part}: {log}"
        );
    }
    fleet.ok(&["undeploy", &fleet.app("x")]);
    agent.stop();
    fleet.assert_clean();
}

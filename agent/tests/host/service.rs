//! As a service: what the service manager hears, and the files that it and a container need.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::fleet::{Agent, Fleet};
use super::harness::{WATCHDOG, kill, skip, until};

/// The service manager's end.
struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    fn listen(path: &Path) -> Manager {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(WATCHDOG)).unwrap();
        Manager { socket }
    }

    /// The next message that is no sign of life.
    fn hear(&self) -> String {
        loop {
            let text = self.hear_any();
            if text != "WATCHDOG=1\n" {
                return text;
            }
        }
    }

    fn hear_any(&self) -> String {
        let mut bytes = [0; 4096];
        let length = self
            .socket
            .recv(&mut bytes)
            .expect("the agent says something");
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }
}

#[test]
fn the_service_manager_hears_of_start_life_reload_and_end() {
    let fleet = Fleet::new();
    let manager = Manager::listen(&fleet.path("notify"));
    std::fs::write(fleet.path("agent.toml"), "drain_s = 5\n").unwrap();
    let mut command = fleet.command();
    command.arg("--config").arg(fleet.path("agent.toml"));
    command.env("NOTIFY_SOCKET", fleet.path("notify"));
    command.env("WATCHDOG_USEC", "400000");
    let agent = Agent::start(&fleet, command);
    let ready = manager.hear();
    assert!(ready.starts_with("READY=1\nSTATUS=") && ready.contains("applications: 0"));
    for _ in 0..3 {
        assert_eq!(manager.hear_any(), "WATCHDOG=1\n");
    }
    let one = fleet.write("x", &["a"], "", "");
    let text = format!("drain_s = 1\nlisten = \"127.0.0.1:1\"\napplications = [{one:?}]\n");
    std::fs::write(fleet.path("agent.toml"), text).unwrap();
    // The option on the command line comes first, so the listening address has not changed.
    kill(agent.pid(), "HUP");
    let reloading = manager.hear();
    let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
    let time: u64 = time
        .unwrap_or_else(|| panic!("{reloading}"))
        .trim()
        .parse()
        .unwrap();
    assert!(time > 0);
    let ready = manager.hear();
    assert!(ready.starts_with("READY=1\nSTATUS=") && ready.contains("applications: 1"));
    assert_eq!(agent.post("x", "1").text(), "1a");
    agent.stop();
    assert!(manager.hear().starts_with("STOPPING=1\n"));
    fleet.assert_clean();
}

#[test]
fn a_bus_thread_that_does_not_answer_ends_the_signs_of_life() {
    let fleet = Fleet::new();
    let manager = Manager::listen(&fleet.path("notify"));
    let mut command = fleet.command();
    command.env("NOTIFY_SOCKET", fleet.path("notify"));
    command.env("WATCHDOG_USEC", "200000");
    let agent = Agent::start(&fleet, command);
    fleet.deploy(&fleet.write("x", &["a"], "", ""));
    assert!(manager.hear().starts_with("READY=1"));
    let tasks = std::fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap();
    // A thread's name is 15 bytes at most.
    let name_of_bus: String = format!("bus-{}", fleet.prefix).chars().take(12).collect();
    let bus = tasks.flatten().find(|task| {
        let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        name.starts_with(&name_of_bus)
    });
    let bus: u32 = bus
        .expect("a bus thread")
        .file_name()
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    let Some(stopped) = Traced::stop(bus) else {
        skip("a thread cannot be traced here");
        return;
    };
    // What was on its way is taken; then silence, longer than two looks.
    manager
        .socket
        .set_read_timeout(Some(Duration::from_secs(8)))
        .unwrap();
    let mut heard = 0;
    let mut bytes = [0; 4096];
    while manager.socket.recv(&mut bytes).is_ok() {
        heard += 1;
        assert!(heard < 20, "it goes on saying that it is alive");
    }
    drop(stopped);
    manager.socket.set_read_timeout(Some(WATCHDOG)).unwrap();
    assert_eq!(manager.hear_any(), "WATCHDOG=1\n");
    assert!(fleet.log().contains("no answer from the bus threads"));
    agent.stop();
}

/// A single stopped thread: gdb and strace do it this way, and `kill -STOP` stops them all.
struct Traced(std::process::Child);

impl Traced {
    fn stop(thread: u32) -> Option<Traced> {
        let mut command = Command::new("python3");
        command.args(["-c", STOPPER, &thread.to_string()]);
        command.stdin(std::process::Stdio::piped());
        command.stdout(std::process::Stdio::piped());
        let mut child = command.spawn().ok()?;
        let mut line = String::new();
        let stdout = child.stdout.take()?;
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).ok()?;
        (line == "stopped\n").then_some(Traced(child))
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// PTRACE_SEIZE and PTRACE_INTERRUPT of one thread, until standard input ends.
const STOPPER: &str = "
import ctypes, os, sys
ptrace = ctypes.CDLL(None, use_errno=True).ptrace
ptrace.argtypes = [ctypes.c_long] * 4
thread = int(sys.argv[1])
if ptrace(0x4206, thread, 0, 0) == 0 and ptrace(0x4207, thread, 0, 0) == 0:
    os.waitpid(thread, 0x40000000)
    print('stopped', flush=True)
    sys.stdin.read()
";

#[test]
fn a_reload_names_what_needs_a_restart_and_a_wrong_file_changes_nothing() {
    let fleet = Fleet::new();
    let config = fleet.path("agent.toml");
    std::fs::write(&config, "").unwrap();
    let mut command = fleet.command();
    command.arg("--config").arg(&config);
    let agent = Agent::start(&fleet, command);
    let bus = "[global_bus]\nkind = \"kafka\"\nbootstrap = \"k:1\"\n";
    std::fs::write(&config, bus).unwrap();
    kill(agent.pid(), "HUP");
    until("it has said so", || {
        fleet
            .log()
            .contains("global_bus has changed, which needs a restart")
    });
    std::fs::write(&config, "colour = 1").unwrap();
    kill(agent.pid(), "HUP");
    until("it has said so", || fleet.log().contains("not reloaded"));
    assert!(fleet.log().contains("unknown field `colour`"));
    fleet.deploy(&fleet.write("x", &["a"], "", ""));
    assert_eq!(agent.post("x", "1").text(), "1a");
    agent.stop();
    fleet.assert_clean();
}

fn deploy_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

#[test]
fn the_unit_is_one_that_systemd_takes() {
    let directory = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(deploy_directory().join("sandpipe.service")).unwrap();
    for setting in [
        "Type=notify",
        "KillMode=process",
        "Delegate=yes",
        "WatchdogSec=",
    ] {
        assert!(text.contains(setting), "no {setting}");
    }
    // systemd looks whether the program is there.
    let text = text.replace("/usr/local/bin/sandpipe", super::harness::SANDPIPE);
    let unit = directory.path().join("sandpipe.service");
    std::fs::write(&unit, text).unwrap();
    let verified = Command::new("systemd-analyze")
        .arg("verify")
        .arg(&unit)
        .output();
    let Ok(verified) = verified else {
        skip("no systemd-analyze");
        return;
    };
    let words = String::from_utf8_lossy(&verified.stderr);
    assert!(
        verified.status.success() && !words.contains("sandpipe.service"),
        "{words}"
    );
}

#[test]
fn the_examples_configuration_is_one_that_the_agent_takes() {
    let file = deploy_directory().join("agent.toml");
    let spec = sandpipe_agent::config::AgentSpec::load(&file).unwrap();
    assert_eq!(spec.data_dir.unwrap(), Path::new("/var/lib/sandpipe"));
}

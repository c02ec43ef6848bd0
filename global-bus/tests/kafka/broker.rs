//! A real broker for a test, which dies with it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Brokers of one test; stopped, and their data deleted, when it is dropped. If the test process
/// is killed, `--owner-pid` does the same.
pub struct Broker {
    dir: PathBuf,
    bootstrap: String,
}

impl Broker {
    /// The bootstrap address of a broker that all tests of this process share; it lives as long
    /// as the process. `None`, and a line that says why, if the machine cannot run one.
    pub fn shared() -> Option<&'static str> {
        static SHARED: OnceLock<Result<Broker, String>> = OnceLock::new();
        match SHARED.get_or_init(|| Broker::try_start(1)) {
            Ok(broker) => Some(&broker.bootstrap),
            Err(reason) => skip(reason),
        }
    }

    /// Brokers of one's own.
    pub fn start(brokers: u32) -> Option<Broker> {
        Broker::try_start(brokers).map_or_else(|reason| skip(&reason), Some)
    }

    fn try_start(brokers: u32) -> Result<Broker, String> {
        let dir = new_dir();
        let output = start(&dir, brokers, std::process::id());
        if output.status.code() == Some(69) {
            return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
        }
        Ok(Broker {
            bootstrap: bootstrap(&output),
            dir,
        })
    }

    /// A broker whose owner is killed as soon as it is up; returns its directory and its pid.
    pub fn start_for_a_dead_owner() -> Option<(PathBuf, u32)> {
        let dir = new_dir();
        let mut owner = Command::new("sleep").arg("600").spawn().unwrap();
        let output = start(&dir, 1, owner.id());
        let pid = fs::read_to_string(dir.join("1/pid"));
        owner.kill().unwrap();
        // Not reaped before the end: a dead process that nobody has waited for counts as dead.
        if output.status.code() == Some(69) {
            owner.wait().unwrap();
            return skip(String::from_utf8_lossy(&output.stderr).trim());
        }
        bootstrap(&output);
        let pid = pid.unwrap().trim().parse().unwrap();
        sandpipe_global_bus::conformance::wait_until("the broker to end", || !is_alive(pid));
        owner.wait().unwrap();
        Some((dir, pid))
    }

    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// SIGKILL for broker `id`; returns when it is gone.
    pub fn kill(&mut self, id: u32) {
        let pid = fs::read_to_string(self.dir.join(id.to_string()).join("pid")).unwrap();
        let killed = Command::new("kill")
            .args(["-KILL", pid.trim()])
            .status()
            .unwrap();
        assert!(killed.success());
        let pid = pid.trim().parse().unwrap();
        sandpipe_global_bus::conformance::wait_until("the kill", || !is_alive(pid));
    }

    /// Starts what was killed, with its data and its port.
    pub fn restart(&mut self) {
        let output = start(&self.dir, 1, std::process::id());
        assert_eq!(bootstrap(&output), self.bootstrap);
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let mut stop = script();
        stop.arg("stop")
            .arg("--dir")
            .arg(&self.dir)
            .env("KAFKA_STOP_S", "1");
        let _ = stop.status();
    }
}

/// Prints the line that `scripts/test` collects; the name of the test is that of its thread.
pub fn skip<T>(reason: &str) -> Option<T> {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("kafka");
    // Not eprintln!, which the test harness keeps to itself when a test passes.
    let _ = writeln!(std::io::stderr(), "SKIP {name}: {reason}");
    None
}

/// Whether the process is there and no zombie.
pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn start(dir: &Path, brokers: u32, owner: u32) -> Output {
    script()
        .args([
            "start",
            "--brokers",
            &brokers.to_string(),
            "--owner-pid",
            &owner.to_string(),
        ])
        .arg("--dir")
        .arg(dir)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn bootstrap(started: &Output) -> String {
    let error = String::from_utf8_lossy(&started.stderr);
    assert!(
        started.status.success(),
        "scripts/kafka start failed: {error}"
    );
    String::from_utf8(started.stdout.clone())
        .unwrap()
        .trim()
        .to_owned()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn script() -> Command {
    Command::new(root().join("scripts/kafka"))
}

fn new_dir() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    root().join(format!("target/kafka/test-{}-{count}", std::process::id()))
}

//! An application in a directory of its own, and agents that run it. Nothing is left behind, also
//! when a test panics.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sandpipe_agent::bridge::AppStatus;
use sandpipe_agent::client::{self, Response};
use sandpipe_agent::control::{AgentStatus, Question, ask};

pub const SANDPIPE: &str = env!("CARGO_BIN_EXE_sandpipe");
pub const GRAIN: &str = env!("CARGO_BIN_EXE_sandpipe-test-chain");

/// A watchdog, ten times what anything here takes on a busy machine.
pub const WATCHDOG: Duration = Duration::from_secs(60);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A directory with an `app.toml`, data and run directories.
pub struct Place {
    pub directory: tempfile::TempDir,
    pub app: String,
}

impl Place {
    /// An application that is a chain of test grains; `limits` are lines of `[limits]`, `grain`
    /// lines of every grain.
    pub fn chain(grains: &[&str], limits: &str, grain: &str) -> Place {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let app = format!("t{}-{number}", std::process::id());
        let directory = tempfile::tempdir().unwrap();
        let notes = directory.path().join("notes");
        let names: Vec<String> = grains.iter().map(|name| format!("{name:?}")).collect();
        let mut text = format!(
            "name = \"{app}\"\n[workflow]\nchain = [{}]\n[limits]\n{limits}\n",
            names.join(", ")
        );
        for name in &names {
            text += &format!(
                "[[grain]]\nname = {name}\nruntime = \"rust\"\nhandler = {GRAIN:?}\n{}\n",
                grain.replace("@NOTES@", &notes.display().to_string())
            );
        }
        // The grains of the tests write notes there.
        text += "[sandbox]\nwrite = [\".\"]\n";
        fs::write(directory.path().join("app.toml"), text).unwrap();
        Place { directory, app }
    }

    /// Lets the grains write below one more path.
    pub fn lets_write(&self, path: &str) {
        let file = self.path("app.toml");
        let text = fs::read_to_string(&file).unwrap();
        let more = format!("write = [\".\", {path:?}]");
        fs::write(file, text.replace("write = [\".\"]", &more)).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn run_dir(&self) -> PathBuf {
        self.path("run")
    }

    /// `sandpipe run` on this place, not yet started.
    pub fn command(&self) -> Command {
        let mut command = Command::new(SANDPIPE);
        command
            .arg("run")
            .arg(self.path("app.toml"))
            .args(["--listen", "127.0.0.1:0", "--json"])
            .arg("--data-dir")
            .arg(self.path("data"))
            .arg("--run-dir")
            .arg(self.run_dir());
        command
    }

    pub fn start(&self) -> Agent<'_> {
        Agent::start(self, self.command())
    }

    /// Lines that the grains noted, one for each time that a handler ran.
    pub fn notes(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("notes")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The init of this place's sandbox: it holds the lock.
    pub fn init(&self) -> Option<u32> {
        let lock = self.run_dir().join(&self.app).join("lock");
        processes().into_iter().find(|&pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let links = fs::read_dir(format!("/proc/{pid}/fd"))
                .into_iter()
                .flatten()
                .flatten();
            line.starts_with(b"sandpipe\0sandbox-init")
                && links
                    .into_iter()
                    .any(|link| fs::read_link(link.path()).is_ok_and(|to| to == lock))
        })
    }

    /// Processes that belong to this place: their environment names the application.
    pub fn workers(&self) -> Vec<u32> {
        let mark = format!("\"app\":\"{}\"", self.app);
        let holds = |pid: u32| {
            let env = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            String::from_utf8_lossy(&env).contains(&mark)
        };
        processes().into_iter().filter(|&pid| holds(pid)).collect()
    }

    /// The application's cgroups, in whatever hierarchies.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        cgroups_named(Path::new("/sys/fs/cgroup"), &self.app, 0)
    }

    /// Asserts that nothing of the application is left: processes, directories, cgroups.
    pub fn assert_clean(&self) {
        until("all processes are gone", || {
            self.workers().is_empty() && self.init().is_none()
        });
        assert!(
            !self.run_dir().join(&self.app).exists(),
            "the sandbox's directory is left"
        );
        assert!(
            !self
                .path("run")
                .join(format!("agent-{}.sock", self.app))
                .exists()
        );
        let cgroups = self.cgroups();
        assert!(cgroups.is_empty(), "left: {cgroups:?}");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for pid in self.init().into_iter().chain(self.workers()) {
            kill(pid, "KILL");
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.workers().is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = sandpipe_sandbox::clean_up_dead(&self.run_dir());
    }
}

/// A running `sandpipe run`.
pub struct Agent<'p> {
    place: &'p Place,
    child: Child,
    pub address: SocketAddr,
    /// What the first line said.
    pub announced: serde_json::Value,
}

impl<'p> Agent<'p> {
    pub fn start(place: &'p Place, mut command: Command) -> Agent<'p> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(place.path("log"))
            .unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let Ok(announced) = serde_json::from_str::<serde_json::Value>(&line) else {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{line:?}\n{}", place.log());
        };
        let url = announced["url"].as_str().unwrap().to_owned();
        let address = url["http://".len()..]
            .split('/')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        Agent {
            place,
            child,
            address,
            announced,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response {
        client::request(self.address, method, path, headers, body, WATCHDOG).unwrap()
    }

    pub fn post(&self, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Response {
        self.call(
            "POST",
            &format!("/{}", self.place.app),
            headers,
            body.as_ref(),
        )
    }

    pub fn get(&self, path: &str) -> Response {
        self.call("GET", path, &[], b"")
    }

    pub fn status(&self) -> AgentStatus {
        let socket = format!("agent-{}.sock", self.place.app);
        ask(&self.place.run_dir().join(socket), Question::Status).unwrap()
    }

    pub fn app(&self) -> AppStatus {
        self.status().apps.remove(0)
    }

    /// The process of a grain's worker.
    pub fn worker(&self, grain: &str) -> u32 {
        let mut pid = None;
        until("the worker runs", || {
            let app = self.app();
            let worker = app
                .grains
                .iter()
                .find(|state| state.grain == grain)
                .unwrap();
            pid = worker.pid.filter(|_| worker.state == "running");
            pid.is_some()
        });
        pid.unwrap()
    }

    /// The answer to an accepted request, once it is there.
    pub fn collect(&self, place: &str) -> Response {
        let mut answer = self.get(place);
        until("the answer is there", || {
            answer = self.get(place);
            answer.status != 202
        });
        answer
    }

    /// SIGTERM; asserts that it ends well.
    pub fn stop(mut self) {
        kill(self.pid(), "TERM");
        let mut code = None;
        until("the agent ends", || {
            code = self.child.try_wait().unwrap();
            code.is_some()
        });
        assert!(code.unwrap().success(), "{code:?}\n{}", self.place.log());
    }

    /// SIGKILL; the sandbox lives on.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the agent's log\n{}", self.place.log());
        }
    }
}

impl Place {
    /// What the agents wrote to their standard error.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }
}

/// Waits for a condition under a watchdog.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + WATCHDOG;
    while !done() {
        assert!(Instant::now() < deadline, "not within {WATCHDOG:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends a signal to a process of the test's own.
pub fn kill(pid: u32, signal: &str) {
    let _ = Command::new("kill")
        .arg(format!("-{signal}"))
        .arg(pid.to_string())
        .stderr(Stdio::null()) // it may have ended by itself
        .status();
}

/// Says that the test of this thread, which bears its name, was skipped: past libtest, which keeps
/// what a passed test prints.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let test = thread.name().and_then(|name| name.rsplit("::").next());
    let test = test.expect("libtest names its threads");
    let _ = writeln!(std::io::stderr(), "SKIP {test}: {reason}");
}

/// Whether the long counts are asked for.
pub fn is_full() -> bool {
    std::env::var_os("SANDPIPE_FULL").is_some()
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub fn processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Processes of the same program under a worker: its instances, as this host sees them.
pub fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    text.unwrap_or_default()
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

pub fn cgroups_named(directory: &Path, app: &str, depth: usize) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if entry.file_name().to_string_lossy().contains(app) {
            found.push(entry.path());
        } else if depth < 4 {
            found.extend(cgroups_named(&entry.path(), app, depth + 1));
        }
    }
    found
}

/// A file system of this test's own, unmounted with it.
pub struct Mounted(PathBuf);

impl Mounted {
    /// A tmpfs with this option; `None` where it cannot be mounted.
    pub fn tmpfs(at: &Path, option: &str) -> Option<Mounted> {
        let mut command = Command::new("mount");
        let options = format!("mode=0755,{option}");
        command.args(["-t", "tmpfs", "-o", &options, "sandpipe-test"]);
        let status = command.arg(at).status().ok()?;
        status.success().then(|| Mounted(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

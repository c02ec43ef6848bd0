//! An agent in a directory of its own, its applications, and the commands that a person types.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use sandpipe_agent::bridge::AppStatus;
use sandpipe_agent::client::{self, Response};
use sandpipe_agent::control::{AgentStatus, Question, ask};

use super::harness::{GRAIN, SANDPIPE, WATCHDOG, kill, until};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A directory with data and run directories, and one directory for each application.
pub struct Fleet {
    pub directory: tempfile::TempDir,
    /// Begins the names of all its applications, so that their processes and cgroups are known.
    pub prefix: String,
}

impl Fleet {
    pub fn new() -> Fleet {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Fleet {
            directory: tempfile::tempdir().unwrap(),
            prefix: format!("h{}-{number}", std::process::id()),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn run_dir(&self) -> PathBuf {
        self.path("run")
    }

    /// The whole name of an application.
    pub fn app(&self, letter: &str) -> String {
        format!("{}{letter}", self.prefix)
    }

    /// Writes the `app.toml` of an application: a chain of test grains that note what they handle.
    pub fn write(&self, letter: &str, grains: &[&str], limits: &str, grain: &str) -> PathBuf {
        let directory = self.path(letter);
        fs::create_dir_all(&directory).unwrap();
        let names: Vec<String> = grains.iter().map(|name| format!("{name:?}")).collect();
        let mut text = format!(
            "name = \"{}\"\n[workflow]\nchain = [{}]\n[limits]\n{limits}\n",
            self.app(letter),
            names.join(", ")
        );
        let notes = directory.join("notes");
        for name in &names {
            text += &format!(
                "[[grain]]\nname = {name}\nruntime = \"rust\"\nhandler = {GRAIN:?}\n\
                 env = {{ NOTES = {notes:?} }}\n{grain}\n"
            );
        }
        // The grains write their notes there.
        text += "[sandbox]\nwrite = [\".\"]\n";
        let file = directory.join("app.toml");
        fs::write(&file, text).unwrap();
        file
    }

    /// What the handlers of an application noted: for each run a process, a grain and a text.
    pub fn notes(&self, letter: &str) -> Vec<String> {
        let text = fs::read_to_string(self.path(letter).join("notes")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// `sandpipe COMMAND…` with this agent's run directory.
    pub fn sandpipe(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(SANDPIPE);
        command.args(arguments);
        command.env("SANDPIPE_RUN_DIR", self.run_dir());
        command.output().unwrap()
    }

    /// The same; asserts that it succeeds, and returns its standard output.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.sandpipe(arguments);
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{arguments:?}: {words}\n{}",
            self.log()
        );
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn deploy(&self, file: &Path) -> String {
        self.ok(&["deploy", file.to_str().unwrap()])
    }

    /// `sandpipe agent`, not yet started.
    pub fn command(&self) -> Command {
        let mut command = Command::new(SANDPIPE);
        command.args(["agent", "--listen", "127.0.0.1:0", "--json"]);
        command.arg("--data-dir").arg(self.path("data"));
        command.arg("--run-dir").arg(self.run_dir());
        command
    }

    pub fn start(&self) -> Agent<'_> {
        Agent::start(self, self.command())
    }

    /// What the agents wrote to their standard error.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// The sandbox's init of an application, on either side.
    pub fn inits(&self, letter: &str) -> Vec<u32> {
        let app = self.app(letter);
        let sides = [self.run_dir(), self.run_dir().join("1")];
        let locks: Vec<PathBuf> = sides
            .iter()
            .map(|run| run.join(&app).join("lock"))
            .collect();
        super::harness::processes()
            .into_iter()
            .filter(|&pid| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let links = fs::read_dir(format!("/proc/{pid}/fd"));
                let mut links = links.into_iter().flatten().flatten();
                line.starts_with(b"sandpipe\0sandbox-init")
                    && links
                        .any(|link| fs::read_link(link.path()).is_ok_and(|to| locks.contains(&to)))
            })
            .collect()
    }

    /// Processes that have one of this fleet's applications in their environment.
    pub fn workers(&self) -> Vec<u32> {
        let mark = format!("\"app\":\"{}", self.prefix);
        let holds = |pid: &u32| {
            let env = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            String::from_utf8_lossy(&env).contains(&mark)
        };
        let mut found = super::harness::processes();
        found.retain(holds);
        found
    }

    /// Cgroups of this fleet's applications.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        super::harness::cgroups_named(Path::new("/sys/fs/cgroup"), &self.prefix, 0)
    }

    /// Asserts that nothing of any application is left.
    pub fn assert_clean(&self) {
        until("all processes are gone", || self.workers().is_empty());
        let left = fs::read_dir(self.run_dir()).into_iter().flatten().flatten();
        let left: Vec<PathBuf> = left
            .map(|entry| entry.path())
            .filter(|p| *p != self.run_dir().join("1"))
            .collect();
        assert!(left.is_empty(), "left: {left:?}");
        let other = fs::read_dir(self.run_dir().join("1"));
        assert_eq!(
            other.into_iter().flatten().count(),
            0,
            "left on the other side"
        );
        assert!(self.cgroups().is_empty(), "left: {:?}", self.cgroups());
    }
}

/// Ends the sandboxes of a fleet before what was made after it goes, also if the test panics.
pub struct EndsSandboxes<'f>(pub &'f Fleet);

impl Drop for EndsSandboxes<'_> {
    fn drop(&mut self) {
        self.0.end_sandboxes();
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.end_sandboxes();
    }
}

impl Fleet {
    fn end_sandboxes(&self) {
        // An init without its directory ends, and with it its sandbox; the rest is as for a place.
        for pid in self.workers() {
            kill(pid, "KILL");
        }
        for run in [self.run_dir(), self.run_dir().join("1")] {
            let entries = fs::read_dir(&run).into_iter().flatten().flatten();
            for entry in entries.filter(|entry| entry.path().join("lock").exists()) {
                let app = entry.file_name().to_string_lossy().into_owned();
                let _ = sandpipe_agent::application::end_sandbox(&run, &app);
            }
        }
    }
}

/// A running `sandpipe agent`.
pub struct Agent<'f> {
    fleet: &'f Fleet,
    child: Child,
    pub address: SocketAddr,
    /// What the first line said.
    pub announced: serde_json::Value,
}

impl<'f> Agent<'f> {
    pub fn start(fleet: &'f Fleet, mut command: Command) -> Agent<'f> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(fleet.path("log"))
            .unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let Ok(announced) = serde_json::from_str::<serde_json::Value>(&line) else {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{line:?}\n{}", fleet.log());
        };
        let url = announced["url"].as_str().unwrap();
        Agent {
            address: url["http://".len()..].parse().unwrap(),
            fleet,
            child,
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

    pub fn post(&self, letter: &str, body: impl AsRef<[u8]>) -> Response {
        let path = format!("/{}", self.fleet.app(letter));
        self.call("POST", &path, &[], body.as_ref())
    }

    /// Accepted for later: where its answer will be.
    pub fn accept(&self, letter: &str, body: &str) -> String {
        let path = format!("/{}", self.fleet.app(letter));
        let answer = self.call(
            "POST",
            &path,
            &[("prefer", "respond-async")],
            body.as_bytes(),
        );
        assert_eq!(answer.status, 202, "{}", answer.text());
        answer.header("location").unwrap().to_owned()
    }

    /// The answer to an accepted request, once it is there.
    pub fn collect(&self, place: &str) -> Response {
        let mut answer = self.call("GET", place, &[], b"");
        until("the answer is there", || {
            answer = self.call("GET", place, &[], b"");
            answer.status != 202
        });
        answer
    }

    pub fn status(&self) -> AgentStatus {
        ask(&self.fleet.run_dir().join("agent.sock"), Question::Status).unwrap()
    }

    pub fn app(&self, letter: &str) -> AppStatus {
        let name = self.fleet.app(letter);
        let mut apps = self.status().apps.into_iter();
        apps.find(|app| app.app == name).expect("it is deployed")
    }

    /// SIGTERM; asserts that it ends well.
    pub fn stop(mut self) {
        kill(self.pid(), "TERM");
        let mut code = None;
        until("the agent ends", || {
            code = self.child.try_wait().unwrap();
            code.is_some()
        });
        assert!(code.unwrap().success(), "{code:?}\n{}", self.fleet.log());
    }

    /// SIGKILL; the sandboxes live on.
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
            eprintln!("--- the agent's log\n{}", self.fleet.log());
        }
    }
}

/// Sets a flag when it goes, also if what it stands in panics: a scope waits for its threads.
pub struct Stops<'s>(pub &'s AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Says it past libtest, which keeps what a passed test prints.
pub fn say(what: &str) {
    let _ = writeln!(std::io::stderr(), "{what}");
}

//! A run directory of its own for each test, agents in it, and the search for what they leave.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod probe;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use sandpipe::{FamilyIndex, FamilySpec, Target, Topology};
use sandpipe_sandbox::{Files, Isolation, SandboxSpec, SandboxStatus, WorkerSpec, clean_up_dead};
use serde_json::Value;

pub const HELPER: &str = env!("CARGO_BIN_EXE_sandbox-helper");
pub const PROBER: &str = env!("CARGO_BIN_EXE_sandbox-prober");
/// Ten times what the slowest step takes on a loaded machine.
pub const WATCHDOG: Duration = Duration::from_secs(30);
pub const NOBODY: u32 = 65534;

/// One test's run directory; on drop everything that it led to is killed and removed.
pub struct Scene {
    directory: tempfile::TempDir,
}

impl Scene {
    pub fn new() -> Scene {
        Scene::owned_by(None)
    }

    pub fn owned_by(uid: Option<u32>) -> Scene {
        let directory = tempfile::Builder::new()
            .prefix("sandbox-test-")
            .tempdir()
            .unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
        if uid.is_some() {
            std::os::unix::fs::chown(directory.path(), uid, uid).unwrap();
        }
        Scene { directory }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn run_dir(&self) -> PathBuf {
        self.path().join("run")
    }

    pub fn app_dir(&self) -> PathBuf {
        self.run_dir().join("app")
    }

    /// The file that a worker of this name writes to.
    pub fn file(&self, grain: &str) -> PathBuf {
        self.path().join(grain)
    }

    /// A sandbox whose workers have these moods; a grain is called like its mood and its place.
    pub fn spec(&self, moods: &[&str]) -> SandboxSpec {
        let workers = moods.iter().enumerate().map(|(i, mood)| {
            let grain = format!("{mood}-{i}");
            let file = self.file(&grain).display().to_string();
            WorkerSpec {
                command: [HELPER, "worker", mood, &(i + 1).to_string(), &file]
                    .map(String::from)
                    .to_vec(),
                grain,
                ..WorkerSpec::default()
            }
        });
        SandboxSpec {
            app: "app".into(),
            run_dir: self.run_dir(),
            topology: topology(moods.len()),
            workers: workers.collect(),
            isolation: Isolation::default(),
            memory_limit_bytes: None,
            pids_limit: None,
            instances_limit: None,
            cpu_limit_millicores: None,
            // The workers of these tests write down what they see.
            files: Files {
                write: vec![self.path().into()],
                ..Files::default()
            },
            io_uring: false,
        }
    }

    /// A sandbox called `app` with one prober that obeys these orders in a directory of its own.
    pub fn prober(&self, app: &str, orders: &[String]) -> SandboxSpec {
        let directory = self.path().join(app);
        fs::create_dir_all(&directory).unwrap();
        let uid = fs::metadata(self.path()).unwrap().uid();
        std::os::unix::fs::chown(&directory, Some(uid), Some(uid)).unwrap();
        let said = directory.join("said").display().to_string();
        let mut spec = self.spec(&["probing"]);
        spec.app = app.into();
        spec.files.write = vec![directory];
        spec.workers[0].command = [PROBER.to_owned(), said]
            .into_iter()
            .chain(orders.iter().cloned())
            .collect();
        spec
    }

    /// What the prober of `app` wrote down, once it has.
    pub fn said(&self, app: &str) -> Value {
        let said = self.path().join(app).join("said");
        until("the prober has obeyed", || said.exists());
        serde_json::from_slice(&fs::read(said).unwrap()).unwrap()
    }

    /// What a worker says about itself; `None` until it is attached.
    pub fn beat(&self, grain: &str) -> Option<Beat> {
        let path = self.path().join(format!("{grain}.beat"));
        let mut bytes = fs::read(&path).ok()?;
        // The worker may be about to write it anew.
        while bytes.len() < 24 {
            std::thread::yield_now();
            bytes = fs::read(&path).ok()?;
        }
        let word = |i: usize| Some(u64::from_le_bytes(*bytes.get(i * 8..)?.first_chunk()?));
        Some(Beat {
            beats: word(0)?,
            longest_us: word(1)?,
            updates: word(2)?,
        })
    }

    /// When a worker was started, in milliseconds.
    pub fn starts(&self, grain: &str) -> Vec<u64> {
        let text = fs::read_to_string(self.file(grain)).unwrap_or_default();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }

    /// Every process that names this scene in its command line or holds one of its files.
    pub fn processes(&self) -> Vec<i32> {
        let own = i32::try_from(std::process::id()).unwrap();
        let scene = self.path().as_os_str().as_encoded_bytes();
        let names = |bytes: &[u8]| bytes.windows(scene.len()).any(|window| window == scene);
        let pids = fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| {
                entry
                    .file_name()
                    .to_str()
                    .and_then(|name| name.parse::<i32>().ok())
            });
        pids.filter(|pid| {
            let process = PathBuf::from(format!("/proc/{pid}"));
            let command = fs::read(process.join("cmdline")).unwrap_or_default();
            let fds = fs::read_dir(process.join("fd"))
                .into_iter()
                .flatten()
                .flatten();
            let mut targets = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
            *pid != own
                && (names(&command)
                    || targets.any(|target| names(target.as_os_str().as_encoded_bytes())))
        })
        .collect()
    }

    /// The cgroup directories that the sandbox was to have.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let list = fs::read_to_string(self.app_dir().join("cgroups")).unwrap_or_default();
        list.lines().map(PathBuf::from).collect()
    }

    /// Fails if anything of the sandbox is left but what the test itself made.
    pub fn assert_nothing_left(&self, cgroups: &[PathBuf]) {
        until("every process is gone", || self.processes().is_empty());
        assert!(
            !self.app_dir().exists(),
            "{} is left",
            self.app_dir().display()
        );
        for cgroup in cgroups {
            assert!(!cgroup.exists(), "{} is left", cgroup.display());
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(
            !mounts.contains(&*self.path().to_string_lossy()),
            "a mount is left"
        );
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let deadline = Instant::now() + WATCHDOG;
        while !self.processes().is_empty() && Instant::now() < deadline {
            for pid in self.processes() {
                kill(pid);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // A test may have opened them to others; then nothing in them would be trusted.
        for directory in [self.run_dir(), self.app_dir()]
            .iter()
            .filter(|path| path.exists())
        {
            let _ = fs::set_permissions(directory, fs::Permissions::from_mode(0o700));
        }
        if let Err(error) = clean_up_dead(&self.run_dir()) {
            eprintln!("cleaning up {}: {error}", self.run_dir().display());
        }
    }
}

fn topology(workers: usize) -> Vec<u8> {
    let families = (0..=workers).map(|i| FamilySpec {
        slots: 2,
        targets: vec![Target {
            queue: FamilyIndex(u16::from(i == 0)),
            lane_slots: 8,
        }],
        chunks: vec![],
    });
    Topology::new(families.collect()).unwrap().encode()
}

/// A worker's account of its life.
pub struct Beat {
    /// One a millisecond.
    pub beats: u64,
    /// The longest pause between two.
    pub longest_us: u64,
    /// How often it was told of another family's new memory.
    pub updates: u64,
}

/// A host agent; killed when dropped.
pub struct Agent {
    pub child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    /// What it said first.
    pub hello: Value,
}

impl Agent {
    pub fn start(spec: &SandboxSpec) -> Agent {
        Agent::start_as(spec, None, Stdio::null())
    }

    pub fn start_as(spec: &SandboxSpec, uid: Option<u32>, stderr: Stdio) -> Agent {
        Agent::start_with(spec, stderr, |command| {
            if let Some(uid) = uid {
                command.uid(uid).gid(uid);
            }
        })
    }

    /// With a command that `prepare` has changed.
    pub fn start_with(
        spec: &SandboxSpec,
        stderr: Stdio,
        prepare: impl FnOnce(&mut Command),
    ) -> Agent {
        let mut agent = Agent::launch_with(spec, stderr, prepare);
        agent.hello = agent.answer();
        assert_eq!(agent.hello["error"], Value::Null, "{:?}", agent.hello);
        assert_eq!(agent.hello["attached"], Value::Null, "{:?}", agent.hello);
        agent
    }

    /// Starts it without waiting for its first word.
    pub fn launch(spec: &SandboxSpec) -> Agent {
        Agent::launch_with(spec, Stdio::inherit(), |_| {})
    }

    fn launch_with(spec: &SandboxSpec, stderr: Stdio, prepare: impl FnOnce(&mut Command)) -> Agent {
        let mut command = Command::new(HELPER);
        command.args(["agent", &serde_json::to_string(spec).unwrap()]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr);
        prepare(&mut command);
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Agent {
            child,
            stdin,
            stdout,
            hello: Value::Null,
        }
    }

    /// The next line that it prints.
    pub fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("agent said {line:?}: {error}"))
    }

    pub fn ask(&mut self, order: &str) -> Value {
        writeln!(self.stdin.as_mut().unwrap(), "{order}").unwrap();
        self.answer()
    }

    pub fn status(&mut self) -> SandboxStatus {
        serde_json::from_value(self.ask("status")).unwrap()
    }

    pub fn init(&self) -> i32 {
        i32::try_from(self.hello["init"].as_i64().unwrap()).unwrap()
    }

    pub fn shut_down(&mut self) {
        let answer = self.ask("shutdown 5000");
        assert_eq!(answer["error"], Value::Null, "{answer}");
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Polls until it is so; fails after the watchdog's time.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + WATCHDOG;
    while !done() {
        assert!(Instant::now() < deadline, "not within {WATCHDOG:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Orders for a prober.
pub fn orders<const N: usize>(orders: [&str; N]) -> Vec<String> {
    orders.map(String::from).to_vec()
}

/// Whether another user can run the programs of these tests at all.
pub fn nobody_can_run_the_helper() -> bool {
    is_root()
        && Command::new(HELPER)
            .arg("probe")
            .uid(NOBODY)
            .gid(NOBODY)
            .stdout(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
}

/// The users as whom a sandbox is tried: ours, and as root a plain one as well.
pub fn users() -> Vec<Option<u32>> {
    if nobody_can_run_the_helper() {
        return vec![None, Some(NOBODY)];
    }
    skip("as a plain user: needs root and a build directory open to others");
    vec![None]
}

pub fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says on standard error that the test of this thread, which bears its name, was skipped.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let test = thread.name().and_then(|name| name.rsplit("::").next());
    let test = test.expect("libtest names its threads");
    let _ = writeln!(std::io::stderr(), "SKIP {test}: {reason}");
}

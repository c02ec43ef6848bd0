use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use sandpipe::{FamilyIndex, Topology};

use crate::SandboxError;

/// Longest application name: it becomes the host name inside the sandbox and a cgroup's name.
const APP_NAME_BYTES_MAX: usize = 48;
/// What init takes for itself beside the pages that it keeps for the families: about half of it.
const INIT_BYTES: u64 = 2 << 20;

/// What a sandbox is made of; it travels to the sandbox's init as JSON in a memfd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// The application: lower-case letters, digits, `-` and `_`, at most 48 bytes.
    pub app: String,
    /// The host agent's run directory (RUN), absolute; made with mode 0700 if it is not there.
    pub run_dir: PathBuf,
    /// The encoded topology of the data plane; opaque here, the guardian decodes it.
    pub topology: Vec<u8>,
    /// The grain workers; the one at index `i` is family `i + 1`.
    pub workers: Vec<WorkerSpec>,
    /// What to isolate.
    #[serde(default)]
    pub isolation: Isolation,
    /// Memory limit of the whole application, in bytes. One that its queues alone would exceed is
    /// refused: init takes their pages before any grain runs, and is charged for them.
    #[serde(default)]
    pub memory_limit_bytes: Option<u64>,
    /// Limit of the application's processes and threads.
    #[serde(default)]
    pub pids_limit: Option<u64>,
    /// Limit of the instances that all grains have together; at least one for each. Workers share
    /// a file of it, their descriptor 4; they keep the limit, and are not held to it: see
    /// `pids_limit`.
    #[serde(default)]
    pub instances_limit: Option<u64>,
    /// Limit of the whole application's processor time, in thousandths of a core (10 or more).
    #[serde(default)]
    pub cpu_limit_millicores: Option<u64>,
    /// What its grains may reach of the file system, beside what every sandbox may.
    #[serde(default)]
    pub files: Files,
    /// Whether grains may make rings of io_uring, whose calls no filter sees.
    #[serde(default)]
    pub io_uring: bool,
}

/// Paths outside the sandbox, all absolute. One that is not there grants nothing, and is named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Files {
    /// Read and executed, with all that is below.
    pub read: Vec<PathBuf>,
    /// Read, written and executed, with all that is below.
    pub write: Vec<PathBuf>,
    /// How much fits into each of the sandbox's own `/tmp`, `/var/tmp` and `/dev/shm`, in bytes.
    pub tmp_bytes: u64,
}

impl Default for Files {
    fn default() -> Files {
        Files {
            read: Vec::new(),
            write: Vec::new(),
            tmp_bytes: 64 << 20,
        }
    }
}

/// How one grain worker is started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerSpec {
    /// The grain's name.
    pub grain: String,
    /// The program and its arguments. A program without `/` is looked up in `PATH`.
    pub command: Vec<String>,
    /// The whole environment; nothing is inherited but a default `PATH` where none is given.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Where it starts; `/` if not given.
    #[serde(default)]
    pub working_dir: Option<PathBuf>,
    /// Memory limit of the worker and all its instances together, in bytes.
    #[serde(default)]
    pub memory_limit_bytes: Option<u64>,
    /// A file that its standard output and error are appended to; without one they go to the
    /// current host agent's standard error.
    #[serde(default)]
    pub stderr_log: Option<PathBuf>,
    /// Bounds of that file: its lines are then stamped, limited and rotated by init. Without them
    /// it is written as it comes.
    #[serde(default)]
    pub log_limits: Option<LogLimits>,
}

/// How much is kept of one worker's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLimits {
    /// Bytes of one file.
    pub file_bytes: u64,
    /// Files, the current one included.
    pub files: u32,
    /// Bytes a second that are taken in the long run; what is beyond is counted and dropped.
    pub bytes_per_s: u64,
}

/// What is isolated. All of it by default; what the machine refuses is reported and left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Isolation {
    /// Own process ids: the application's processes die with its init, and see no others.
    pub pid: bool,
    /// Own mounts, among them a `/proc` of its own.
    pub mount: bool,
    /// Own System V IPC and POSIX message queues.
    pub ipc: bool,
    /// Own host name.
    pub uts: bool,
    /// Own network, with a loopback interface only; without it the host's.
    pub network: bool,
    /// Own cgroups, for limits and for killing a family as a whole, and a namespace of them.
    pub cgroup: bool,
    /// A root that cannot be written, and `/tmp`, `/var/tmp`, `/dev/shm`, `/run` of its own; needs
    /// own mounts.
    pub root: bool,
    /// No capabilities and none to be had (no_new_privs), and resource limits.
    pub privileges: bool,
    /// Grains reach the files that they are given, and signal or trace only their own processes
    /// (Landlock); needs `privileges`.
    pub files: bool,
    /// System calls that grains have no use for are refused (seccomp); needs `privileges`.
    pub system_calls: bool,
}

impl Isolation {
    /// Nothing isolated: plain processes.
    pub const NONE: Isolation = Isolation {
        pid: false,
        mount: false,
        ipc: false,
        uts: false,
        network: false,
        cgroup: false,
        root: false,
        privileges: false,
        files: false,
        system_calls: false,
    };
}

impl Default for Isolation {
    fn default() -> Isolation {
        Isolation {
            pid: true,
            mount: true,
            ipc: true,
            uts: true,
            network: true,
            cgroup: true,
            root: true,
            privileges: true,
            files: true,
            system_calls: true,
        }
    }
}

impl SandboxSpec {
    /// Checks what no later step would name clearly.
    pub(crate) fn validate(&self) -> Result<(), SandboxError> {
        let invalid = |reason: String| Err(SandboxError::InvalidSpec { reason });
        check_app_name(&self.app)?;
        if !self.run_dir.is_absolute() {
            return invalid(format!(
                "run_dir {} must be absolute",
                self.run_dir.display()
            ));
        }
        let paths = self.files.read.iter().chain(&self.files.write);
        if let Some(path) = paths.into_iter().find(|path| !path.is_absolute()) {
            return invalid(format!("files: {} must be absolute", path.display()));
        }
        for worker in &self.workers {
            let grain = &worker.grain;
            if worker.command.first().is_none_or(String::is_empty) {
                return invalid(format!("grain {grain}: command is empty"));
            }
            let env = worker.env.iter().flat_map(|(key, value)| [key, value]);
            if worker
                .command
                .iter()
                .chain(env)
                .any(|text| text.contains('\0'))
            {
                return invalid(format!("grain {grain}: a NUL byte in command or env"));
            }
            if let Some((key, _)) = worker.env.iter().find(|(key, _)| key.contains('=')) {
                return invalid(format!("grain {grain}: env name {key:?} holds '='"));
            }
            let paths = worker.working_dir.iter().chain(&worker.stderr_log);
            if let Some(path) = paths.into_iter().find(|path| !path.is_absolute()) {
                return invalid(format!(
                    "grain {grain}: {} must be absolute",
                    path.display()
                ));
            }
        }
        self.check_memory_limit()
    }

    /// Whether init can take every control page within the limit; past it the kernel would kill it
    /// somewhere on its way.
    fn check_memory_limit(&self) -> Result<(), SandboxError> {
        // What cannot be decoded is refused by the guardian, in its own words.
        let (Some(limit), Ok(topology)) =
            (self.memory_limit_bytes, Topology::decode(&self.topology))
        else {
            return Ok(());
        };
        let control = |index| topology.layout(FamilyIndex(index as u16)).control_bytes as u64;
        let families = (0..topology.families().len()).map(control);
        // While a family is made anew there are two of it.
        let anew = families.clone().max().unwrap_or(0);
        let needs = families.sum::<u64>() + anew + INIT_BYTES;
        if limit >= needs {
            return Ok(());
        }
        Err(SandboxError::InvalidSpec {
            reason: format!(
                "a memory limit of {limit} bytes: the queues and init take {needs} before any \
                 grain runs; raise the limit or shorten the queues"
            ),
        })
    }
}

/// An application's name becomes one path component, a host name and a part of a cgroup's name.
pub(crate) fn check_app_name(app: &str) -> Result<(), SandboxError> {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    let one_component = matches!(
        Path::new(app).components().collect::<Vec<_>>()[..],
        [Component::Normal(_)]
    );
    if one_component && app.len() <= APP_NAME_BYTES_MAX && app.bytes().all(fits) {
        return Ok(());
    }
    Err(SandboxError::InvalidSpec {
        reason: format!(
            "application name {app:?}: use 1 to {APP_NAME_BYTES_MAX} lower-case letters, \
             digits, '-' and '_'"
        ),
    })
}

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;

/// Why a sandbox could not be made, adopted, asked or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// The spec contradicts itself or holds something that cannot be started.
    #[error("invalid sandbox: {reason}")]
    InvalidSpec {
        /// What is wrong and what would be right.
        reason: String,
    },
    /// The run directory, or something in it, could not be made, opened or removed.
    #[error("{}: {action}: {source}", path.display())]
    RunDir {
        /// What was being done.
        action: Cow<'static, str>,
        /// The path it was done to.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Others could write into the run directory, so nothing in it can be trusted.
    #[error(
        "{} belongs to uid {owner} with mode {mode:03o}: it must belong to uid {uid} with no \
         access for others (chown it, or chmod 700 it, or choose another run directory)",
        path.display()
    )]
    RunDirUnsafe {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Its permission bits.
        mode: u32,
        /// Who this process is.
        uid: u32,
    },
    /// The sandbox's init could not be started.
    #[error("starting the init of {app}: {step}: {source}")]
    Spawn {
        /// The application.
        app: String,
        /// The step that failed.
        step: Cow<'static, str>,
        /// The system's answer.
        source: io::Error,
    },
    /// Init started and gave up before it was ready.
    #[error("the init of {app} failed: {reason}")]
    InitFailed {
        /// The application.
        app: String,
        /// Its own words, or how it ended.
        reason: String,
    },
    /// Init holds the lock but does not answer.
    #[error(
        "the init of {app} did not answer within {waited_ms} ms ({last}); see {}",
        log.display()
    )]
    NoAnswer {
        /// The application.
        app: String,
        /// How long it was waited for.
        waited_ms: u64,
        /// The last refusal.
        last: String,
        /// What init has to say.
        log: PathBuf,
    },
    /// Another agent has adopted this sandbox since; this handle is void.
    #[error("the sandbox of {app} is gone or was adopted by a newer agent: {source}")]
    Fenced {
        /// The application.
        app: String,
        /// How the connection ended.
        source: io::Error,
    },
    /// Init answered something that this version does not understand.
    #[error("the init of {app} answered {answer:?}: it is of another version; shut it down first")]
    Protocol {
        /// The application.
        app: String,
        /// Its answer, shortened.
        answer: String,
    },
    /// The sandbox did not end in time.
    #[error("the sandbox of {app} still lives {waited_ms} ms after it was told to end")]
    StillAlive {
        /// The application.
        app: String,
        /// How long it was waited for.
        waited_ms: u64,
    },
    /// A dead sandbox's cgroup keeps living processes.
    #[error("{}: still holds processes {waited_ms} ms after they were killed", path.display())]
    CgroupBusy {
        /// The cgroup's directory.
        path: PathBuf,
        /// How long it was waited for.
        waited_ms: u64,
    },
    /// The launcher could not be asked, or could not begin.
    #[error("the launcher, which makes the sandboxes of this agent: {source}")]
    Launcher {
        /// The system's answer, or the launcher's.
        source: io::Error,
    },
    /// The launcher has ended.
    #[error(
        "the launcher of this agent has ended, so it can neither make nor remove sandboxes; those \
         that run go on: restart the agent, which adopts them"
    )]
    LauncherGone,
}

impl SandboxError {
    /// Wraps an error of the file system with what was being done.
    pub(crate) fn run_dir(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> SandboxError {
        let path = path.into();
        move |source| SandboxError::RunDir {
            action: action.into(),
            path,
            source,
        }
    }
}

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use sandpipe::wait::WAITER_VARIABLE;

use crate::boot::{self, Boot};
use crate::cgroup::{self, Cgroups};
use crate::run_dir::{AppDir, Locked};
use crate::sys::{self, GiveUp, Plan, SpawnError, UserMap};
use crate::{IsolationItem, SandboxError, SandboxHandle, SandboxSpec, launcher, namespaces};

/// How long an init may take to be ready or to answer; both take some milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks at a sandbox that is just being started by somebody else.
const RETRY_INTERVAL: Duration = Duration::from_millis(1);

/// Adopts the living sandbox of `spec.app` under `spec.run_dir`, or makes it.
///
/// Leftovers of a dead sandbox are cleaned up first. If two agents call this at once, one makes the
/// sandbox and the other adopts it; the last to ask owns it and the other's handle is fenced.
/// Blocks for some milliseconds (at most about 20 s); call it from a thread that may block. If the
/// caller is killed inside, the next call finds either a living sandbox or leftovers.
///
/// An adopted sandbox keeps the spec it was made with: see [`SandboxHandle::same_spec`].
///
/// # Errors
/// [`SandboxError`]; nothing is left behind then, and a sandbox that was alive stays so.
pub fn create_or_adopt(spec: &SandboxSpec) -> Result<SandboxHandle, SandboxError> {
    spec.validate()?;
    let began = Instant::now();
    loop {
        let app_dir = AppDir::create(&spec.run_dir, &spec.app)?;
        let made = match launcher::own() {
            Some(launcher) => launcher.make(spec)?,
            None => make(&app_dir, spec)?,
        };
        let last = match made {
            Made::Init(init) => {
                let log = app_dir.log_path();
                return SandboxHandle::claim(app_dir, spec, Some(init))
                    .map_err(|error| with_inits_words(error, &log));
            }
            Made::Busy => match app_dir.connect() {
                Ok(socket) => {
                    drop(socket);
                    match SandboxHandle::claim(app_dir, spec, None) {
                        // It ended, or was shut down, while we asked.
                        Err(SandboxError::Fenced { source, .. }) => source.to_string(),
                        other => return other,
                    }
                }
                Err(error) => format!("connect: {error}"),
            },
            Made::Replaced => "its directory was being removed".into(),
        };
        if began.elapsed() > ANSWER_TIMEOUT {
            return Err(SandboxError::NoAnswer {
                app: spec.app.clone(),
                waited_ms: began.elapsed().as_millis() as u64,
                last,
                log: spec.run_dir.join(&spec.app).join("init.log"),
            });
        }
        std::thread::sleep(RETRY_INTERVAL);
    }
}

/// What became of an attempt to make a sandbox.
pub(crate) enum Made {
    /// Its init listens.
    Init(OwnedFd),
    /// Somebody lives there, or is being started.
    Busy,
    /// Its directory was removed or replaced meanwhile: begin again.
    Replaced,
}

/// Makes the sandbox if its directory is free, with the rights of this very process.
pub(crate) fn make(app_dir: &AppDir, spec: &SandboxSpec) -> Result<Made, SandboxError> {
    Ok(match app_dir.try_lock()? {
        Locked::Free(lock) => Made::Init(start(app_dir, spec, lock)?),
        Locked::Busy => Made::Busy,
        Locked::Replaced => Made::Replaced,
    })
}

/// An init that ended while it was claimed has said why in its log.
fn with_inits_words(error: SandboxError, log: &Path) -> SandboxError {
    let words = std::fs::read_to_string(log).unwrap_or_default();
    match error {
        SandboxError::Fenced { app, source } if !words.is_empty() => SandboxError::InitFailed {
            app,
            reason: format!("{source}: {}", words.trim()),
        },
        error => error,
    }
}

/// Starts an init while holding the lock, and waits until it listens.
fn start(app_dir: &AppDir, spec: &SandboxSpec, lock: File) -> Result<OwnedFd, SandboxError> {
    cgroup::remove_recorded(app_dir)?;
    let started = start_locked(app_dir, spec, &lock);
    if started.is_err() {
        // The first error is the one to tell.
        let _ = cgroup::remove_recorded(app_dir).and_then(|()| app_dir.remove());
    }
    started
}

fn start_locked(
    app_dir: &AppDir,
    spec: &SandboxSpec,
    lock: &File,
) -> Result<OwnedFd, SandboxError> {
    let failed = |step: &'static str| {
        move |source: io::Error| SandboxError::Spawn {
            app: spec.app.clone(),
            step: step.into(),
            source,
        }
    };
    let socket = app_dir.bind_socket()?;
    let log = open_log(app_dir)?;
    let mut report = Vec::new();
    let cgroups = if spec.isolation.cgroup {
        Cgroups::create(app_dir, spec, &mut report)?
    } else {
        Cgroups::none()
    };
    let (ready, ready_end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|error| failed("pipe")(error.into()))?;
    let null = File::open("/dev/null").map_err(failed("open /dev/null"))?;
    let exe = File::open("/proc/self/exe").map_err(failed("open /proc/self/exe"))?;
    let inherited = [socket.as_fd(), lock.as_fd(), ready_end.as_fd()];
    let std_fds = [null.as_fd(), log.as_fd(), log.as_fd()];
    let launch = Launch {
        spec,
        cgroups: &cgroups,
        exe: exe.as_fd(),
        std_fds,
        inherited,
    };
    let init = launch.first_granted(&report)?;
    drop(ready_end);
    wait_until_ready(app_dir, spec, &ready, &init)?;
    Ok(init)
}

/// Init's own standard error: read when it fails, removed with the directory.
fn open_log(app_dir: &AppDir) -> Result<File, SandboxError> {
    let path = app_dir.log_path();
    let opened = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path);
    let log = opened.map_err(SandboxError::run_dir("open", &path))?;
    log.set_len(0)
        .map_err(SandboxError::run_dir("truncate", &path))?;
    Ok(log)
}

/// What every attempt to start init shares.
struct Launch<'a> {
    spec: &'a SandboxSpec,
    cgroups: &'a Cgroups,
    exe: BorrowedFd<'a>,
    std_fds: [BorrowedFd<'a>; 3],
    /// Socket, lock, ready pipe.
    inherited: [BorrowedFd<'a>; 3],
}

impl Launch<'_> {
    /// Asks for less until clone3 grants it; says in the report what was granted.
    fn first_granted(&self, report: &[IsolationItem]) -> Result<OwnedFd, SandboxError> {
        let wanted = namespaces::wanted(&self.spec.isolation);
        let mut last = None;
        for flags in namespaces::attempts(wanted) {
            for cgroup in [self.cgroups.v2(), None] {
                let mut report = report.to_vec();
                report.extend(namespaces::report(wanted, flags));
                if let Some((_, error)) = last.as_ref().filter(|_| cgroup.is_none())
                    && self.cgroups.v2().is_some()
                {
                    let reason = format!("started outside: {error}");
                    report.push(IsolationItem::off(
                        "cgroup v2",
                        reason,
                        "run the agent as root",
                    ));
                }
                match self.attempt(flags, cgroup, report) {
                    Ok(init) => return Ok(init),
                    Err(error) if !error.of_clone() => return Err(self.spawn_error(error)),
                    Err(error) => last = Some((flags, error)),
                }
                if self.cgroups.v2().is_none() {
                    break;
                }
            }
        }
        let (_, error) = last.expect("the last attempt asks for nothing and was made");
        Err(self.spawn_error(error))
    }

    fn attempt(
        &self,
        flags: u64,
        cgroup: Option<BorrowedFd<'_>>,
        isolation: Vec<IsolationItem>,
    ) -> Result<OwnedFd, SpawnError> {
        let boot = Boot {
            spec: self.spec.clone(),
            spec_hash: boot::spec_hash(self.spec),
            namespaces: flags,
            cgroups: self.cgroups.all().map(|(name, _)| name.into()).collect(),
            isolation,
        };
        let boot = boot.to_memfd().map_err(|source| SpawnError {
            step: "memfd",
            source,
        })?;
        let [socket, lock, ready] = self.inherited;
        let mut fds = self.std_fds.to_vec();
        fds.extend([socket, lock, boot.as_fd(), ready]);
        fds.extend(self.cgroups.all().map(|(_, directory)| directory));
        let map = UserMap::caller_as_root();
        let argv = [c"sandpipe", c"sandbox-init"].map(CString::from);
        let (_, pidfd) = sys::spawn(&Plan {
            namespaces: flags,
            user_map: (flags & namespaces::USER != 0).then_some(&map),
            cgroup,
            enter: &[],
            program: Some(self.exe),
            argv: &argv,
            env: &environment(),
            fds: &fds,
            working_dir: Some(c"/"),
            give_up: GiveUp::default(),
            oom_score_adj: None,
            dies_with_parent: false,
        })?;
        Ok(pidfd)
    }

    fn spawn_error(&self, error: SpawnError) -> SandboxError {
        let SpawnError { step, source } = error;
        SandboxError::Spawn {
            app: self.spec.app.clone(),
            step: step.into(),
            source,
        }
    }
}

/// Of the agent's environment init gets the name of the waiter that is forced.
fn environment() -> Vec<CString> {
    let forced = std::env::var(WAITER_VARIABLE).ok();
    let pair = forced.and_then(|name| CString::new(format!("{WAITER_VARIABLE}={name}")).ok());
    pair.into_iter().collect()
}

fn wait_until_ready(
    app_dir: &AppDir,
    spec: &SandboxSpec,
    ready: &OwnedFd,
    init: &OwnedFd,
) -> Result<(), SandboxError> {
    let mut words = String::new();
    let readable = wait_readable(ready, ANSWER_TIMEOUT);
    if readable {
        let mut bytes = [0; 4096];
        let read = rustix::io::read(ready, &mut bytes).unwrap_or(0);
        words = String::from_utf8_lossy(&bytes[..read]).into_owned();
    }
    if words == boot::READY_WORD {
        return Ok(());
    }
    let _ = pidfd_send_signal(init, Signal::KILL);
    let end = waitid(WaitId::PidFd(init.as_fd()), WaitIdOptions::EXITED);
    let log = std::fs::read_to_string(app_dir.log_path()).unwrap_or_default();
    let reason = match (readable, words.is_empty()) {
        (false, _) => format!("not ready after {} s", ANSWER_TIMEOUT.as_secs()),
        (true, false) => words,
        (true, true) => format!("it ended ({end:?}): {}", log.trim()),
    };
    Err(SandboxError::InitFailed {
        app: spec.app.clone(),
        reason,
    })
}

/// Whether the descriptor became readable, or its other end hung up, within the time.
pub(crate) fn wait_readable(fd: impl AsFd, timeout: Duration) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).expect("a timeout of minutes fits");
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&left)) {
            Ok(count) => return count > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

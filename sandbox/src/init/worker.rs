use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitStatus, pidfd_send_signal};
use sandpipe::attach::STARTED_VARIABLE;
use sandpipe::{FamilyIndex, Guardian, monotonic_ns};

use super::backoff::Backoff;
use super::family::{Cage, FamilyCgroups};
use super::output::{Output, Sink};
use super::participant::Participant;
use super::seats::Seats;
use crate::confine::Confinement;
use crate::sys::{self, Plan};
use crate::{WorkerSpec, WorkerState};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Out of memory, the kernel takes a worker rather than init, which cannot lower its own.
const OOM_SCORE_ADJ: &std::ffi::CStr = c"500";

/// One grain worker, from start to restart.
pub(super) struct Worker {
    pub(super) family: FamilyIndex,
    pub(super) spec: WorkerSpec,
    pub(super) phase: Phase,
    pub(super) line: Option<Participant>,
    pub(super) output: Output,
    pub(super) restarts: u64,
    /// Starts because a message came for it while it was unloaded.
    pub(super) cold_starts: u64,
    /// Starts of any kind.
    starts: u64,
    /// It was told to end since it is idle.
    unloading: bool,
    /// It was started after it was unloaded, and has not ended since.
    reloaded: bool,
    log: Option<Sink>,
    cage: Cage,
    backoff: Backoff,
    last_exit: String,
    last_tail: String,
    /// Why it is not started again.
    quarantined: Option<String>,
}

/// Where it is in its life.
pub(super) enum Phase {
    /// Loading its grain.
    Starting(Process),
    /// Attached, since then.
    Running(Process, Instant),
    /// Dead; its family is being killed.
    Clearing { attached_for: Option<Duration> },
    /// To be started again then.
    Waiting(Instant),
    /// To be started again when a message comes.
    Unloaded,
    /// Not to be started again.
    Stopped,
}

/// A child of init that has not been reaped.
pub(super) struct Process {
    pub(super) pid: Pid,
    pub(super) pidfd: OwnedFd,
}

impl Worker {
    /// A worker that is due to be started.
    pub(super) fn new(family: FamilyIndex, spec: WorkerSpec) -> Worker {
        let log = spec.stderr_log.as_ref().and_then(|path| {
            let opened = Sink::file(path, spec.log_limits);
            opened
                .inspect_err(|e| eprintln!("sandbox init: {}: {e}", path.display()))
                .ok()
        });
        Worker {
            family,
            spec,
            phase: Phase::Waiting(Instant::now()),
            line: None,
            output: Output::default(),
            restarts: 0,
            cold_starts: 0,
            starts: 0,
            unloading: false,
            reloaded: false,
            log,
            cage: Cage::default(),
            backoff: Backoff::default(),
            last_exit: String::new(),
            last_tail: String::new(),
            quarantined: None,
        }
    }

    /// Makes the family's segment and starts the process. A failure counts as its end.
    pub(super) fn start(
        &mut self,
        cgroups: &FamilyCgroups,
        confinement: &Confinement,
        guardian: &mut Guardian,
    ) {
        self.reloaded = matches!(self.phase, Phase::Unloaded);
        self.cage = cgroups.cage(self.family.0, self.starts, self.spec.memory_limit_bytes);
        self.starts += 1;
        match self.try_start(cgroups, confinement, guardian) {
            Ok(process) => self.phase = Phase::Starting(process),
            Err(reason) => {
                self.last_exit = reason;
                self.line = None;
                self.phase = Phase::Clearing { attached_for: None };
            }
        }
    }

    fn try_start(
        &mut self,
        cgroups: &FamilyCgroups,
        confinement: &Confinement,
        guardian: &mut Guardian,
    ) -> Result<Process, String> {
        guardian
            .make_family(self.family)
            .map_err(|error| format!("its memory: {error}"))?;
        let (line, theirs) = Participant::pair(self.family).map_err(|e| e.to_string())?;
        let flags = rustix::pipe::PipeFlags::CLOEXEC;
        let (output, writer) = rustix::pipe::pipe_with(flags).map_err(|e| e.to_string())?;
        rustix::io::ioctl_fionbio(&output, true).map_err(|e| e.to_string())?;
        self.output.begin(output, self.backoff.failed_last_time());
        self.line = Some(line);
        let null = File::open("/dev/null").map_err(|error| format!("/dev/null: {error}"))?;
        let argv = self.argv()?;
        let env = self.env();
        let working_dir = self.spec.working_dir.as_deref().unwrap_or(Path::new("/"));
        let program = Path::new(OsStr::from_bytes(argv[0].to_bytes()));
        let prepared = confinement
            .prepare(program, working_dir)
            .map_err(|error| format!("its file rules: {error}"))?;
        let working_dir = c_string(working_dir.as_os_str().as_bytes());
        let enter: Vec<_> = self.cage.enter.iter().map(AsFd::as_fd).collect();
        let mut fds = vec![null.as_fd(), writer.as_fd(), writer.as_fd(), theirs.as_fd()];
        fds.extend(cgroups.accounts.seats.iter().map(Seats::file));
        let mut plan = Plan {
            namespaces: 0,
            user_map: None,
            cgroup: self.cage.v2.as_ref().map(AsFd::as_fd),
            enter: &enter,
            program: None,
            argv: &argv,
            env: &env,
            fds: &fds,
            working_dir: Some(&working_dir),
            give_up: prepared.give_up(),
            oom_score_adj: Some(OOM_SCORE_ADJ),
            dies_with_parent: true,
        };
        let mut started = sys::spawn(&plan);
        let born_outside = plan.cgroup.is_some() && started.as_ref().is_err_and(|e| e.of_clone());
        if born_outside {
            plan.cgroup = None;
            started = sys::spawn(&plan);
        }
        let (pid, pidfd) = started.map_err(|error| {
            format!(
                "could not be started: {error} ({})",
                self.spec.command.join(" ")
            )
        })?;
        if born_outside {
            self.cage.v2 = None;
        }
        Ok(Process { pid, pidfd })
    }

    fn argv(&self) -> Result<Vec<CString>, String> {
        let (program, arguments) = self
            .spec
            .command
            .split_first()
            .ok_or("its command is empty")?;
        let program = self.find_program(program)?;
        let arguments = arguments
            .iter()
            .map(|argument| c_string(argument.as_bytes()));
        Ok(std::iter::once(program).chain(arguments).collect())
    }

    fn find_program(&self, program: &str) -> Result<CString, String> {
        if program.contains('/') {
            return Ok(c_string(program.as_bytes()));
        }
        let path = self.path();
        let candidates = path
            .split(':')
            .map(|directory| Path::new(directory).join(program));
        candidates
            .into_iter()
            .find(|file| rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok())
            .map(|file| c_string(file.as_os_str().as_bytes()))
            .ok_or_else(|| format!("{program} is not in PATH ({path})"))
    }

    fn env(&self) -> Vec<CString> {
        let pair = |key: &str, value: &str| c_string(format!("{key}={value}").as_bytes());
        let mut env: Vec<CString> = self
            .spec
            .env
            .iter()
            .map(|(key, value)| pair(key, value))
            .collect();
        if !self.spec.env.iter().any(|(key, _)| key == "PATH") {
            env.push(pair("PATH", DEFAULT_PATH));
        }
        env.push(pair(STARTED_VARIABLE, &monotonic_ns().to_string()));
        env
    }

    fn path(&self) -> &str {
        let given = self.spec.env.iter().find(|(key, _)| key == "PATH");
        given.map_or(DEFAULT_PATH, |(_, value)| value)
    }

    /// The process that has not been reaped, if any.
    pub(super) fn process(&self) -> Option<&Process> {
        match &self.phase {
            Phase::Starting(process) | Phase::Running(process, _) => Some(process),
            _ => None,
        }
    }

    /// Whether this is its process.
    pub(super) fn is_process(&self, pid: Pid) -> bool {
        self.process().is_some_and(|process| process.pid == pid)
    }

    pub(super) fn signal(&self, signal: Signal) {
        if let Some(process) = self.process() {
            let _ = pidfd_send_signal(&process.pidfd, signal);
        }
    }

    /// Ends its family for good: it wrote what no honest one writes.
    pub(super) fn quarantine(&mut self, reason: String) {
        self.quarantined.get_or_insert(reason);
        self.signal(Signal::KILL);
        if matches!(self.phase, Phase::Waiting(_) | Phase::Unloaded) {
            self.phase = Phase::Stopped;
        }
    }

    /// Asks it to end as one that is idle. What it takes before it hears that, it finishes.
    pub(super) fn unload(&mut self) {
        if matches!(self.phase, Phase::Running(..)) && !self.unloading {
            self.unloading = true;
            self.signal(Signal::TERM);
        }
    }

    /// It has mapped its segments: it works.
    pub(super) fn attached(&mut self, agent_log: Option<&Sink>) {
        match std::mem::replace(&mut self.phase, Phase::Stopped) {
            Phase::Starting(process) => {
                self.phase = Phase::Running(process, Instant::now());
                self.output.release(self.log.as_ref().or(agent_log));
            }
            other => self.phase = other,
        }
    }

    /// Its process was reaped.
    pub(super) fn reaped(&mut self, status: WaitStatus) {
        let attached_for = match &self.phase {
            Phase::Running(_, since) => Some(since.elapsed()),
            _ => None,
        };
        // Whatever else ended it was no unloading.
        self.unloading &= status.exit_status() == Some(0);
        self.last_exit = describe(status);
        self.line = None;
        self.phase = Phase::Clearing { attached_for };
    }

    /// Kills what is left of a dead family; once nothing is, repairs its memory and sets the time
    /// of the next start. Never blocks.
    pub(super) fn clear(
        &mut self,
        living: &[Pid],
        cgroups: &FamilyCgroups,
        guardian: &mut Guardian,
        agent_log: Option<&Sink>,
    ) {
        let Phase::Clearing { attached_for } = self.phase else {
            return;
        };
        if !self.cage.clear(living) {
            return;
        }
        cgroups.remove(&mut self.cage);
        if let Some(seats) = &cgroups.accounts.seats {
            seats.left(self.family);
        }
        self.last_tail = self.output.end(self.log.as_ref().or(agent_log));
        guardian.repair_family(self.family);
        let unloaded = std::mem::take(&mut self.unloading);
        if unloaded && self.quarantined.is_none() {
            self.backoff = Backoff::default();
            self.phase = Phase::Unloaded;
            return;
        }
        let wait = self.backoff.ended(attached_for);
        self.restarts += 1;
        self.phase = match self.quarantined {
            None => Phase::Waiting(Instant::now() + wait),
            Some(_) => Phase::Stopped,
        };
    }

    /// Takes what it has written.
    pub(super) fn read_output(&mut self, agent_log: Option<&Sink>) {
        self.output.read(self.log.as_ref().or(agent_log));
    }

    /// Its state in words, with at most `tail_bytes` of its output.
    pub(super) fn state(&self, tail_bytes: usize) -> WorkerState {
        if let Some(reason) = &self.quarantined {
            let reason = reason.clone();
            return WorkerState::Quarantined { reason };
        }
        match &self.phase {
            Phase::Starting(_) if self.reloaded => WorkerState::Reloading,
            Phase::Starting(_) => WorkerState::Starting,
            Phase::Running(..) if self.unloading => WorkerState::Unloading,
            Phase::Unloaded => WorkerState::Unloaded,
            Phase::Running(..) => WorkerState::Running,
            Phase::Clearing { .. } => WorkerState::Clearing,
            Phase::Stopped => WorkerState::Stopped,
            Phase::Waiting(until) => {
                let left = until.saturating_duration_since(Instant::now());
                let retry_in_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
                let last_exit = self.last_exit.clone();
                let stderr_tail = end_of(&self.last_tail, tail_bytes).to_string();
                match self.backoff.failed_starts() {
                    None => WorkerState::Backoff {
                        retry_in_ms,
                        last_exit,
                        stderr_tail,
                    },
                    Some(attempts) => WorkerState::Failed {
                        retry_in_ms,
                        attempts,
                        last_exit,
                        stderr_tail,
                    },
                }
            }
        }
    }
}

fn c_string(bytes: &[u8]) -> CString {
    CString::new(bytes).expect("the spec was checked for NUL bytes")
}

/// The last `bytes` of a text, from a character's beginning.
fn end_of(text: &str, bytes: usize) -> &str {
    let from = text.len().saturating_sub(bytes);
    let from = (from..=text.len())
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(text.len());
    &text[from..]
}

fn describe(status: WaitStatus) -> String {
    let Some(number) = status.terminating_signal() else {
        return format!("exit code {}", status.exit_status().unwrap_or(-1));
    };
    let names = [
        (Signal::ABORT, "SIGABRT"),
        (Signal::BUS, "SIGBUS"),
        (Signal::ILL, "SIGILL"),
        (Signal::INT, "SIGINT"),
        (Signal::KILL, "SIGKILL"),
        (Signal::SEGV, "SIGSEGV"),
        (Signal::TERM, "SIGTERM"),
    ];
    let name = names.iter().find(|(signal, _)| signal.as_raw() == number);
    name.map_or_else(
        || format!("killed by signal {number}"),
        |(_, name)| format!("killed by {name}"),
    )
}

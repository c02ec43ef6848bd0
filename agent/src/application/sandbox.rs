//! The application's sandbox: made or adopted, watched, and ended.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use sandpipe::attach::Participant;
use sandpipe::wait::{WAITER_VARIABLE, WaiterKind};
use sandpipe::{FamilyIndex, Topology};
use sandpipe_sandbox::{
    Files, Isolation, IsolationItem, IsolationState, SandboxHandle, SandboxSpec, WorkerSpec,
    WorkerState, WorkerStatus, create_or_adopt,
};

use super::Places;
use super::keepers::Keepers;
use super::kernel_limits;
use super::programs::{programs, python_path};
use crate::bridge::{
    Attached, GrainState, LimitState, LocalBus, LocalError, Mailbox, Post, SandboxBus,
    SandboxSource,
};
use crate::config::{AppSpec, KeepAlive, Network};

/// How long the handshake with the guardian may take; it takes a millisecond.
const ATTACH: Duration = Duration::from_secs(10);

/// How long the processes of a sandbox that could not be attached to may take to end.
const END: Duration = Duration::from_secs(3);

/// Between two looks at the workers.
const WATCH: Duration = Duration::from_millis(50);

/// So many of them between two looks at what the kernel says of the limits.
const LIMITS: usize = 20;

/// Makes and adopts the sandbox of one application.
#[derive(Debug)]
pub struct Source {
    spec: SandboxSpec,
    handle: Option<Arc<SandboxHandle>>,
    mailbox: Arc<Mailbox>,
    number: u64,
    roster: Roster,
    limits: KernelLimits,
    keep_alive: KeepAlive,
    network: Option<Network>,
}

/// How the kernel's limits were at the last look.
type KernelLimits = Arc<Mutex<Vec<LimitState>>>;

/// How the workers were at the last look.
type Roster = Arc<Mutex<Vec<GrainState>>>;

/// Two versions of an application may have a source each.
static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);

impl Source {
    pub(super) fn new(
        app: &AppSpec,
        places: &Places,
        topology: &Topology,
        workers: Vec<WorkerSpec>,
        mailbox: Arc<Mailbox>,
    ) -> Source {
        let spec = SandboxSpec {
            app: app.name.clone(),
            run_dir: places.run.clone(),
            topology: topology.encode(),
            workers,
            isolation: Isolation {
                network: app.sandbox.network == Network::Loopback,
                ..Isolation::default()
            },
            memory_limit_bytes: app.limits.memory_limit_bytes,
            pids_limit: app.limits.pids_limit,
            instances_limit: app.limits.instances,
            cpu_limit_millicores: app.limits.cpu_limit_millicores,
            files: files(app),
            // Who forces a waiter on the grains lets them have it.
            io_uring: app.sandbox.io_uring || forces_io_uring(),
        };
        Source {
            spec,
            handle: None,
            mailbox,
            number: NEXT_NUMBER.fetch_add(1, Ordering::Relaxed),
            roster: Roster::default(),
            limits: KernelLimits::default(),
            keep_alive: app.keep_alive,
            network: None,
        }
    }

    fn own(&self) -> Result<SandboxHandle, LocalError> {
        let made = |error: sandpipe_sandbox::SandboxError| LocalError::NotMade(error.to_string());
        let handle = create_or_adopt(&self.spec).map_err(made)?;
        if handle.same_spec {
            return Ok(handle);
        }
        // The application has changed since. What its old sandbox holds is on the global bus.
        tracing::info!(app = %self.spec.app, "app.toml has changed: the sandbox is made anew");
        handle.shutdown(Duration::from_secs(3)).map_err(made)?;
        create_or_adopt(&self.spec).map_err(made)
    }
}

/// What an application's grains may reach: what was declared, and what their own programs need to
/// start. Looks at the disk.
#[must_use]
pub fn files(app: &AppSpec) -> Files {
    let mut read = app.sandbox.read.clone();
    read.extend(app.grains.iter().flat_map(|grain| programs(&grain.runtime)));
    read.extend(
        app.grains
            .iter()
            .flat_map(|grain| python_path(grain.env.get("PYTHONPATH"))),
    );
    read.push(app.directory.clone());
    if app.sandbox.network == Network::Host {
        // Often a link to below /run, which is hidden.
        let servers = PathBuf::from("/etc/resolv.conf");
        read.extend(servers.exists().then_some(servers));
    }
    read.sort();
    read.dedup();
    Files {
        read,
        write: app.sandbox.write.clone(),
        tmp_bytes: app.sandbox.tmp_bytes,
    }
}

fn forces_io_uring() -> bool {
    std::env::var(WAITER_VARIABLE).is_ok_and(|name| name == WaiterKind::IoUring.name())
}

impl SandboxSource for Source {
    fn attach(&mut self) -> Result<Attached, LocalError> {
        if let Some(old) = self.handle.take()
            && !old.has_ended()
        {
            return Err(LocalError::TakenOver(self.spec.app.clone()));
        }
        let mut handle = self.own()?;
        let adopted = handle.adopted;
        let socket = handle.take_attach_socket();
        let handle = Arc::new(handle);
        match self.join(&handle, socket) {
            Ok(local) => {
                self.network = report_isolation(&handle);
                self.handle = Some(handle);
                Ok(Attached { local, adopted })
            }
            Err(error) => {
                // One that lived before waits for the next attempt.
                if !adopted && let Err(error) = handle.shutdown(END) {
                    tracing::error!(app = %self.spec.app, %error, "the sandbox did not end");
                }
                Err(error)
            }
        }
    }

    fn quarantine(&mut self, grain: usize, reason: &str) {
        // Grain i is worker i. Should it fail, the grain is still not read any more.
        if let Some(handle) = &self.handle
            && let Err(error) = handle.quarantine(grain, reason)
        {
            tracing::error!(app = %self.spec.app, grain, %error, "the grain was not ended");
        }
    }

    fn number(&self) -> u64 {
        self.number
    }

    fn workers(&self) -> Vec<GrainState> {
        lock(&self.roster).clone()
    }

    fn network(&self) -> Option<Network> {
        self.handle.as_ref().and(self.network)
    }

    fn kernel_limits(&self) -> Vec<LimitState> {
        lock(&self.limits).clone()
    }

    fn shut_down(&mut self, timeout: Duration) {
        if let Some(handle) = self.handle.take()
            && let Err(error) = handle.shutdown(timeout)
        {
            tracing::error!(app = %self.spec.app, %error, "the sandbox did not end cleanly");
        }
    }
}

impl Source {
    /// Attaches to a sandbox, and has it watched from then on.
    fn join(
        &self,
        handle: &Arc<SandboxHandle>,
        socket: Option<OwnedFd>,
    ) -> Result<Box<dyn LocalBus>, LocalError> {
        let socket = socket.ok_or_else(|| {
            LocalError::NotMade("init sent no attach socket: it is of another version".into())
        })?;
        let (participant, bus) = Participant::attach(socket, FamilyIndex::AGENT, ATTACH)
            .map_err(|error| LocalError::NotMade(error.to_string()))?;
        let watch = Watch {
            app: self.spec.app.clone(),
            number: self.number,
            roster: Arc::clone(&self.roster),
            limits: Arc::clone(&self.limits),
            mailbox: Arc::clone(&self.mailbox),
            keep_alive: self.keep_alive,
        };
        let no_thread = |error| {
            LocalError::NotMade(format!(
                "no thread can be made to watch the sandbox: {error}; look at the limit of \
                 processes"
            ))
        };
        watch.begin(Arc::downgrade(handle)).map_err(no_thread)?;
        Ok(Box::new(SandboxBus::new(participant, bus)))
    }
}

/// Says what is not isolated and could be; which network the processes have in fact.
fn report_isolation(handle: &SandboxHandle) -> Option<Network> {
    let status = handle.status().ok()?;
    for item in status
        .isolation
        .iter()
        .filter(|item| item.state == IsolationState::Off && !item.remedy.is_empty())
    {
        tracing::warn!(
            what = item.name,
            why = item.reason,
            remedy = item.remedy,
            "not isolated"
        );
    }
    let own =
        |item: &IsolationItem| item.name == "network namespace" && item.state == IsolationState::On;
    Some(match status.isolation.iter().any(own) {
        true => Network::Loopback,
        false => Network::Host,
    })
}

/// Tells the bus thread how the workers are, whenever that changes, for as long as the sandbox is
/// this agent's.
struct Watch {
    app: String,
    number: u64,
    roster: Roster,
    limits: KernelLimits,
    mailbox: Arc<Mailbox>,
    keep_alive: KeepAlive,
}

impl Watch {
    fn begin(self, handle: Weak<SandboxHandle>) -> std::io::Result<()> {
        let thread = std::thread::Builder::new().name("watch-workers".into());
        thread.spawn(move || self.run(&handle)).map(drop)
    }

    fn run(&self, handle: &Weak<SandboxHandle>) {
        let mut ran = HashSet::new();
        let mut said = HashMap::new();
        let mut keepers = Keepers::new(self.keep_alive);
        let mut looks = (0..LIMITS).cycle();
        while let Some(handle) = handle.upgrade() {
            let status = handle.status();
            if looks.next() == Some(0) {
                self.tell_limits(&handle);
            }
            if let Ok(status) = &status {
                // What goes wrong costs memory only: the workers stay as they are.
                let _ = keepers.look(&handle, &status.workers);
            }
            drop(handle);
            let Ok(status) = status else {
                // It has ended, or there is no descriptor for the answer: whose sandbox it is then
                // is the bus thread's to find out, who lets go of it.
                std::thread::sleep(WATCH);
                continue;
            };
            let states: Vec<GrainState> = status
                .workers
                .into_iter()
                .map(|worker| state(worker, &mut ran))
                .collect();
            let before = std::mem::replace(&mut *lock(&self.roster), states.clone());
            if states != before {
                for state in states.iter() {
                    say_once(&self.app, state, &mut said);
                }
                self.mailbox.post(Post::Workers(self.number, states));
            }
            std::thread::sleep(WATCH);
        }
    }
}

impl Watch {
    /// An init of a version before this one does not know: nothing is told then.
    fn tell_limits(&self, handle: &SandboxHandle) {
        if let Ok(limits) = handle.limits() {
            *lock(&self.limits) = kernel_limits::told(limits);
        }
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A worker that dies again and again for the same reason is told of once. Of each grain only the
/// newest reason is remembered: one with a time in it is another each time. Whether it was told.
fn say_once(app: &str, state: &GrainState, said: &mut HashMap<String, String>) -> bool {
    let GrainState { grain, trouble, .. } = state;
    let Some(trouble) = trouble.as_ref().filter(|&new| said.get(grain) != Some(new)) else {
        return false;
    };
    said.insert(grain.clone(), trouble.clone());
    tracing::error!(app, grain, "the grain worker does not run: {trouble}");
    true
}

fn state(worker: WorkerStatus, ran: &mut HashSet<String>) -> GrainState {
    let (name, trouble, failed) = match worker.state {
        WorkerState::Starting => ("starting", None, false),
        WorkerState::Running => ("running", None, false),
        WorkerState::Unloading => ("unloading", None, false),
        WorkerState::Unloaded => ("unloaded", None, false),
        WorkerState::Reloading => ("reloading", None, false),
        WorkerState::Clearing => ("clearing", None, false),
        WorkerState::Backoff {
            last_exit,
            stderr_tail,
            ..
        } => ("backoff", Some(trouble(&last_exit, &stderr_tail)), false),
        WorkerState::Failed {
            last_exit,
            stderr_tail,
            ..
        } => ("failed", Some(trouble(&last_exit, &stderr_tail)), true),
        WorkerState::Quarantined { reason } => ("quarantined", Some(reason), true),
        WorkerState::Stopped => ("stopped", None, true),
    };
    if name == "running" {
        ran.insert(worker.grain.clone());
    }
    // One that has never run needs mending; one that ran is back in a moment.
    let broken = failed || (name == "backoff" && !ran.contains(&worker.grain));
    GrainState {
        grain: worker.grain,
        state: name.to_owned(),
        pid: worker.pid,
        restarts: worker.restarts,
        cold_starts: worker.cold_starts,
        trouble,
        broken,
    }
}

fn trouble(last_exit: &str, stderr_tail: &str) -> String {
    let words = stderr_tail.trim();
    if words.is_empty() {
        last_exit.to_owned()
    } else {
        format!("{last_exit}:\n{words}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_once_and_reasons_that_always_differ_are_not_kept() {
        let mut said = HashMap::new();
        let mut say = |trouble: &str| {
            let state = GrainState {
                grain: "g".into(),
                trouble: Some(trouble.into()),
                ..GrainState::default()
            };
            (say_once("app", &state, &mut said), said.len())
        };
        assert_eq!(
            ["no x", "no x", "no y"].map(&mut say),
            [(true, 1), (false, 1), (true, 1)]
        );
        let dated = |second: u32| format!("12:00:{second}: no x");
        assert!((0..100).all(|second| say(&dated(second)) == (true, 1)));
    }
}

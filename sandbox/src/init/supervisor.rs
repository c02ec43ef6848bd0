use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, wait};
use sandpipe::{FamilyIndex, Guardian, PARK_MAX, Topology};

use super::claim::Connections;
use super::events::{Events, Watch};
use super::family::FamilyCgroups;
use super::listener::Listener;
use super::output::Sink;
use super::participant::{Participant, Progress};
use super::shutdown::Ending;
use super::worker::{Phase, Worker};
use super::{Inherited, setup};
use crate::IsolationItem;
use crate::confine::Confinement;
use crate::sys::Signals;

/// Between two looks at a family that is being killed, or at a socket that was full.
const RETRY_INTERVAL: Duration = Duration::from_millis(2);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 16;

/// All that init knows and holds.
pub(super) struct Supervisor {
    pub(super) spec_hash: u64,
    pub(super) isolation: Vec<IsolationItem>,
    pub(super) guardian: Guardian,
    pub(super) cgroups: FamilyCgroups,
    confinement: Confinement,
    pub(super) workers: Vec<Worker>,
    pub(super) connections: Connections,
    /// The owning agent's line to the guardian.
    pub(super) agent: Option<Participant>,
    pub(super) agent_log: Option<Sink>,
    pub(super) orphans_reaped: u64,
    pub(super) began: Instant,
    pub(super) ending: Option<Ending>,
    pub(super) listener: Listener,
    pub(super) events: Events,
    signals: Signals,
    _signals_watch: Watch,
    /// Locked as long as init lives.
    lock: OwnedFd,
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Listener,
    Signals,
    Agent,
    Connection(u32),
    Line(u32),
    Output(u32),
}

impl Supervisor {
    /// Furnishes the sandbox and begins to listen; starts no worker yet.
    pub(super) fn new(inherited: Inherited) -> io::Result<Supervisor> {
        let Inherited {
            socket,
            lock,
            cgroups,
            boot,
        } = inherited;
        // Before anything is started: a child that ends early must not go unseen.
        let signals = Signals::open()?;
        rustix::thread::set_name(c"sandpipe-init")?;
        // Their log files are opened while the host's files can still be written.
        let workers: Vec<Worker> = (1..)
            .zip(boot.spec.workers.iter().cloned())
            .map(|(i, spec)| Worker::new(FamilyIndex(i), spec))
            .collect();
        let mut isolation = setup::furnish(&boot, &cgroups);
        let confinement = setup::confinement(&boot, &mut isolation);
        let cgroups = FamilyCgroups::new(&boot.spec, cgroups, &mut isolation)?;
        let topology = Topology::decode(&boot.spec.topology)
            .map_err(|error| io::Error::other(format!("topology: {error}")))?;
        let families = topology.families().len();
        if families != workers.len() + 1 {
            let workers = workers.len();
            let reason = format!("a topology of {families} families for {workers} workers");
            return Err(io::Error::other(reason));
        }
        let guardian = Guardian::new(topology)?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        rustix::net::listen(&socket, BACKLOG)?;
        let events = Events::open()?;
        Ok(Supervisor {
            spec_hash: boot.spec_hash,
            isolation,
            guardian,
            cgroups,
            confinement,
            workers,
            connections: Connections::default(),
            agent: None,
            agent_log: None,
            orphans_reaped: 0,
            began: Instant::now(),
            ending: None,
            listener: Listener::open(socket, &events)?,
            _signals_watch: events.watch(&signals, Source::Signals)?,
            events,
            signals,
            lock,
        })
    }

    /// Runs until the sandbox has ended.
    pub(super) fn run(mut self) -> io::Result<()> {
        loop {
            self.do_what_is_due();
            if self.has_ended() {
                return Ok(());
            }
            for source in self.wait()? {
                self.handle(source);
            }
        }
    }

    fn handle(&mut self, source: Source) {
        match source {
            Source::Listener => self.accept(),
            Source::Signals => self.take_signals(),
            Source::Agent => self.serve_agent(),
            Source::Connection(id) => self.serve_connection(id),
            Source::Line(index) => self.serve_worker(index as usize),
            Source::Output(index) => {
                self.workers[index as usize].read_output(self.agent_log.as_ref());
            }
        }
    }

    fn take_signals(&mut self) {
        while let Some(number) = self.signals.next() {
            // The others are SIGCHLD, of which several may have become one, and strangers.
            if let Some(Signal::TERM | Signal::INT) = Signal::from_named_raw(number) {
                self.begin_shutdown(SIGTERM_TIMEOUT);
            }
        }
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let worker = self
                .workers
                .iter_mut()
                .find(|worker| worker.is_process(pid));
            match worker {
                Some(worker) => worker.reaped(status),
                None => self.orphans_reaped += 1,
            }
        }
    }

    fn serve_worker(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        let Some(line) = &mut worker.line else { return };
        match line.serve(&mut self.guardian) {
            Progress::Nothing => {}
            Progress::Attached => worker.attached(self.agent_log.as_ref()),
            Progress::Joined => {
                let family = worker.family;
                self.tell_others(family);
            }
            Progress::Gone => {
                // It ends, or has closed its only way to hear of its peers.
                worker.line = None;
                worker.signal(Signal::KILL);
            }
        }
    }

    fn serve_agent(&mut self) {
        let Some(agent) = &mut self.agent else { return };
        match agent.serve(&mut self.guardian) {
            Progress::Nothing | Progress::Attached => {}
            Progress::Joined => self.tell_others(FamilyIndex(0)),
            Progress::Gone => self.agent = None,
        }
    }

    /// Tells everybody about a family's new segment, and wakes the idle so that they look.
    fn tell_others(&mut self, family: FamilyIndex) {
        let lines = self
            .workers
            .iter_mut()
            .filter_map(|worker| worker.line.as_mut());
        for participant in lines.chain(&mut self.agent) {
            participant.tell_about(&self.guardian, family);
        }
        self.guardian.ring_everybody();
    }

    fn do_what_is_due(&mut self) {
        let living: Vec<Pid> = self
            .workers
            .iter()
            .filter_map(|worker| Some(worker.process()?.pid))
            .collect();
        let now = Instant::now();
        self.listener.go_on(now, &self.events);
        for index in 0..self.workers.len() {
            let worker = &mut self.workers[index];
            let log = self.agent_log.as_ref();
            worker.clear(&living, &self.cgroups, &mut self.guardian, log);
            match worker.phase {
                Phase::Waiting(_) | Phase::Unloaded if self.ending.is_some() => {
                    worker.phase = Phase::Stopped;
                }
                Phase::Waiting(until) if until <= now => self.start_worker(index),
                Phase::Unloaded if self.guardian.has_waiting(worker.family) => {
                    worker.cold_starts += 1;
                    self.start_worker(index);
                }
                _ => {}
            }
        }
        let lines = self
            .workers
            .iter_mut()
            .filter_map(|worker| worker.line.as_mut());
        for participant in lines.chain(&mut self.agent).filter(|p| p.is_behind()) {
            participant.tell_all(&self.guardian);
        }
        self.look_after_pools(now);
        if !self.connections.is_owned() && self.is_unreachable() {
            self.begin_shutdown(Duration::ZERO);
        }
        self.go_on_ending();
    }

    /// Takes back what the pools have grown by and nobody needs.
    fn look_after_pools(&mut self, now: Instant) {
        self.guardian.look_after_pools(now);
        let due: Vec<_> = self.guardian.renewals().collect();
        for family in due {
            let line = match family.index().checked_sub(1) {
                None => &self.agent,
                Some(index) => &self.workers[index].line,
            };
            if let Some(line) = line {
                line.send_renewal(&mut self.guardian);
            }
        }
    }

    /// Whether its directory was removed, so that no agent will ever find it again.
    fn is_unreachable(&self) -> bool {
        rustix::fs::fstat(&self.lock).is_ok_and(|file| file.st_nlink == 0)
    }

    pub(super) fn start_worker(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        worker.start(&self.cgroups, &self.confinement, &mut self.guardian);
        let number = u32::try_from(index).expect("at most 65,535 families");
        let line = worker.line.as_mut();
        let watched = line
            .map_or(Ok(()), |line| {
                line.watch(&self.events, Source::Line(number))
            })
            .and_then(|()| worker.output.watch(&self.events, Source::Output(number)));
        if watched.is_err() {
            // Out of kernel memory: without its line it could never attach, so it is tried again.
            worker.signal(Signal::KILL);
        }
    }

    /// How long nothing is due.
    pub(super) fn timeout(&self) -> Duration {
        let now = Instant::now();
        let soon = now + RETRY_INTERVAL;
        let of_workers = self.workers.iter().filter_map(|worker| match worker.phase {
            Phase::Clearing { .. } => Some(soon),
            Phase::Waiting(until) => Some(until),
            Phase::Unloaded => Some(now + PARK_MAX),
            _ => None,
        });
        let lines = self
            .workers
            .iter()
            .filter_map(|worker| worker.line.as_ref());
        let behind = lines
            .chain(&self.agent)
            .any(Participant::is_behind)
            .then_some(soon);
        let ending = self.ending.as_ref().map(Ending::next_step);
        let unowned = (!self.connections.is_owned()).then_some(now + UNOWNED_INTERVAL);
        let next = of_workers
            .chain(behind)
            .chain(ending)
            .chain(unowned)
            .chain(self.listener.paused_until())
            .chain(self.guardian.next_look())
            .min();
        next.map_or(IDLE, |next| next.saturating_duration_since(now))
    }
}

/// While no agent owns the sandbox, init looks that often whether one still can.
const UNOWNED_INTERVAL: Duration = Duration::from_secs(1);
/// How long the workers may take when init is told to end by a signal.
const SIGTERM_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest wait, when nothing will be due by itself.
const IDLE: Duration = Duration::from_secs(3600);

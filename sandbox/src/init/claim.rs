//! Agents and tools at the sandbox's socket.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::SocketFlags;
use sandpipe::FamilyIndex;

use super::events::Watch;
use super::output::Sink;
use super::participant::Participant;
use super::supervisor::{Source, Supervisor};
use crate::wire::{self, Reply, Request};
use crate::{SandboxStatus, WorkerActivity, WorkerStatus, sys};

/// More than this, and the oldest that owns nothing is closed.
const CONNECTIONS_MAX: usize = 32;
/// All workers' tails together fit into one packet, however they are escaped.
const TAILS_BYTES_MAX: usize = 24 << 10;
/// The longest reason that is kept.
const REASON_CHARS_MAX: usize = 256;
/// The most that one worker's tail may take of it.
const TAIL_BYTES_MAX: usize = 8 << 10;

#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
    _watch: Watch,
}

/// Who is connected, and who of them owns the sandbox.
#[derive(Debug, Default)]
pub(super) struct Connections {
    open: BTreeMap<u32, Connection>,
    last_id: u32,
    owner: Option<u32>,
    /// Counts the owners.
    epoch: u64,
}

impl Connections {
    /// Whether an agent is connected and has claimed the sandbox.
    pub(super) fn is_owned(&self) -> bool {
        self.owner.is_some()
    }
}

impl Supervisor {
    /// Lets a process of the same user in, unless it belongs to the sandbox.
    pub(super) fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match rustix::net::accept_with(&self.listener, flags) {
            Ok(socket) => socket,
            Err(error) => return self.listener.refused(error),
        };
        let own = rustix::process::geteuid().as_raw();
        if !sys::peer_uid(socket.as_fd()).is_ok_and(|uid| uid == own) {
            return;
        }
        // A grain must not claim its own sandbox. Without a pid namespace it cannot be told from
        // an agent.
        let inside = || sys::peer_has_pid(socket.as_fd()).unwrap_or(true);
        if rustix::process::getpid().is_init() && inside() {
            return;
        }
        if self.connections.open.len() >= CONNECTIONS_MAX {
            let owner = self.connections.owner;
            let oldest = self
                .connections
                .open
                .keys()
                .copied()
                .find(|id| Some(*id) != owner);
            oldest.and_then(|id| self.connections.open.remove(&id));
        }
        self.connections.last_id += 1;
        let id = self.connections.last_id;
        if let Ok(_watch) = self.events.watch(&socket, Source::Connection(id)) {
            let connection = Connection { socket, _watch };
            self.connections.open.insert(id, connection);
        }
    }

    /// Answers one request.
    pub(super) fn serve_connection(&mut self, id: u32) {
        let Some(connection) = self.connections.open.get(&id) else {
            return;
        };
        let (message, fds) = match wire::receive(connection.socket.as_fd()) {
            Ok(Some(received)) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Ok(None) | Err(_) => return self.disconnect(id),
        };
        let answered = match serde_json::from_slice(&message) {
            Ok(Request::Claim) => self.claim(id, fds),
            Ok(Request::Status) => self.tell_status(id),
            Ok(Request::Shutdown { timeout_ms }) if self.connections.owner == Some(id) => {
                self.begin_shutdown(Duration::from_millis(timeout_ms));
                self.reply(id, &Reply::ShuttingDown, &[])
            }
            Ok(Request::Quarantine { worker, reason }) if self.connections.owner == Some(id) => {
                self.quarantine(id, worker, reason)
            }
            Ok(Request::Activity) => self.tell_activity(id),
            Ok(Request::Limits) => {
                let limits = self.cgroups.accounts.look();
                self.reply(id, &Reply::Limits { limits }, &[])
            }
            Ok(Request::Unload { worker }) if self.connections.owner == Some(id) => {
                self.unload(worker);
                self.reply(id, &Reply::Noted, &[])
            }
            Ok(Request::Load { worker }) if self.connections.owner == Some(id) => {
                self.load(worker);
                self.reply(id, &Reply::Noted, &[])
            }
            Ok(Request::Unload { .. } | Request::Load { .. }) => {
                self.refuse(id, "only the owner says which workers are loaded")
            }
            Ok(Request::Quarantine { .. }) => self.refuse(id, "only the owner accuses a worker"),
            Ok(Request::Shutdown { .. }) => self.refuse(id, "claim the sandbox before ending it"),
            Err(error) => self.refuse(id, &format!("not understood: {error}")),
        };
        if answered.is_err() {
            self.disconnect(id);
        }
    }

    /// Makes the sender the owner: the older one is fenced, its family's memory repaired and
    /// replaced. Should the older one still live, it writes into memory that nobody reads.
    fn claim(&mut self, id: u32, fds: Vec<OwnedFd>) -> io::Result<()> {
        if let Some(older) = self.connections.owner.take().filter(|older| *older != id) {
            self.connections.open.remove(&older);
        }
        self.agent = None;
        let family = FamilyIndex(0);
        self.guardian.repair_family(family);
        self.guardian.make_family(family)?;
        let (mut agent, theirs) = Participant::pair(family)?;
        agent.watch(&self.events, Source::Agent)?;
        self.agent = Some(agent);
        self.agent_log = fds.into_iter().next().map(Sink::of_agent);
        self.connections.owner = Some(id);
        self.connections.epoch += 1;
        let reply = Reply::Claimed {
            epoch: self.connections.epoch,
            spec_hash: self.spec_hash,
        };
        self.reply(id, &reply, &[theirs.as_fd()])
    }

    fn quarantine(&mut self, id: u32, worker: usize, reason: String) -> io::Result<()> {
        let Some(worker) = self.workers.get_mut(worker) else {
            return self.refuse(id, "there is no such worker");
        };
        let reason = reason.chars().take(REASON_CHARS_MAX).collect();
        worker.quarantine(reason);
        self.reply(id, &Reply::Quarantined, &[])
    }

    fn tell_activity(&self, id: u32) -> io::Result<()> {
        let workers = self.workers.iter().map(|worker| {
            let activity = self.guardian.activity(worker.family);
            WorkerActivity {
                received: activity.received,
                busy: activity.waiting || activity.at_work,
            }
        });
        let workers = workers.collect();
        self.reply(id, &Reply::Activity { workers }, &[])
    }

    fn tell_status(&self, id: u32) -> io::Result<()> {
        let tail_bytes = (TAILS_BYTES_MAX / self.workers.len().max(1)).min(TAIL_BYTES_MAX);
        let workers = self.workers.iter().map(|worker| WorkerStatus {
            grain: worker.spec.grain.clone(),
            state: worker.state(tail_bytes),
            pid: worker
                .process()
                .map(|process| process.pid.as_raw_nonzero().get().cast_unsigned()),
            restarts: worker.restarts,
            cold_starts: worker.cold_starts,
        });
        let status = SandboxStatus {
            epoch: self.connections.epoch,
            uptime_ms: u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
            orphans_reaped: self.orphans_reaped,
            workers: workers.collect(),
            isolation: self.isolation.clone(),
        };
        let processes = self.workers.iter().filter_map(|worker| worker.process());
        let pidfds: Vec<_> = processes
            .take(wire::FDS_MAX)
            .map(|process| process.pidfd.as_fd())
            .collect();
        self.reply(id, &Reply::Status(status), &pidfds)
    }

    fn refuse(&self, id: u32, reason: &str) -> io::Result<()> {
        self.reply(
            id,
            &Reply::Refused {
                reason: reason.into(),
            },
            &[],
        )
    }

    fn reply(&self, id: u32, reply: &Reply, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let connection = self.connections.open.get(&id);
        let connection = connection.ok_or(io::ErrorKind::NotConnected)?;
        wire::send_json(&connection.socket, reply, fds)
    }

    fn disconnect(&mut self, id: u32) {
        self.connections.open.remove(&id);
        self.listener.hurry();
        if self.connections.owner == Some(id) {
            self.connections.owner = None;
            // A pipe that nobody reads any more would hold up whoever waits for its end.
            self.agent_log = None;
        }
    }
}

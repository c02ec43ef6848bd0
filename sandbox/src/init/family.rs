//! A family as a whole: the worker, its instances, and whatever they left behind.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::io::Errno;
use rustix::process::Pid;

use super::accounts::Accounts;
use super::processes;
use crate::cgroup::{self, MEMORY};
use crate::{IsolationItem, SandboxSpec};

/// The cgroups in which families are born.
#[derive(Default)]
pub(super) struct FamilyCgroups {
    v2: Option<OwnedFd>,
    v1_memory: Option<OwnedFd>,
    v2_memory: bool,
    pub(super) accounts: Accounts,
}

/// Where one family lives.
#[derive(Debug, Default)]
pub(super) struct Cage {
    /// The name of its directories.
    name: String,
    /// Its v2 directory; without one the family is found through /proc.
    pub(super) v2: Option<OwnedFd>,
    /// The v1 files to enter before the exec.
    pub(super) enter: Vec<OwnedFd>,
}

impl FamilyCgroups {
    /// Takes the sandbox's directories.
    pub(super) fn new(
        spec: &SandboxSpec,
        directories: Vec<(String, OwnedFd)>,
        report: &mut Vec<IsolationItem>,
    ) -> io::Result<FamilyCgroups> {
        let mut workers = spec.workers.iter();
        let limits = workers.any(|worker| worker.memory_limit_bytes.is_some());
        let mut found = FamilyCgroups {
            accounts: Accounts::new(spec, &directories)?,
            ..FamilyCgroups::default()
        };
        for (name, directory) in directories {
            match name.as_str() {
                cgroup::V2 => found.v2 = Some(directory),
                "memory" => found.v1_memory = Some(directory),
                _ => {}
            }
        }
        if !limits {
            return Ok(found);
        }
        found.v2_memory = match &found.v2 {
            Some(v2) if cgroup::has_controller(v2.as_fd(), MEMORY.name) => {
                match pass_memory_on(v2.as_fd()) {
                    Ok(()) => true,
                    Err(error) => {
                        report.push(IsolationItem::off("worker memory limit", error, ""));
                        return Ok(found);
                    }
                }
            }
            _ => false,
        };
        report.push(if found.v2_memory || found.v1_memory.is_some() {
            IsolationItem::on("worker memory limit", "")
        } else {
            let remedy = "run the agent as root, or delegate the memory controller to it";
            IsolationItem::off(
                "worker memory limit",
                "no cgroup with the controller",
                remedy,
            )
        });
        Ok(found)
    }

    /// Makes the directories of a family's next incarnation and writes its limit.
    ///
    /// Never the old directory again: Linux (6.18 at least) kills a process that is born into a
    /// cgroup whose `cgroup.kill` was ever written. What is refused is left out: `new` has reported
    /// what could be foreseen.
    pub(super) fn cage(
        &self,
        family: u16,
        incarnation: u64,
        memory_limit_bytes: Option<u64>,
    ) -> Cage {
        let name = format!("w{family}-{incarnation}");
        let limit = memory_limit_bytes.map(|bytes| bytes.to_string());
        let v2 = self
            .v2
            .as_ref()
            .and_then(|parent| child(parent.as_fd(), &name).ok());
        if let (true, Some(v2), Some(limit)) = (self.v2_memory, &v2, &limit) {
            complain(
                MEMORY.v2_file,
                cgroup::write_at(v2.as_fd(), MEMORY.v2_file, limit),
            );
        }
        let mut enter = Vec::new();
        let v1_memory = self.v1_memory.as_ref().filter(|_| !self.v2_memory);
        if let (Some(parent), Some(limit)) = (v1_memory, &limit) {
            let entered = child(parent.as_fd(), &name).and_then(|directory| {
                cgroup::write_at(directory.as_fd(), MEMORY.v1_file, limit)?;
                let flags = OFlags::WRONLY | OFlags::CLOEXEC;
                enter.push(openat(&directory, "cgroup.procs", flags, Mode::empty())?);
                Ok(())
            });
            complain(MEMORY.v1_file, entered);
        }
        Cage { name, v2, enter }
    }

    /// Removes the directories of a family that is gone. What stays goes with the sandbox.
    pub(super) fn remove(&self, cage: &mut Cage) {
        let cage = std::mem::take(cage);
        if cage.name.is_empty() {
            return;
        }
        let killed = self.accounts.killed_in(&cage.name);
        let unlink = |parent| unlinkat(parent, &cage.name, AtFlags::REMOVEDIR);
        let _ = self.v2.as_ref().map(unlink);
        if self.v1_memory.as_ref().map(unlink) == Some(Ok(())) {
            self.accounts.bury(killed);
        }
    }
}

impl Cage {
    /// Kills all of the family that is left, and tells whether anything was.
    ///
    /// Returns `true` once every process of the family is gone, so that nobody writes into its
    /// memory any more. `living` are the other families' workers. Never blocks: call it again.
    pub(super) fn clear(&self, living: &[Pid]) -> bool {
        let Some(v2) = self.v2.as_ref().map(AsFd::as_fd) else {
            return processes::kill_strays(living) == 0;
        };
        let killed = cgroup::write_at(v2, "cgroup.kill", "1");
        if killed.is_err() && processes::kill_strays(living) > 0 {
            return false;
        }
        // A directory that cannot be read is gone, and with it whatever was in it.
        cgroup::read_at(v2, "cgroup.events").map_or(true, |events| {
            events.lines().any(|line| line == "populated 0")
        })
    }
}

/// Makes and opens a directory of the sandbox's cgroup.
fn child(parent: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(parent, name, flags, Mode::empty())?)
}

/// Hands the memory controller down to the families. A v2 cgroup that does so may hold no process
/// itself, so init moves aside first.
fn pass_memory_on(v2: BorrowedFd<'_>) -> io::Result<()> {
    let own = child(v2, "init")?;
    cgroup::write_at(own.as_fd(), "cgroup.procs", "0")?;
    cgroup::write_at(v2, "cgroup.subtree_control", "+memory")
}

/// Says on init's log what could not be done and is not worth failing for.
fn complain(what: &str, result: io::Result<()>) {
    if let Err(error) = result {
        eprintln!("sandbox init: {what}: {error}");
    }
}

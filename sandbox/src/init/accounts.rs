//! How often the kernel's limits have held: read from the sandbox's cgroups, v1 or v2, by init,
//! which has them open. What cannot be read is left out.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Dir, FileType};

use super::seats::Seats;
use crate::cgroup::{V2, read_at};
use crate::{KernelLimit, KernelLimitKind, SandboxSpec};

/// Where one limit's figures stand.
struct Account {
    kind: KernelLimitKind,
    figures: Figures,
    limit: u64,
    directory: OwnedFd,
    /// Of v1 the counts of a worker's own cgroup are not in its parent's.
    v1: bool,
}

/// The limits of one sandbox.
#[derive(Default)]
pub(super) struct Accounts {
    all: Vec<Account>,
    /// The instances that the workers share.
    pub(super) seats: Option<Seats>,
    /// Kills for want of memory in v1 cgroups that were removed.
    buried: Cell<u64>,
}

impl Accounts {
    /// Finds the cgroup that keeps each limit of `spec`. Without a descriptor for it the limit is
    /// left out.
    ///
    /// # Errors
    /// Without memory or a descriptor for the file that workers share.
    pub(super) fn new(
        spec: &SandboxSpec,
        directories: &[(String, OwnedFd)],
    ) -> io::Result<Accounts> {
        let of_workers = spec.workers.iter().map(|worker| worker.memory_limit_bytes);
        let of_workers = of_workers.flatten().reduce(u64::saturating_add);
        let memory = spec.memory_limit_bytes.or(of_workers);
        let limits = [
            (KernelLimitKind::Memory, MEMORY, memory),
            (KernelLimitKind::Pids, PIDS, spec.pids_limit),
            (KernelLimitKind::Cpu, CPU, spec.cpu_limit_millicores),
        ];
        let account = |(kind, figures, limit): (KernelLimitKind, Figures, Option<u64>)| {
            let has_it = |(name, directory): &&(String, OwnedFd)| {
                name == V2 && read_at(directory.as_fd(), figures.v2_limit).is_ok()
            };
            let v2 = directories.iter().find(has_it);
            let v1 = || directories.iter().find(|(name, _)| name == figures.name);
            let (name, directory) = v2.or_else(v1)?;
            Some(Account {
                v1: name != V2,
                directory: directory.try_clone().ok()?,
                limit: limit?,
                kind,
                figures,
            })
        };
        let workers = spec.workers.len();
        let seats = spec
            .instances_limit
            .map(|limit| Seats::make(limit, workers));
        Ok(Accounts {
            seats: seats.transpose()?,
            all: limits.into_iter().filter_map(account).collect(),
            buried: Cell::default(),
        })
    }

    /// How they stand. A few short reads; blocks for nothing.
    pub(super) fn look(&self) -> Vec<KernelLimit> {
        let state = |account: &Account| {
            let figures = &account.figures;
            let directory = account.directory.as_fd();
            let mut hits = hits(directory, "", figures, account.v1)?;
            if account.v1 && account.kind == KernelLimitKind::Memory {
                hits += self.buried.get() + of_children(directory, figures);
            }
            let (now, _) = figures.files(account.v1);
            Some(KernelLimit {
                kind: account.kind,
                limit: account.limit,
                now: now.and_then(|file| number(directory, file)),
                hits,
            })
        };
        let seats = self.seats.iter().map(Seats::look);
        self.all.iter().filter_map(state).chain(seats).collect()
    }

    /// What the v1 cgroup of a worker has counted.
    pub(super) fn killed_in(&self, name: &str) -> u64 {
        let of_v1 = |account: &&Account| account.v1 && account.kind == KernelLimitKind::Memory;
        let account = self.all.iter().find(of_v1);
        let below = format!("{name}/");
        let killed = account.and_then(|a| hits(a.directory.as_fd(), &below, &a.figures, true));
        killed.unwrap_or(0)
    }

    /// A worker's v1 cgroup was removed: what it has counted outlives it.
    pub(super) fn bury(&self, killed: u64) {
        self.buried.set(self.buried.get() + killed);
    }
}

/// The files of a controller.
struct Figures {
    /// Of the hierarchy of v1.
    name: &'static str,
    /// There if the v2 directory has the controller.
    v2_limit: &'static str,
    /// What is used, and what has happened, in v1 and in v2.
    v1: (Option<&'static str>, &'static str),
    v2: (Option<&'static str>, &'static str),
    /// The line that counts.
    line: &'static str,
}

const MEMORY: Figures = Figures {
    name: "memory",
    v2_limit: "memory.max",
    v1: (Some("memory.usage_in_bytes"), "memory.oom_control"),
    v2: (Some("memory.current"), "memory.events"),
    line: "oom_kill",
};
const PIDS: Figures = Figures {
    name: "pids",
    v2_limit: "pids.max",
    v1: (Some("pids.current"), "pids.events"),
    v2: (Some("pids.current"), "pids.events"),
    line: "max",
};
const CPU: Figures = Figures {
    name: "cpu",
    v2_limit: "cpu.max",
    v1: (None, "cpu.stat"),
    v2: (None, "cpu.stat"),
    line: "nr_throttled",
};

impl Figures {
    fn files(&self, v1: bool) -> (Option<&'static str>, &'static str) {
        if v1 { self.v1 } else { self.v2 }
    }
}

/// The count of the cgroup at `directory` or of one `below` it.
fn hits(directory: BorrowedFd<'_>, below: &str, figures: &Figures, v1: bool) -> Option<u64> {
    let (_, file) = figures.files(v1);
    let text = read_at(directory, &format!("{below}{file}")).ok()?;
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    let (_, count) = lines.find(|(name, _)| *name == figures.line)?;
    count.trim().parse().ok()
}

/// The counts of the living workers' own cgroups in v1.
fn of_children(directory: BorrowedFd<'_>, figures: &Figures) -> u64 {
    let Ok(entries) = Dir::read_from(directory) else {
        return 0;
    };
    let children = entries.filter_map(Result::ok).filter(|entry| {
        let name = entry.file_name().to_bytes();
        entry.file_type() == FileType::Directory && !name.starts_with(b".")
    });
    children
        .filter_map(|entry| {
            let below = format!("{}/", entry.file_name().to_str().ok()?);
            hits(directory, &below, figures, true)
        })
        .sum()
}

fn number(directory: BorrowedFd<'_>, file: &str) -> Option<u64> {
    read_at(directory, file).ok()?.trim().parse().ok()
}

//! What the agent itself gives up at its start, once its launcher keeps the rights that sandboxes
//! need.
//!
//! The kernel takes capabilities and files from a thread and from those that it starts later, so
//! that is done while the process has a single one. A filter of system calls can be put on all of
//! them: it comes once the agent serves, and need not allow what only a start calls.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags, accessat, open};
use seccompiler::sock_filter;

use sandpipe::wait::{Loop, WAITER_VARIABLE, WaiterKind};

use super::agent_calls::Needs;
use super::{FILTER_REMEDY, LANDLOCK_REMEDY, PRIVILEGES, agent_calls, agent_files};
use super::{in_child, item, must_fail, try_privileges};
use crate::sys::{self, GiveUp};
use crate::{IsolationItem, launcher};

const LAUNCHER: &str = "agent: launcher";
const PRIVILEGES_OF_AGENT: &str = "agent: no privileges";
const FILES_OF_AGENT: &str = "agent: file rules";
const CALLS_OF_AGENT: &str = "agent: system call filter";

/// What an agent needs, and keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentRights {
    /// Its run directory, absolute; it is there already. Read and written.
    pub run_dir: PathBuf,
    /// Its data directory, absolute; it is there already. Read and written.
    pub data_dir: PathBuf,
    /// What it may read beside these and the system's own files; `None` = whatever its user may.
    pub read: Option<Vec<PathBuf>>,
    /// Whether it makes TCP connections of its own.
    pub connects: bool,
}

/// Starts the launcher and gives up what the agent does not need, for good; what could not be given
/// up is named with its reason. Call it before any other thread is started, once.
///
/// Makes some hundred system calls and some processes that end at once: about 10 ms. If the caller
/// dies inside, its launcher ends as well.
#[must_use]
pub fn give_up_rights(rights: &AgentRights) -> Vec<IsolationItem> {
    let started = single_thread().and_then(|()| launcher::start(&rights.run_dir));
    if let Err(error) = started {
        let without = "what makes sandboxes could not be split off";
        let others = [PRIVILEGES_OF_AGENT, FILES_OF_AGENT];
        let others = others.map(|name| IsolationItem::off(name, without, ""));
        let remedy = "look at the limits of processes and descriptors";
        let first = IsolationItem::off(LAUNCHER, error, remedy);
        return [first].into_iter().chain(others).collect();
    }
    let how = "sandboxes are made by a process of its own";
    let mut report = vec![IsolationItem::on(LAUNCHER, how)];
    let given_up = Tried::new(rights, &mut report);
    if let Err((part, error)) = sys::give_up(&given_up.give_up()) {
        // Each part has just worked in a child; the first that does not here ends the rest.
        let reason = format!("{part}: {error}");
        report.push(IsolationItem::off("agent: everything at once", reason, ""));
    }
    report
}

/// The parts, each tried in a child that ended at once.
struct Tried {
    privileges: bool,
    ruleset: Option<OwnedFd>,
}

impl Tried {
    fn new(rights: &AgentRights, report: &mut Vec<IsolationItem>) -> Tried {
        let privileges = try_privileges().and_then(|()| try_directories(rights));
        let privileged = privileges.is_ok();
        report.push(item(
            PRIVILEGES_OF_AGENT,
            privileges.map(|()| PRIVILEGES.into()),
            "give the run and the data directory to the agent's own user",
        ));
        let (ruleset, files) = match try_files(rights) {
            Ok((ruleset, how)) => (Some(ruleset), Ok(how)),
            Err(error) => (None, Err(error)),
        };
        report.push(item(FILES_OF_AGENT, files, LANDLOCK_REMEDY));
        Tried {
            privileges: privileged,
            ruleset,
        }
    }

    fn give_up(&self) -> GiveUp<'_> {
        GiveUp {
            privileges: self.privileges,
            ruleset: self.ruleset.as_ref().map(AsRawFd::as_raw_fd),
            ..GiveUp::default()
        }
    }
}

/// Root writes everywhere by a capability; without it only where it may as a user like others.
fn try_directories(rights: &AgentRights) -> io::Result<()> {
    let give_up = GiveUp {
        privileges: true,
        ..GiveUp::default()
    };
    for directory in [&rights.run_dir, &rights.data_dir] {
        let path = CString::new(directory.as_os_str().as_bytes())?;
        let writable = in_child(&give_up, &|| {
            let access = Access::WRITE_OK | Access::EXEC_OK;
            Ok(accessat(CWD, &path, access, AtFlags::EACCESS)?)
        });
        writable.map_err(|error| {
            let words = format!("{} without them: {error}", directory.display());
            io::Error::new(error.kind(), words)
        })?;
    }
    Ok(())
}

fn try_files(rights: &AgentRights) -> io::Result<(OwnedFd, String)> {
    let version = sys::landlock_version()?;
    let ruleset = agent_files::ruleset(rights)?;
    let give_up = GiveUp {
        privileges: true,
        ruleset: Some(ruleset.as_raw_fd()),
        ..GiveUp::default()
    };
    // Every process may write that of its own, but for the rules.
    let own = c"/proc/self/comm";
    in_child(&give_up, &|| {
        must_fail(
            open(own, OFlags::WRONLY, Mode::empty())
                .map_or_else(|error| Err(error.into()), |_| Ok(())),
        )
    })?;
    Ok((ruleset, agent_files::describe(rights, version)))
}

/// Bounds the system calls of all threads of an agent that serves, for good; says how, or why not.
/// `connects`: it has connections over a network of its own. Some system calls and one short
/// process.
#[must_use]
pub fn bound_calls(connects: bool) -> IsolationItem {
    let bounded = || -> io::Result<String> {
        if launcher::own().is_none() {
            return Err(io::Error::other("without a launcher the agent needs them"));
        }
        let needs = Needs {
            ring: waits_by_ring(),
            network: connects,
        };
        // Finds the mapped clock, by calls that are not allowed later.
        let _ = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let filters = agent_calls::filters(needs)?;
        try_calls(&filters)?;
        // Nobody could wait for an ended launcher any more.
        sys::ignore_children()?;
        let give_up = GiveUp {
            filters: &filters,
            all_threads: true,
            ..GiveUp::default()
        };
        sys::give_up(&give_up).map_err(|(_, error)| error)?;
        Ok(agent_calls::describe(needs))
    };
    item(CALLS_OF_AGENT, bounded(), FILTER_REMEDY)
}

/// The system calls of an agent whose bus threads wait by rings, or not, and that connects over a
/// network, or not. For the tests only.
#[must_use]
pub fn agent_system_calls(ring: bool, network: bool) -> Vec<i64> {
    agent_calls::calls(Needs { ring, network }).collect()
}

/// Each part proved by use, for the doctor.
pub(crate) fn probes() -> Vec<(&'static str, io::Result<String>, &'static str)> {
    let rights = AgentRights {
        run_dir: "/tmp".into(),
        data_dir: "/tmp".into(),
        read: None,
        connects: false,
    };
    let calls = || -> io::Result<String> {
        let needs = Needs {
            ring: waits_by_ring(),
            network: false,
        };
        try_calls(&agent_calls::filters(needs)?)?;
        Ok(agent_calls::describe(needs))
    };
    vec![
        (
            FILES_OF_AGENT,
            try_files(&rights).map(|(_, how)| how),
            LANDLOCK_REMEDY,
        ),
        (CALLS_OF_AGENT, calls(), FILTER_REMEDY),
    ]
}

fn try_calls(filters: &[Vec<sock_filter>]) -> io::Result<()> {
    super::try_filters(filters)?;
    let give_up = GiveUp {
        privileges: true,
        filters,
        ..GiveUp::default()
    };
    in_child(&give_up, &sys::read_clock)
}

/// As [`WaiterKind::probe`] chooses.
fn waits_by_ring() -> bool {
    match std::env::var(WAITER_VARIABLE) {
        Ok(name) => name == WaiterKind::IoUring.name(),
        Err(_) => WaiterKind::IoUring.open(Loop::Own).is_ok(),
    }
}

fn single_thread() -> io::Result<()> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads == 1 {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{threads} threads run already, and would keep their rights"
    )))
}

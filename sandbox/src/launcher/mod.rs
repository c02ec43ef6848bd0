//! The launcher: a small process that keeps the rights that its agent gives up.
//!
//! A filter of system calls, Landlock and no_new_privs are inherited, so who has entered them
//! cannot start a sandbox. The agent therefore starts the launcher first, and asks it from then on
//! to make sandboxes and to remove what dead ones left. It is the parent of the inits that it made:
//! a thread for each waits until it can be reaped. It ends when the agent does, by whatever death,
//! since their socket then hangs up; the inits live on.
//!
//! It does not trust its agent to ask for anything else: see [`server`].

mod client;
mod server;
mod told;

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use serde::{Deserialize, Serialize};

use crate::sys::{self, GiveUp, Plan};

pub(crate) use client::Launcher;
pub use server::launcher_main;

/// The first argument of a process that is to be a launcher; the second is its run directory.
const ARGUMENT: &str = "sandbox-launcher";
/// Where it finds the socket to its agent.
const SOCKET: RawFd = 3;

/// What the agent asks; beside it the socket that waits for the answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
enum Request {
    /// Make a sandbox, if its directory is free; its spec lies in a memfd beside this.
    Make,
    /// Remove what is left of a sandbox, if it is dead.
    CleanUp {
        /// `RUN/APP`.
        path: PathBuf,
    },
}

/// What the launcher answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
enum Reply {
    /// Init listens; its pidfd lies beside this.
    Made,
    /// Somebody lives there, or is being started.
    Busy,
    /// The directory was removed meanwhile.
    Replaced,
    /// What was left is gone, or somebody lives there.
    CleanedUp { removed: bool },
    /// It did not work.
    Failed { error: told::Told },
}

/// The launcher of this process, once it has one. A process has one set of rights, so one of these.
static OWN: OnceLock<Launcher> = OnceLock::new();

/// Who makes sandboxes for this process; itself if `None`.
pub(crate) fn own() -> Option<&'static Launcher> {
    OWN.get()
}

/// Whether this process was started to be a launcher.
#[must_use]
pub fn is_launcher() -> bool {
    std::env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == ARGUMENT)
}

/// Starts a launcher for sandboxes below `run_dir`; this process makes and removes them through it
/// from now on.
pub(crate) fn start(run_dir: &Path) -> io::Result<()> {
    if OWN.get().is_some() {
        return Ok(());
    }
    let (ours, its) = pair()?;
    let null = File::open("/dev/null")?;
    let exe = File::open("/proc/self/exe")?;
    let stderr = io::stderr();
    let text = |bytes: &[u8]| CString::new(bytes).map_err(io::Error::from);
    let argv = [
        text(b"sandpipe")?,
        text(ARGUMENT.as_bytes())?,
        text(run_dir.as_os_str().as_bytes())?,
    ];
    let env = std::env::vars_os().map(|(name, value)| {
        let pair = [name.as_bytes(), b"=", value.as_bytes()].concat();
        text(&pair)
    });
    let env = env.collect::<io::Result<Vec<CString>>>()?;
    let (_, pidfd) = sys::spawn(&Plan {
        namespaces: 0,
        user_map: None,
        cgroup: None,
        enter: &[],
        program: Some(exe.as_fd()),
        argv: &argv,
        env: &env,
        fds: &[null.as_fd(), null.as_fd(), stderr.as_fd(), its.as_fd()],
        working_dir: Some(c"/"),
        give_up: GiveUp::default(),
        oom_score_adj: None,
        dies_with_parent: false,
    })
    .map_err(|error| io::Error::other(error.to_string()))?;
    let _ = OWN.set(Launcher::new(ours, pidfd));
    Ok(())
}

/// Blocks until this process's launcher has ended; returns at once if there is none. From then on
/// no sandbox can be made or removed by this process; those that run go on.
pub fn wait_for_launchers_end() {
    let Some(launcher) = own() else { return };
    let pidfd = launcher.pidfd();
    let ended = || poll(&mut [PollFd::new(pidfd, PollFlags::IN)], None);
    while ended().is_err() {}
    // Refused by the filter of system calls, under which ended children are reaped by themselves.
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let _ = waitid(WaitId::PidFd(pidfd.as_fd()), options);
}

/// Waits until a child has ended and takes its exit status away.
fn reap(pidfd: &OwnedFd) {
    let wait = || waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
    let _ = rustix::io::retry_on_intr(wait);
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    Ok(socketpair(family, kind, SocketFlags::CLOEXEC, None)?)
}

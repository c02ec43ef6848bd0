//! The sandbox's init: one thread that waits, and does a little when something happens.

mod accounts;
mod backoff;
mod claim;
mod events;
mod family;
mod listener;
mod log_file;
mod output;
mod participant;
mod processes;
mod root;
mod seats;
mod setup;
mod shutdown;
mod supervisor;
mod unloaded;
mod worker;

use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use crate::boot::{self, Boot};
use crate::sys;

pub(crate) use root::try_root;
pub(crate) use setup::private_proc;

/// The first argument of a process that is to be a sandbox's init.
const ARGUMENT: &str = "sandbox-init";

/// Whether this process was started to be a sandbox's init.
#[must_use]
pub fn is_sandbox_init() -> bool {
    std::env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == ARGUMENT)
}

/// Is a sandbox's init until the sandbox ends; the `main` of a program that creates sandboxes
/// calls it before anything else if [`is_sandbox_init`].
///
/// It takes over the descriptors that the agent left at fixed numbers, so started by hand it says
/// so and fails. If it dies, the kernel kills every process of its pid namespace.
#[must_use]
pub fn sandbox_init_main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sandbox init: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What the agent left for init.
struct Inherited {
    socket: OwnedFd,
    lock: OwnedFd,
    cgroups: Vec<(String, OwnedFd)>,
    boot: Boot,
}

fn run() -> io::Result<()> {
    let by_hand = || io::Error::other("only an agent starts it: see `sandpipe run --help`");
    let ready = sys::inherited(boot::READY).ok_or_else(by_hand)?;
    let supervisor = inherit().and_then(|inherited| {
        let inherited = inherited.ok_or_else(by_hand)?;
        supervisor::Supervisor::new(inherited)
    });
    match supervisor {
        Ok(supervisor) => {
            // The agent may be dead by now; the next one does not wait for this word.
            let _ = rustix::io::write(&ready, boot::READY_WORD.as_bytes());
            drop(ready);
            supervisor.run()
        }
        Err(error) => {
            let _ = rustix::io::write(&ready, error.to_string().as_bytes());
            Err(error)
        }
    }
}

/// Takes the inherited descriptors before anything else can be opened at their numbers.
fn inherit() -> io::Result<Option<Inherited>> {
    let [Some(socket), Some(lock), Some(memfd)] =
        [boot::SOCKET, boot::LOCK, boot::BOOT].map(sys::inherited)
    else {
        return Ok(None);
    };
    let boot = Boot::from_memfd(memfd)?;
    let mut cgroups = Vec::new();
    for (number, name) in (boot::CGROUPS..).zip(&boot.cgroups) {
        let directory = sys::inherited(number);
        cgroups.extend(directory.map(|directory| (name.clone(), directory)));
    }
    Ok(Some(Inherited {
        socket,
        lock,
        cgroups,
        boot,
    }))
}

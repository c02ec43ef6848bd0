//! Shared pages, forks, scheduling, and counts of page faults and system calls: the harness's only
//! unsafe code.

mod calls;
mod first;
mod pages;
mod words;

use std::io;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, waitpid};

use crate::error::BenchError;

pub use calls::{Stretch, count_calls};
pub use first::First;
pub use pages::{own_private_pages, page_faults};
pub use words::SharedWords;

/// A forked child; killed and reaped when it goes out of scope.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    reaped: bool,
}

impl Child {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits (blocks) until it has ended; `None` when a signal ended it.
    ///
    /// # Errors
    /// The kernel's answer to waitpid.
    pub fn wait(mut self) -> Result<Option<i32>, BenchError> {
        self.reaped = true;
        let status = waitpid(Some(self.pid), WaitOptions::empty())
            .map_err(|e| BenchError::os("waitpid", e.into()))?;
        Ok(status.and_then(|(_, status): (Pid, WaitStatus)| status.exit_status()))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            // Both fail only if it is gone already, which is what is wanted.
            let _ = kill_process(self.pid, Signal::KILL);
            let _ = waitpid(Some(self.pid), WaitOptions::empty());
        }
    }
}

/// Forks; the child runs `body`, ends with its result as exit status (101 after a panic) and
/// never returns into the caller's frames.
///
/// # Errors
/// [`BenchError::Threads`] if this process has a second thread (a lock that it held would stay
/// locked in the child for ever), or the kernel's answer to fork.
pub fn fork(body: impl FnOnce() -> i32) -> Result<Child, BenchError> {
    let threads = thread_count();
    if threads != 1 {
        return Err(BenchError::Threads { threads });
    }
    fork_unchecked(body)
}

/// [`fork`] without the look at the thread count, whose cost a probe of fork itself must not see.
/// The caller has called [`fork`] or [`thread_count`] before and started no thread since.
///
/// # Errors
/// The kernel's answer to fork.
pub(crate) fn fork_unchecked(body: impl FnOnce() -> i32) -> Result<Child, BenchError> {
    // SAFETY: the process has one thread (checked by `fork`, promised by other callers in this
    // crate), so the child is a whole copy of it: no lock is held by a thread that is missing.
    match unsafe { libc::fork() } {
        -1 => Err(BenchError::os("fork", io::Error::last_os_error())),
        0 => {
            let status = catch_unwind(AssertUnwindSafe(body)).unwrap_or(101);
            // SAFETY: ends the child at once; no destructor of the parent's objects may run here.
            unsafe { libc::_exit(status) }
        }
        pid => {
            let pid = Pid::from_raw(pid).expect("fork returns a positive pid to the parent");
            Ok(Child { pid, reaped: false })
        }
    }
}

/// Makes a command's process get SIGTERM when this one dies, so that it can clean up.
pub fn terminate_with_parent(command: &mut Command) {
    let parent = rustix::process::getpid();
    // SAFETY: between fork and exec the closure makes two system calls and nothing else.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
            // The parent may have died before the call.
            if rustix::process::getppid() == Some(parent) {
                Ok(())
            } else {
                Err(io::ErrorKind::Interrupted.into())
            }
        });
    }
}

/// Number of threads of this process (1 if /proc cannot be read).
#[must_use]
pub fn thread_count() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

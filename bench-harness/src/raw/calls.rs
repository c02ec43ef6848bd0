//! Counts the system calls of a stretch of a child's code, by tracing it.

use std::io;

use rustix::process::{Pid, getpid};

use super::Child;
use crate::error::BenchError;

/// The child's side: it marks the beginning and the end of the stretch.
#[derive(Debug)]
pub struct Stretch {
    pid: libc::pid_t,
}

impl Stretch {
    /// Lets the parent trace this process, which has one thread.
    ///
    /// # Errors
    /// If tracing is refused.
    pub fn new() -> Result<Stretch, BenchError> {
        // SAFETY: asks to be traced by the parent; no memory is involved.
        match unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) } {
            -1 => Err(BenchError::os("ptrace", io::Error::last_os_error())),
            _ => Ok(Stretch { pid: raw(getpid()) }),
        }
    }

    /// A mark: stops until the parent has seen it. One system call, which is not counted.
    pub fn mark(&self) {
        // SAFETY: stops this process by a signal; no memory is involved.
        unsafe { libc::syscall(libc::SYS_kill, self.pid, libc::SIGSTOP) };
    }
}

/// The system calls of the child between its first mark and its second; it runs on untraced.
///
/// # Errors
/// If the child ends before its second mark.
pub fn count_calls(child: &Child) -> Result<u64, BenchError> {
    let pid = raw(child.pid());
    next_stop(pid)?;
    // SAFETY: a ptrace request without pointers, on our own stopped child.
    unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, pid, 0, libc::PTRACE_O_TRACESYSGOOD) };
    let mut stops = 0_u64;
    loop {
        resume(libc::PTRACE_SYSCALL, pid)?;
        match next_stop(pid)? {
            signal if signal == libc::SIGTRAP | 0x80 => stops += 1,
            libc::SIGSTOP => break,
            other => {
                let detail = format!("was stopped by signal {other}");
                return Err(BenchError::peer("the traced child", detail));
            }
        }
    }
    resume(libc::PTRACE_DETACH, pid)?;
    // Each call stops at its entry and at its exit; the second mark's own is taken off.
    Ok((stops / 2).saturating_sub(1))
}

fn resume(request: libc::c_uint, pid: libc::pid_t) -> Result<(), BenchError> {
    // SAFETY: resumes our own stopped child without a signal.
    match unsafe { libc::ptrace(request, pid, 0, 0) } {
        -1 => Err(BenchError::os("ptrace", io::Error::last_os_error())),
        _ => Ok(()),
    }
}

/// Waits until the child stops; the signal.
fn next_stop(pid: libc::pid_t) -> Result<libc::c_int, BenchError> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for one integer.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    if waited == -1 {
        return Err(BenchError::os("waitpid", io::Error::last_os_error()));
    }
    if !libc::WIFSTOPPED(status) {
        let detail = format!("ended with {status:#x}");
        return Err(BenchError::peer("the traced child", detail));
    }
    Ok(libc::WSTOPSIG(status))
}

fn raw(pid: Pid) -> libc::pid_t {
    pid.as_raw_nonzero().get()
}

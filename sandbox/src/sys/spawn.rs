//! clone3 into namespaces and a cgroup, then exec: what `std::process` cannot do.
//!
//! The child borrows the parent's memory on a stack of its own (`CLONE_VM | CLONE_VFORK`) until its
//! exec, so that starting a sandbox does not copy the page tables of a large agent: 1.5 ms against
//! 10 ms at 200 MiB. It therefore makes raw system calls only and allocates nothing.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::process::Pid;

use super::GiveUp;
use super::child::{FDS_MAX, Raw, STEPS, child_main, write_maps};

/// The child's stack until its exec; it needs some hundred bytes.
const STACK_BYTES: usize = 64 << 10;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;

/// The first arguments of clone3 (`struct clone_args` of Linux 5.7).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Who the child is in its own user namespace. Written before the exec, which would otherwise
/// take every capability from an unmapped user.
pub(crate) struct UserMap {
    pub(super) uid: CString,
    pub(super) gid: CString,
}

impl UserMap {
    /// The caller becomes root inside, and nobody else exists there.
    pub(crate) fn caller_as_root() -> UserMap {
        let line = |id: u32| CString::new(format!("0 {id} 1")).expect("digits hold no NUL");
        UserMap {
            uid: line(rustix::process::geteuid().as_raw()),
            gid: line(rustix::process::getegid().as_raw()),
        }
    }
}

/// What to start, and how.
pub(crate) struct Plan<'a> {
    /// Namespaces to make (`CLONE_NEW*`).
    pub(crate) namespaces: u64,
    /// With `CLONE_NEWUSER`: the maps to write.
    pub(crate) user_map: Option<&'a UserMap>,
    /// The v2 cgroup directory that the child is born in.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    /// Open `cgroup.procs` (or `tasks`) files of v1 cgroups that the child enters before its exec.
    pub(crate) enter: &'a [BorrowedFd<'a>],
    /// The program as an open file, or else `argv[0]` is its path.
    pub(crate) program: Option<BorrowedFd<'a>>,
    pub(crate) argv: &'a [CString],
    pub(crate) env: &'a [CString],
    /// Becomes the child's descriptors 0, 1, 2, …; every other one is closed.
    pub(crate) fds: &'a [BorrowedFd<'a>],
    pub(crate) working_dir: Option<&'a CStr>,
    /// What the child gives up, last before its exec.
    pub(crate) give_up: GiveUp<'a>,
    /// Written to the child's `oom_score_adj`.
    pub(crate) oom_score_adj: Option<&'a CStr>,
    /// The child is killed when the thread that started it ends.
    pub(crate) dies_with_parent: bool,
}

/// The step that failed between clone3 and exec, and why.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
pub(crate) struct SpawnError {
    pub(crate) step: &'static str,
    pub(crate) source: io::Error,
}

impl SpawnError {
    /// Whether clone3 or the namespaces that it made were refused, so that asking for less may
    /// help.
    pub(crate) fn of_clone(&self) -> bool {
        let no_descriptor = [libc::EMFILE, libc::ENFILE].map(Some);
        let refused = !no_descriptor.contains(&self.source.raw_os_error());
        refused && (self.step == STEPS[0] || self.step == STEPS[2])
    }
}

/// Starts a process in its own session; returns once it has executed its program.
///
/// Blocks the calling thread until then (about 1 ms). If the caller is killed meanwhile, the child
/// goes on or fails by itself.
///
/// # Errors
/// The step that failed; no process is left then.
pub(crate) fn spawn(plan: &Plan<'_>) -> Result<(Pid, OwnedFd), SpawnError> {
    let clone_error = |source: io::Error| SpawnError {
        step: STEPS[0],
        source,
    };
    assert!(
        plan.fds.len() <= FDS_MAX,
        "a child is given at most {FDS_MAX} descriptors"
    );
    let argv = pointers(plan.argv);
    let env = pointers(plan.env);
    let (errors, low_pipe) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|error| clone_error(error.into()))?;
    // What the child still needs must lie above the numbers that it is about to overwrite.
    let error_pipe = above_the_childs(low_pipe.as_fd()).map_err(clone_error)?;
    drop(low_pipe);
    let program = plan
        .program
        .map(above_the_childs)
        .transpose()
        .map_err(clone_error)?;
    let raw = Raw {
        plan,
        argv: argv.as_ptr(),
        env: env.as_ptr(),
        program: program.as_ref().map(AsRawFd::as_raw_fd),
        error_pipe: error_pipe.as_raw_fd(),
    };
    // A handler of the parent must not run in the child: it would work on the parent's memory.
    let mask = super::block_all_signals().map_err(clone_error)?;
    let started = clone_on_own_stack(&raw).map_err(clone_error)?;
    drop(mask);
    drop(error_pipe);
    let mut report = [0u8; 8];
    // An interrupted read must not pass for a child that has executed.
    let read = rustix::io::retry_on_intr(|| rustix::io::read(&errors, &mut report)).unwrap_or(0);
    if read == report.len() {
        let word =
            |i: usize| i32::from_ne_bytes([report[i], report[i + 1], report[i + 2], report[i + 3]]);
        reap(&started.1);
        let step = usize::try_from(word(0)).ok().and_then(|i| STEPS.get(i));
        return Err(SpawnError {
            step: step.copied().unwrap_or("exec"),
            source: io::Error::from_raw_os_error(word(4)),
        });
    }
    Ok(started)
}

/// Runs `body` in a child with a copy of this process's memory, made with `flags` (`CLONE_NEW*`),
/// and returns its error, if any. For probes: a namespace is proved by working in it.
///
/// `body` may only make system calls: other threads' locks are held for ever in the copy.
///
/// # Errors
/// What clone3 or `body` returned.
pub(crate) fn run_in_child(
    flags: u64,
    map: Option<&UserMap>,
    cgroup: Option<BorrowedFd<'_>>,
    body: &dyn Fn() -> io::Result<()>,
) -> io::Result<()> {
    let mut pidfd: RawFd = -1;
    let mut args = clone_args(flags, cgroup, &mut pidfd);
    let mask = super::block_all_signals()?;
    // SAFETY: without CLONE_VM this is a fork: the child goes on with a copy of this stack, makes
    // system calls and leaves by _exit, so no destructor and no atexit handler runs twice.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    if pid == 0 {
        let done = map.map_or(Ok(()), write_maps).and_then(|()| body());
        let code = done
            .err()
            .map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
        // SAFETY: leaves the child at once.
        unsafe { libc::_exit(code.clamp(0, 255)) };
    }
    let error = io::Error::last_os_error();
    drop(mask);
    if pid < 0 {
        return Err(error);
    }
    // SAFETY: clone3 succeeded, so the kernel has stored a new descriptor here.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    match reap(&pidfd) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code)),
        None => Err(io::Error::other("the child was killed")),
    }
}

/// Waits for the process and takes its exit code away; `None` if a signal killed it.
fn reap(pidfd: &OwnedFd) -> Option<i32> {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let wait = || waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
    let status = rustix::io::retry_on_intr(wait).ok()??;
    status.exit_status()
}

fn clone_args(flags: u64, cgroup: Option<BorrowedFd<'_>>, pidfd: &mut RawFd) -> CloneArgs {
    let mut args = CloneArgs {
        flags: flags | libc::CLONE_PIDFD as u64 | libc::CLONE_VFORK as u64,
        pidfd: std::ptr::from_mut(pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(directory) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = directory.as_raw_fd() as u64;
    }
    args
}

fn above_the_childs(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let copied = rustix::io::fcntl_dupfd_cloexec(fd, FDS_MAX as RawFd);
    // The lowest allowed number is beyond the limit of descriptors.
    let want = |error| {
        if error == Errno::INVAL {
            Errno::MFILE
        } else {
            error
        }
    };
    Ok(copied.map_err(want)?)
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    let ends = [std::ptr::null()];
    strings
        .iter()
        .map(|string| string.as_ptr())
        .chain(ends)
        .collect()
}

#[cfg(target_arch = "x86_64")]
fn clone_on_own_stack(raw: &Raw<'_>) -> io::Result<(Pid, OwnedFd)> {
    let mut stack = vec![0u8; STACK_BYTES];
    let base = (stack.as_mut_ptr() as u64).next_multiple_of(16);
    let mut pidfd: RawFd = -1;
    let mut args = clone_args(raw.plan.namespaces, raw.plan.cgroup, &mut pidfd);
    args.flags |= libc::CLONE_VM as u64 | CLONE_CLEAR_SIGHAND;
    args.stack = base;
    args.stack_size = (STACK_BYTES - 16) as u64 & !15;
    let result: i64;
    // SAFETY: the parent (CLONE_VFORK) sleeps until the child has executed or left, so `raw`,
    // `args` and `stack` outlive it. The child starts on its own 16-aligned stack, calls
    // `child_main`, and never returns from it; the parent takes the jump. All signals are blocked
    // by the caller.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, {raw}",
            "call {main}",
            "ud2",
            "2:",
            raw = in(reg) std::ptr::from_ref(raw),
            main = in(reg) child_main as extern "C" fn(*const Raw<'_>) -> !,
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") &raw mut args,
            in("rsi") size_of::<CloneArgs>(),
            out("rcx") _,
            out("r11") _,
        );
    }
    drop(stack);
    if result < 0 {
        return Err(io::Error::from_raw_os_error((-result) as i32));
    }
    started(result, pidfd)
}

/// Elsewhere the child gets a copy of the memory: slower from a large process, else the same.
#[cfg(not(target_arch = "x86_64"))]
fn clone_on_own_stack(raw: &Raw<'_>) -> io::Result<(Pid, OwnedFd)> {
    let mut pidfd: RawFd = -1;
    let mut args = clone_args(raw.plan.namespaces, raw.plan.cgroup, &mut pidfd);
    args.flags |= CLONE_CLEAR_SIGHAND;
    // SAFETY: without CLONE_VM this is a fork; the child calls `child_main` and never returns.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    match result {
        0 => child_main(raw),
        ..0 => Err(io::Error::last_os_error()),
        pid => started(pid, pidfd),
    }
}

fn started(pid: i64, pidfd: RawFd) -> io::Result<(Pid, OwnedFd)> {
    // SAFETY: clone3 succeeded, so the kernel has stored a new descriptor here.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    Ok((pid.expect("clone3 returns a positive pid"), pidfd))
}

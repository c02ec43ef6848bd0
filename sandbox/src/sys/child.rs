//! The child between clone3 and exec: raw system calls only, nothing allocated, since it may
//! borrow the memory of a parent with many threads.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use super::give_up::{PARTS, give_up};
use super::spawn::{Plan, UserMap};

/// Descriptors that a child can be given.
pub(super) const FDS_MAX: usize = 32;

/// What can fail before the program runs; the child reports the index.
pub(super) const STEPS: [&str; 13] = [
    "clone3",
    "a new session",
    "the maps of the user namespace",
    "entering the v1 cgroups",
    "oom_score_adj",
    "the parent-death signal",
    "the working directory",
    "the inherited descriptors",
    "exec",
    PARTS[0],
    PARTS[1],
    PARTS[2],
    PARTS[3],
];

/// [`Plan`] as plain pointers, read by the child.
pub(super) struct Raw<'a> {
    pub(super) plan: &'a Plan<'a>,
    pub(super) argv: *const *const libc::c_char,
    pub(super) env: *const *const libc::c_char,
    pub(super) program: Option<RawFd>,
    pub(super) error_pipe: RawFd,
}

/// The child, from clone3 to exec. Raw system calls only.
pub(super) extern "C" fn child_main(raw: *const Raw<'_>) -> ! {
    // SAFETY: the parent keeps `raw` alive until this process has executed or left.
    let raw = unsafe { &*raw };
    let (step, error) = prepare_and_exec(raw);
    let mut report = [0u8; 8];
    report[..4].copy_from_slice(&step.to_ne_bytes());
    report[4..].copy_from_slice(&error.raw_os_error().unwrap_or(0).to_ne_bytes());
    // SAFETY: writes eight bytes of this stack, then leaves without touching the parent's state.
    unsafe {
        libc::write(raw.error_pipe, report.as_ptr().cast(), report.len());
        libc::_exit(127)
    }
}

fn prepare_and_exec(raw: &Raw<'_>) -> (i32, io::Error) {
    let plan = raw.plan;
    // SAFETY: takes no pointer.
    if unsafe { libc::setsid() } < 0 {
        return (1, io::Error::last_os_error());
    }
    if let Some(Err(error)) = plan.user_map.map(write_maps) {
        return (2, error);
    }
    for file in plan.enter {
        if let Err(error) = write_once(file.as_raw_fd(), b"0") {
            return (3, error);
        }
    }
    if let Some(Err(error)) = plan
        .oom_score_adj
        .map(|text| write_file(OOM_SCORE_ADJ, text))
    {
        return (4, error);
    }
    // SAFETY: takes plain numbers.
    let death = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    if plan.dies_with_parent && death < 0 {
        return (5, io::Error::last_os_error());
    }
    if !plan.dies_with_parent {
        // SAFETY: takes plain numbers.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, 0) };
    }
    if let Some(path) = plan.working_dir {
        // SAFETY: the path is a C string that the parent keeps alive.
        if unsafe { libc::chdir(path.as_ptr()) } < 0 {
            return (6, io::Error::last_os_error());
        }
    }
    // Before the descriptors are placed: the ruleset may lie at one of their numbers.
    if let Err((part, error)) = give_up(&plan.give_up) {
        let at = STEPS.iter().position(|step| *step == part);
        return (at.map_or(8, |at| at as i32), error);
    }
    if let Err(error) = place_descriptors(plan.fds) {
        return (7, error);
    }
    (8, exec(raw))
}

const OOM_SCORE_ADJ: &CStr = c"/proc/self/oom_score_adj";

/// Puts `fds` at 0, 1, 2, … by way of copies above all of them, so that none overwrites another;
/// the rest closes at the exec.
fn place_descriptors(fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut copies = [-1; FDS_MAX];
    let count = fds.len();
    for (copy, fd) in copies.iter_mut().zip(fds) {
        // SAFETY: duplicates an open descriptor.
        *copy = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, FDS_MAX) };
        if *copy < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    for (number, copy) in copies[..count].iter().enumerate() {
        // SAFETY: both are descriptors of this process's own table (no CLONE_FILES).
        if unsafe { libc::dup2(*copy, number as RawFd) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: marks everything else to be closed by the exec, and closes nothing yet.
    let marked = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            count,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if marked < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn exec(raw: &Raw<'_>) -> io::Error {
    let (program, path, flags) = match raw.program {
        Some(fd) => (fd, c"".as_ptr(), libc::AT_EMPTY_PATH),
        // SAFETY: argv holds at least the program's name.
        None => (libc::AT_FDCWD, unsafe { *raw.argv }, 0),
    };
    // SAFETY: the sets and actions are valid, argv and env end in null and live in the parent.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        // Rust ignores SIGPIPE, nohup SIGHUP, and so on: ignored stays ignored over an exec.
        let mut default: libc::sigaction = std::mem::zeroed();
        default.sa_sigaction = libc::SIG_DFL;
        for signal in [
            libc::SIGPIPE,
            libc::SIGCHLD,
            libc::SIGHUP,
            libc::SIGINT,
            libc::SIGQUIT,
        ] {
            libc::sigaction(signal, &raw const default, std::ptr::null_mut());
        }
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::syscall(libc::SYS_execveat, program, path, raw.argv, raw.env, flags);
    }
    io::Error::last_os_error()
}

pub(super) fn write_maps(map: &UserMap) -> io::Result<()> {
    write_file(c"/proc/self/uid_map", &map.uid)?;
    write_file(c"/proc/self/setgroups", c"deny")?;
    write_file(c"/proc/self/gid_map", &map.gid)
}

fn write_file(path: &CStr, text: &CStr) -> io::Result<()> {
    // SAFETY: the path is a C string.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let written = write_once(fd, text.to_bytes());
    // SAFETY: opened above, used by nobody else.
    unsafe { libc::close(fd) };
    written
}

fn write_once(fd: RawFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the bytes are valid for reads.
    let written = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
    if written < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

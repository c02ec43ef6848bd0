//! Fork, signals and the ends of processes: everything of the worker that is not safe Rust.
#![allow(
    unsafe_code,
    reason = "fork, signal handlers and inherited descriptors are outside Rust's rules"
)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use sandpipe::{Bell, Mapping, Memory};

/// Which side of a fork this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fork {
    /// The worker; the child's process id.
    Parent(i32),
    /// The child.
    Child,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Exited(i32),
    Signalled(i32),
}

/// Forks with the C library's handlers (its allocator needs them).
///
/// # Errors
/// The system's: too many processes, or no memory for the page tables.
pub fn fork() -> io::Result<Fork> {
    // SAFETY: the worker is single-threaded but for its waiter's thread (without io_uring), which
    // holds no lock that a child takes, so the child may go on with ordinary code; a runtime that
    // has made threads brings its own fork, or only uses what its language allows after one.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid)),
    }
}

/// Ends the process without exit handlers: those belong to the worker.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` runs nothing of this process any more.
    unsafe { libc::_exit(code) }
}

/// Takes over an inherited descriptor and keeps it from programs that the worker starts.
///
/// # Errors
/// The system's, if the descriptor is not open.
pub(crate) fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD on a number that may not be open fails with EBADF and changes nothing.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open and was given to this process for this purpose; nobody else
    // in it knows the number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes the lock of one byte of a file, or gives it back; whether that was done. Never waits. It
/// is this process's alone, and goes with it; closing any descriptor of the file in this process
/// gives it back.
pub(crate) fn lock_byte(file: &OwnedFd, at: u32, take: bool) -> bool {
    // SAFETY: all zeros is a valid flock, and the kernel only reads it.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    let kind = if take { libc::F_WRLCK } else { libc::F_UNLCK };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = libc::off_t::from(at);
    lock.l_len = 1;
    // SAFETY: the descriptor is open, and the lock outlives the call.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &raw const lock) == 0 }
}

/// How a child has ended, without reaping it; `None` while it lives. Its process id stays taken,
/// so that its process group can still be killed by that number.
pub(crate) fn ended(pid: i32) -> Option<Ended> {
    let id = WaitId::Pid(Pid::from_raw(pid)?);
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let status = match rustix::process::waitid(id, options) {
        Ok(status) => status?,
        // Somebody else in this process reaped it (a handler that waits for any child).
        Err(rustix::io::Errno::CHILD) => return Some(Ended::Exited(-1)),
        Err(_) => return None,
    };
    let signal = status.terminating_signal().map(Ended::Signalled);
    signal.or_else(|| status.exit_status().map(Ended::Exited))
}

/// Kills what is left of a dead child's process group, then lets its number go.
pub(crate) fn reap(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        // ESRCH: it left nobody behind, which is the rule.
        let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        // A zombie that were left would keep its slot: a handler without SA_RESTART interrupts.
        let reap = || rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED);
        let _ = rustix::io::retry_on_intr(reap);
    }
}

/// Kills a child at once.
pub(crate) fn kill(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

/// Makes a fresh child a process group of its own that does not outlive its worker.
pub(crate) fn bind_to_parent(parent: u32) {
    let _ = rustix::process::setpgid(None, None);
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    // The worker may have died before the line above.
    let now = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    if u32::try_from(now) != Ok(parent) {
        exit_now(0);
    }
}

static TERMINATE: AtomicBool = AtomicBool::new(false);
/// Whether the worker parks on its queue's bell.
static ON_BELL: AtomicBool = AtomicBool::new(false);
static WAKE: OnceLock<Wake> = OnceLock::new();

/// The words that SIGTERM moves, so that a sleep on them cannot miss it.
struct Wake {
    bell: Bell<Mapping>,
    nudges: Mapping,
}

/// Only atomic operations, so that it may interrupt anything. A sleep that has not begun yet finds
/// its word moved; one that has is interrupted by the signal itself.
extern "C" fn on_terminate(_signal: i32) {
    TERMINATE.store(true, Ordering::SeqCst);
    let Some(wake) = WAKE.get() else { return };
    nudge_word(&wake.nudges).fetch_add(1, Ordering::SeqCst);
    if ON_BELL.load(Ordering::SeqCst) {
        wake.bell.touch();
    }
}

/// The word of the worker's board on which it parks when it does not watch the bell.
pub(crate) fn nudge_word(board: &Mapping) -> &AtomicU64 {
    board.word(0)
}

/// Installs the handler of SIGTERM; once in a process. The other things that happen to a worker
/// are told by its waiter.
pub(crate) fn catch_terminate(bell: Bell<Mapping>, nudges: Mapping) {
    let _ = WAKE.set(Wake { bell, nudges });
    set_action(
        libc::SIGTERM,
        on_terminate as *const () as libc::sighandler_t,
    );
    // Ignored by whoever started us, it would reap our children before we know how they ended.
    set_action(libc::SIGCHLD, libc::SIG_DFL);
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set before anything reads it; the number is valid.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), std::ptr::null_mut());
    }
}

/// Back to the default: in an instance.
pub(crate) fn forget_terminate() {
    set_action(libc::SIGTERM, libc::SIG_DFL);
}

fn set_action(signal: i32, handler: libc::sighandler_t) {
    // SAFETY: the action is fully initialised (zeroed: no flags, an empty mask) and the handler is
    // SIG_DFL or `on_terminate`, which is async-signal-safe. SA_RESTART spares handlers' system
    // calls; a futex wait and an io_uring enter end with EINTR all the same.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(signal, &raw const action, std::ptr::null_mut());
    }
}

/// Whether SIGTERM has arrived; it stays so.
pub(crate) fn is_terminated() -> bool {
    TERMINATE.load(Ordering::SeqCst)
}

/// Tells the handler on which word the worker parks.
pub(crate) fn watch_bell(yes: bool) {
    ON_BELL.store(yes, Ordering::SeqCst);
}

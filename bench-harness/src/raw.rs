//! Shared pages and forks: the harness's only unsafe code.

use std::io;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, waitpid};

use crate::error::BenchError;

/// Words that a process shares with the children it forks.
///
/// Word `i` lies on its own pair of cache lines, so that two words never share one (the adjacent
/// line is fetched along by many CPUs). The pages are populated: a first touch costs microseconds
/// and would be measured instead of the hand-over.
#[derive(Debug)]
pub struct SharedWords {
    base: NonNull<u8>,
    len_bytes: usize,
    stride_bytes: usize,
    count: usize,
}

impl SharedWords {
    /// Maps `count` words, all zero, each on its own 128 bytes.
    ///
    /// # Errors
    /// The kernel's answer when the memory cannot be mapped.
    pub fn new(count: usize) -> Result<SharedWords, BenchError> {
        SharedWords::with_stride(count, 128)
    }

    /// Maps `count` words side by side, for results that nobody polls.
    ///
    /// # Errors
    /// The kernel's answer when the memory cannot be mapped.
    pub fn packed(count: usize) -> Result<SharedWords, BenchError> {
        SharedWords::with_stride(count, 8)
    }

    fn with_stride(count: usize, stride_bytes: usize) -> Result<SharedWords, BenchError> {
        let len_bytes = (count * stride_bytes).max(4096);
        // SAFETY: a fresh anonymous mapping at an address that the kernel chooses overlaps
        // nothing of ours.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            let source = io::Error::last_os_error();
            return Err(BenchError::os(
                format!("cannot map {len_bytes} shared bytes"),
                source,
            ));
        }
        let base = NonNull::new(base.cast()).expect("mmap without MAP_FIXED never returns page 0");
        Ok(SharedWords {
            base,
            len_bytes,
            stride_bytes,
            count,
        })
    }

    /// The 64-bit word `index`.
    ///
    /// # Panics
    /// If there is no such word.
    #[must_use]
    pub fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.count, "word {index} of {}", self.count);
        // SAFETY: inside the mapping (index < count, checked above), 8-byte aligned (the base is a
        // page, the stride a multiple of 8), alive as long as `self`; only atomics touch it.
        unsafe {
            self.base
                .add(index * self.stride_bytes)
                .cast::<AtomicU64>()
                .as_ref()
        }
    }

    /// The futex word `index`: the low half of the 64-bit word. Use an index for one kind only.
    ///
    /// # Panics
    /// If there is no such word.
    #[must_use]
    pub fn futex(&self, index: usize) -> &AtomicU32 {
        assert!(index < self.count, "word {index} of {}", self.count);
        // SAFETY: as in `word`; 4 bytes at an 8-byte boundary.
        unsafe {
            self.base
                .add(index * self.stride_bytes)
                .cast::<AtomicU32>()
                .as_ref()
        }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `with_stride`; references into it cannot outlive
        // `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len_bytes) };
    }
}

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

//! The futex system calls on the low half of a word, and the cheap full fence.
#![allow(
    unsafe_code,
    reason = "system calls on shared words, and one locked instruction"
)]

use core::sync::atomic::{AtomicU32, AtomicU64};
use core::time::Duration;
use std::io;

use rustix::io::Errno;
use rustix::thread::futex;

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// Somebody rang, or the kernel woke us for no reason: look again.
    Rung,
    /// The word had moved before we slept.
    Moved,
    /// A signal arrived.
    Interrupted,
    /// The time was up.
    TimedOut,
}

/// Sleeps while the low half of `word` equals `value`, at most `timeout`.
///
/// Blocks in one system call. Works on a read-only mapping.
pub fn wait(word: &AtomicU64, value: u32, timeout: Duration) -> Woken {
    let timeout = timespec(timeout);
    match futex::wait(low_half(word), futex::Flags::empty(), value, Some(&timeout)) {
        Err(Errno::AGAIN) => Woken::Moved,
        Err(Errno::INTR) => Woken::Interrupted,
        Err(Errno::TIMEDOUT) => Woken::TimedOut,
        _ => Woken::Rung,
    }
}

/// Sleeps until one of several words has moved away from its value, at most `timeout`.
///
/// Blocks in one system call (FUTEX_WAITV, Linux 5.16).
///
/// # Errors
/// The system's: `ENOSYS` on older kernels, `EINVAL` for more than 128 words.
pub fn wait_any(words: &[(&AtomicU64, u32)], timeout: Duration) -> io::Result<Woken> {
    let addresses = words.iter().map(|(word, seen)| (address_of(word), *seen));
    wait_any_at(&addresses.collect::<Vec<_>>(), timeout)
}

/// As [`wait_any`], for words named by [`address_of`]. A word that is mapped no more ends the sleep
/// with `EFAULT`; it is only read by the kernel.
pub(crate) fn wait_any_at(words: &[(usize, u32)], timeout: Duration) -> io::Result<Woken> {
    let waits: Vec<futex::Wait> = words
        .iter()
        .map(|&(address, seen)| {
            let mut wait = futex::Wait::new();
            wait.val = u64::from(seen);
            wait.uaddr = futex::WaitPtr::new(core::ptr::without_provenance_mut(address));
            wait.flags = futex::WaitFlags::SIZE_U32;
            wait
        })
        .collect();
    // The kernel wants a point in time here.
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let end = Duration::try_from(now)
        .unwrap_or_default()
        .saturating_add(timeout);
    let end = timespec(end);
    let flags = futex::WaitvFlags::empty();
    match futex::waitv(&waits, flags, Some(&end), futex::ClockId::Monotonic) {
        Ok(_) => Ok(Woken::Rung),
        Err(Errno::AGAIN) => Ok(Woken::Moved),
        Err(Errno::INTR) => Ok(Woken::Interrupted),
        Err(Errno::TIMEDOUT) => Ok(Woken::TimedOut),
        Err(error) => Err(error.into()),
    }
}

/// Where the kernel finds the low half of a word.
pub(crate) fn address_of(word: &AtomicU64) -> usize {
    low_half(word).as_ptr().addr()
}

fn timespec(duration: Duration) -> rustix::time::Timespec {
    rustix::time::Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// Wakes up to `count` sleepers on the low half of `word`: one system call, does not block.
pub fn wake(word: &AtomicU64, count: u32) -> usize {
    futex::wake(low_half(word), futex::Flags::empty(), count).unwrap_or(0)
}

fn low_half(word: &AtomicU64) -> &AtomicU32 {
    const {
        assert!(
            cfg!(target_endian = "little"),
            "the futex word is the low half of a word"
        )
    };
    // SAFETY: the pointer is valid and aligned for the life of `word`, and the reference is handed
    // to the kernel only, which reads 32 bits atomically; this process never loads through it.
    unsafe { AtomicU32::from_ptr(word.as_ptr().cast()) }
}

/// A locked instruction that changes nothing: a full fence on x86-64.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline(always)]
pub(crate) fn locked_no_op() {
    // SAFETY: ORs zero into the word at the stack pointer, which is always mapped and writable;
    // the value does not change. It is a compiler fence as well, since `nomem` is not claimed.
    unsafe { core::arch::asm!("lock or dword ptr [rsp], 0", options(nostack)) }
}

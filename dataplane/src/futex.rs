//! The futex system calls on the low half of a word, and the cheap full fence.
#![allow(
    unsafe_code,
    reason = "system calls on shared words, and one locked instruction"
)]

use core::sync::atomic::{AtomicU32, AtomicU64};
use core::time::Duration;

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
    let timeout = rustix::time::Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    match futex::wait(low_half(word), futex::Flags::empty(), value, Some(&timeout)) {
        Err(Errno::AGAIN) => Woken::Moved,
        Err(Errno::INTR) => Woken::Interrupted,
        Err(Errno::TIMEDOUT) => Woken::TimedOut,
        _ => Woken::Rung,
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

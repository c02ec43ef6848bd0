//! One io_uring, restricted to the operations that waiting needs: the unsafe half of the waiter.
#![allow(unsafe_code, reason = "submission entries and three system calls")]

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use ::io_uring::register::Restriction;
use ::io_uring::{IoUring, opcode, squeue, types};
use rustix::event::{EventfdFlags, eventfd};

use super::Loop;

/// Entries submitted at once; twice as many may be completed before the kernel must buffer them.
const ENTRIES: u32 = 64;

/// A completed operation: what it was called, and its result.
pub(super) type Completion = (u64, i32);

/// The ring.
pub(super) struct Ring {
    uring: ManuallyDrop<IoUring>,
    /// The place in this thread's table of rings, where the descriptor is not kept.
    index: Option<u32>,
    /// Pushed, not submitted yet.
    pushed: u32,
    process: u32,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let index = self.index;
        f.debug_struct("Ring").field("index", &index).finish()
    }
}

impl Ring {
    /// Makes a ring that can only do `operations`. For [`Loop::Own`] a forked child inherits
    /// neither its memory nor a descriptor.
    pub(super) fn new(operations: &[u8], whose: Loop) -> io::Result<Ring> {
        let mut builder = IoUring::builder();
        builder.dontfork().setup_r_disabled();
        if whose == Loop::Own {
            // Completions wait for the next enter. Else the kernel interrupts whatever system call
            // the thread is in, and a receive with a time limit fails with EINTR.
            builder.setup_single_issuer().setup_defer_taskrun();
        }
        let uring = builder.build(ENTRIES)?;
        let allowed = operations.iter().copied().map(Restriction::sqe_op);
        let unregister = Restriction::register_op(UNREGISTER_RING_FDS as u8);
        let mut restrictions: Vec<_> = allowed.chain([unregister]).collect();
        uring.submitter().register_restrictions(&mut restrictions)?;
        let index = match whose {
            Loop::Own => Some(hide(&uring)?),
            Loop::Foreign => None,
        };
        let ring = Ring {
            uring: ManuallyDrop::new(uring),
            index,
            pushed: 0,
            process: std::process::id(),
        };
        let (number, flag) = ring.number(USE_REGISTERED_RING);
        // SAFETY: the operation takes no argument.
        unsafe { register(number, ENABLE_RINGS | flag, core::ptr::null(), 0)? };
        Ok(ring)
    }

    /// Adds an operation to the next [`Ring::enter`]; submits if there is no place.
    pub(super) fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: entries point to words of which the kernel only reads the value (one that is not
        // mapped is refused), and to arrays that the waiter keeps at their place as long as the
        // ring; nothing of this process is written.
        while unsafe { self.uring.submission().push(entry) }.is_err() {
            self.enter(0, Duration::ZERO)?;
        }
        self.pushed += 1;
        Ok(())
    }

    /// Submits what was pushed, then waits for `want` completions, up to `timeout`: one system
    /// call. A time-out or a signal is no error.
    pub(super) fn enter(&mut self, want: u32, timeout: Duration) -> io::Result<()> {
        let pause = Timespec {
            seconds: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            nanoseconds: i64::from(timeout.subsec_nanos()),
        };
        let argument = EnterArgument {
            signals: 0,
            signals_size: 0,
            min_wait_us: 0,
            timeout: core::ptr::from_ref(&pause).expose_provenance() as u64,
        };
        let (number, registered) = self.number(ENTER_REGISTERED_RING);
        let flags = ENTER_GET_EVENTS | ENTER_EXTENDED | registered;
        let submitted = self.pushed;
        // SAFETY: the number is this ring's; the entries were pushed by `push`; the argument and
        // the time live until the call returns, and their size is given.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                number,
                submitted,
                want,
                flags,
                core::ptr::from_ref(&argument),
                size_of::<EnterArgument>(),
            )
        };
        if result >= 0 {
            self.pushed -= u32::try_from(result).unwrap_or(submitted).min(submitted);
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // Only the wait was cut short: whatever was submitted is reported as a number.
            Some(libc::ETIME | libc::EINTR) => {
                self.pushed = 0;
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// The next completion. No system call.
    pub(super) fn completed(&mut self) -> Option<Completion> {
        let entry = self.uring.completion().next()?;
        Some((entry.user_data(), entry.result()))
    }

    /// The descriptor, if it was kept.
    pub(super) fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the descriptor is the ring's and stays open as long as it lives.
        let fd = unsafe { BorrowedFd::borrow_raw(self.uring.as_raw_fd()) };
        self.index.is_none().then_some(fd)
    }

    fn number(&self, registered: u32) -> (i64, u32) {
        match self.index {
            Some(index) => (i64::from(index), registered),
            None => (i64::from(self.uring.as_raw_fd()), 0),
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            // Its memory is not mapped here; something else may be. Its descriptor is open here.
            // SAFETY: the ring owns that descriptor, and is not dropped in this process.
            let _ = unsafe { libc::close(self.uring.as_raw_fd()) };
            return;
        }
        if let Some(index) = self.index {
            let update = RingUpdate {
                offset: index,
                reserved: 0,
                data: 0,
            };
            let operation = UNREGISTER_RING_FDS | USE_REGISTERED_RING;
            let argument = core::ptr::from_ref(&update).cast();
            // SAFETY: the argument is one update, alive until the call returns.
            let _ = unsafe { register(i64::from(index), operation, argument, 1) };
        }
        // SAFETY: dropped once, here, by the process that has it mapped.
        unsafe { ManuallyDrop::drop(&mut self.uring) };
    }
}

/// Enters the ring into this thread's table and puts an idle descriptor in the place of its own:
/// what a child inherits is that, and only this thread can use the ring.
fn hide(uring: &IoUring) -> io::Result<u32> {
    let own = uring.as_raw_fd();
    let mut update = RingUpdate {
        offset: u32::MAX,
        reserved: 0,
        data: u64::from(own.cast_unsigned()),
    };
    let argument = core::ptr::from_mut(&mut update).cast_const().cast();
    // SAFETY: the argument is one update, alive and writable until the call returns.
    unsafe { register(i64::from(own), REGISTER_RING_FDS, argument, 1)? };
    let idle = eventfd(0, EventfdFlags::CLOEXEC)?;
    // SAFETY: both numbers are open. The ring owns `own` and closes whatever is there in the end.
    if unsafe { libc::dup3(idle.as_fd().as_raw_fd(), own, libc::O_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(update.offset)
}

/// # Safety
/// `argument` points to what `operation` reads, `count` of them.
unsafe fn register(
    number: i64,
    operation: u32,
    argument: *const libc::c_void,
    count: u32,
) -> io::Result<()> {
    // SAFETY: by the caller's contract.
    let result = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            number,
            operation,
            argument,
            count,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sleeps on words, together.
pub(super) fn futex_wait(words: &[types::FutexWaitV]) -> squeue::Entry {
    let count = u32::try_from(words.len()).unwrap_or(u32::MAX);
    opcode::FutexWaitV::new(words.as_ptr(), count).build()
}

/// Sleeps on one word's low half.
pub(super) fn futex_wait_one(address: usize, seen: u32) -> squeue::Entry {
    let word = core::ptr::without_provenance(address);
    let any = u64::from(u32::MAX);
    opcode::FutexWait::new(word, u64::from(seen), any, SIZE_U32).build()
}

/// One of the words of [`futex_wait`].
pub(super) fn futex_word(address: usize, seen: u32) -> types::FutexWaitV {
    types::FutexWaitV::new()
        .uaddr(address as u64)
        .val(u64::from(seen))
        .flags(SIZE_U32)
}

/// A word of 32 bits, which other processes may share.
const SIZE_U32: u32 = 2;

// linux/io_uring.h
const ENABLE_RINGS: u32 = 12;
const REGISTER_RING_FDS: u32 = 20;
const UNREGISTER_RING_FDS: u32 = 21;
const USE_REGISTERED_RING: u32 = 1 << 31;
const ENTER_GET_EVENTS: u32 = 1;
const ENTER_EXTENDED: u32 = 1 << 3;
const ENTER_REGISTERED_RING: u32 = 1 << 4;

/// `struct io_uring_rsrc_update`.
#[repr(C)]
struct RingUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

/// `struct io_uring_getevents_arg`.
#[repr(C)]
struct EnterArgument {
    signals: u64,
    signals_size: u32,
    min_wait_us: u32,
    timeout: u64,
}

/// `struct __kernel_timespec`.
#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Every signal as an event of a descriptor: the thread blocks them all and reads them here.
pub(crate) struct Signals {
    fd: OwnedFd,
}

impl Signals {
    /// Blocks every signal in this thread and opens the descriptor that receives them.
    pub(crate) fn open() -> io::Result<Signals> {
        let set = full_set();
        mem::forget(block_all_signals()?);
        // SAFETY: `set` is initialised and outlives the call; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Signals { fd })
    }

    /// The number of the next pending signal, or `None`. Never blocks.
    pub(crate) fn next(&self) -> Option<i32> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: `info` has room for the `size` bytes that the kernel may write.
        let read = unsafe { libc::read(self.fd.as_raw_fd(), info.as_mut_ptr().cast(), size) };
        if usize::try_from(read) != Ok(size) {
            return None;
        }
        // SAFETY: plain integers, zeroed first and then filled by the kernel.
        i32::try_from(unsafe { info.assume_init() }.ssi_signo).ok()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Has the kernel reap ended children by itself.
pub(crate) fn ignore_children() -> io::Result<()> {
    // SAFETY: no handler is installed, so nothing of this program runs at the signal.
    if unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The signal mask that a thread had before [`block_all_signals`]; dropping it puts it back.
pub(crate) struct OldMask(libc::sigset_t);

impl Drop for OldMask {
    fn drop(&mut self) {
        // SAFETY: the set was filled by the kernel; the old mask is not asked for.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
    }
}

/// Blocks every signal in the calling thread until the returned guard is dropped.
pub(crate) fn block_all_signals() -> io::Result<OldMask> {
    let set = full_set();
    let mut old = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: both sets are valid for the call.
    let code = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &set, old.as_mut_ptr()) };
    if code != 0 {
        return Err(io::Error::from_raw_os_error(code));
    }
    // SAFETY: filled by the successful call.
    Ok(OldMask(unsafe { old.assume_init() }))
}

fn full_set() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: sigfillset initialises the set it is given and cannot fail on a valid pointer.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        set.assume_init()
    }
}

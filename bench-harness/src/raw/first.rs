//! Who measures is served first.

use std::io;

/// While it lives, the thread that made it runs before every ordinary one (`SCHED_FIFO`): a load
/// that this harness makes beside it cannot delay what it sees. Not inherited by children.
///
/// A thread that may not ask for it (no `CAP_SYS_NICE`, `RLIMIT_RTPRIO` 0, or a cgroup without
/// real-time budget) stays as it is; [`First::refusal`] says why, for the report.
#[derive(Debug)]
pub struct First {
    refusal: Option<io::Error>,
}

impl First {
    /// Asks for it, for the calling thread. One system call.
    #[must_use]
    pub fn in_line() -> First {
        First {
            refusal: set(libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, 1).err(),
        }
    }

    /// Why the thread waits its turn like all others.
    #[must_use]
    pub fn refusal(&self) -> Option<&io::Error> {
        self.refusal.as_ref()
    }
}

impl Drop for First {
    fn drop(&mut self) {
        if self.refusal.is_none() {
            // Who was given more may always go back.
            let _ = set(libc::SCHED_OTHER, 0);
        }
    }
}

fn set(policy: libc::c_int, priority: libc::c_int) -> io::Result<()> {
    let parameter = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: 0 names the calling thread; the kernel reads the parameter during the call only.
    match unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The policy of the calling thread, from the kernel.
    fn policy() -> libc::c_int {
        // SAFETY: it takes no pointers.
        unsafe { libc::sched_getscheduler(0) }
    }

    #[test]
    fn it_is_first_until_it_is_dropped_or_says_why_not() {
        let before = policy();
        let first = First::in_line();
        match first.refusal() {
            None => assert_eq!(policy(), libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK),
            Some(_) => assert_eq!(policy(), before),
        }
        drop(first);
        assert_eq!(policy(), before);
    }
}

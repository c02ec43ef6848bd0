//! The system calls that neither std nor rustix wraps. All `unsafe` of this crate is below here.

mod child;
mod give_up;
mod mounts;
mod signals;
mod socket;
mod spawn;

pub(crate) use give_up::{
    GiveUp, give_up, landlock_version, read_clock, unshare_nothing, use_a_capability,
};
pub(crate) use mounts::set_read_only;
pub(crate) use signals::{Signals, block_all_signals, ignore_children};
pub(crate) use socket::{loopback_up, peer_has_pid, peer_pidfd, peer_uid};
pub(crate) use spawn::{Plan, SpawnError, UserMap, run_in_child, spawn};

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Takes ownership of a descriptor that this process inherited at a number agreed on beforehand.
///
/// Returns `None` if nothing is open there. Call it once a number, before anything else is opened:
/// afterwards the number may belong to something else.
pub(crate) fn inherited(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: F_GETFD reads a flag, whatever the number is.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return None;
    }
    // SAFETY: the number is open, and this function's contract says that nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).ok()?;
    Some(fd)
}

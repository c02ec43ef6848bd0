//! The call of the new mount interface that rustix does not have.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// `struct mount_attr` of Linux 5.12.
#[repr(C)]
#[derive(Default)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

const READ_ONLY: u64 = 1;
const RECURSIVE: libc::c_int = 0x8000;

/// Makes the mount at this path read-only, and with `below` every mount under it. What has been
/// mounted there already and holds open files goes on as it was for them.
///
/// # Errors
/// `ENOSYS` before Linux 5.12; the system's.
pub(crate) fn set_read_only(path: &Path, below: bool) -> io::Result<()> {
    use rustix::fs::{Mode, OFlags, open};
    let at = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let attributes = MountAttributes {
        set: READ_ONLY,
        ..MountAttributes::default()
    };
    let flags = libc::AT_EMPTY_PATH | if below { RECURSIVE } else { 0 };
    // SAFETY: the path is a C string, the attributes are valid for reads and of this size.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            at.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

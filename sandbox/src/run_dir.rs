//! `RUN/APP`: the lock, the socket, init's log and the list of cgroups.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, openat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect};

use crate::SandboxError;

/// The directory of one application. Its descriptor keeps socket paths short (`sun_path` holds 108
/// bytes): they are bound and connected through `/proc/self/fd`.
#[derive(Debug)]
pub(crate) struct AppDir {
    pub(crate) path: PathBuf,
    fd: OwnedFd,
}

/// What became of an attempt to lock an application's directory.
pub(crate) enum Locked {
    /// Nobody lives here; the lock is held through this file until its last copy is closed.
    Free(File),
    /// An init, or an agent that is just starting one, holds it.
    Busy,
    /// The directory was removed or replaced meanwhile: begin again.
    Replaced,
}

impl AppDir {
    /// Opens `RUN/APP`, making both directories if need be, and checks that they are ours alone.
    pub(crate) fn create(run_dir: &Path, app: &str) -> Result<AppDir, SandboxError> {
        let path = run_dir.join(app);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(SandboxError::run_dir("make the directory", &path))?;
        check_private(run_dir)?;
        AppDir::open(path)
    }

    /// Opens an application's directory that is already there.
    pub(crate) fn open(path: PathBuf) -> Result<AppDir, SandboxError> {
        check_private(&path)?;
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = openat(CWD, &path, flags, Mode::empty())
            .map_err(|error| SandboxError::run_dir("open", &path)(error.into()))?;
        Ok(AppDir { path, fd })
    }

    pub(crate) fn lock_path(&self) -> PathBuf {
        self.path.join("lock")
    }

    pub(crate) fn socket_path(&self) -> PathBuf {
        self.path.join("sock")
    }

    pub(crate) fn log_path(&self) -> PathBuf {
        self.path.join("init.log")
    }

    pub(crate) fn cgroups_path(&self) -> PathBuf {
        self.path.join("cgroups")
    }

    /// Tries to lock the directory. Never blocks.
    pub(crate) fn try_lock(&self) -> Result<Locked, SandboxError> {
        let path = self.lock_path();
        let opened = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Locked::Replaced),
            Err(error) => {
                // It may be ours, just made and empty: who is about to lock it makes it again.
                let _ = std::fs::remove_dir(&self.path);
                return Err(SandboxError::run_dir("open", &path)(error));
            }
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(Locked::Busy),
            Err(error) => return Err(SandboxError::run_dir("lock", &path)(error.into())),
        }
        // Whoever cleans up unlinks the file while holding its lock; a lock on an unlinked file
        // guards nothing.
        let held = file
            .metadata()
            .map_err(SandboxError::run_dir("stat", &path))?;
        let same = path.metadata().is_ok_and(|now| now.ino() == held.ino());
        Ok(if same {
            Locked::Free(file)
        } else {
            Locked::Replaced
        })
    }

    /// Binds the socket (mode 0600) without listening: init does that.
    pub(crate) fn bind_socket(&self) -> Result<OwnedFd, SandboxError> {
        let path = self.socket_path();
        let bound = || -> io::Result<OwnedFd> {
            match rustix::fs::unlinkat(&self.fd, "sock", rustix::fs::AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
            let socket = seqpacket()?;
            // The inode takes the socket's mode, so that the process's umask stays as it is.
            rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
            bind(&socket, &self.address()?)?;
            Ok(socket)
        };
        bound().map_err(SandboxError::run_dir("bind", path))
    }

    /// Connects to init. Refused as long as it does not listen.
    pub(crate) fn connect(&self) -> io::Result<OwnedFd> {
        let socket = seqpacket()?;
        connect(&socket, &self.address()?)?;
        Ok(socket)
    }

    fn address(&self) -> io::Result<SocketAddrUnix> {
        let path = format!("/proc/self/fd/{}/sock", self.fd.as_fd().as_raw_fd());
        Ok(SocketAddrUnix::new(path)?)
    }

    /// Removes the directory; the caller holds its lock, which goes last.
    pub(crate) fn remove(&self) -> Result<(), SandboxError> {
        for path in [
            self.socket_path(),
            self.log_path(),
            self.cgroups_path(),
            self.lock_path(),
        ] {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(SandboxError::run_dir("remove", path)(error));
                }
                _ => {}
            }
        }
        match std::fs::remove_dir(&self.path) {
            Err(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
                ) =>
            {
                Err(SandboxError::run_dir("remove", &self.path)(error))
            }
            // Not empty: another agent has just begun to make the next sandbox here.
            _ => Ok(()),
        }
    }
}

fn seqpacket() -> io::Result<OwnedFd> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    Ok(rustix::net::socket_with(
        family,
        kind,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Refuses a directory that somebody else owns or that others can enter.
fn check_private(path: &Path) -> Result<(), SandboxError> {
    let meta = path
        .symlink_metadata()
        .map_err(SandboxError::run_dir("look at the directory", path))?;
    let uid = rustix::process::geteuid().as_raw();
    let mode = meta.mode() & 0o777;
    if meta.is_dir() && meta.uid() == uid && mode & 0o077 == 0 {
        return Ok(());
    }
    Err(SandboxError::RunDirUnsafe {
        path: path.into(),
        owner: meta.uid(),
        mode,
        uid,
    })
}

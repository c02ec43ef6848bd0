//! Who may have a control socket: of agents that start at the same time, one.

use std::fs::{File, OpenOptions, TryLockError, remove_file};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A locked file beside a socket; the kernel frees it with its process, however that ends. It is
/// removed when this is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Takes the lock of `socket`; `None` if somebody has it. Does not block.
    ///
    /// # Errors
    /// The file cannot be made or locked.
    pub(super) fn take(socket: &Path) -> io::Result<Option<Lock>> {
        let path = socket.with_extension("lock");
        loop {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)?;
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
                Ok(()) => {}
            }
            // Whoever had it may have removed it meanwhile: another may have made the next one.
            if is_at(&file, &path)? {
                return Ok(Some(Lock { path, _file: file }));
            }
        }
    }
}

impl Drop for Lock {
    /// Before the lock is free, so that nobody else's file is removed.
    fn drop(&mut self) {
        if let Err(error) = remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a lock file stays");
        }
    }
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match path.metadata() {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_has_it_until_it_is_dropped_and_nothing_stays() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent.sock");
        let lock = Lock::take(&socket).unwrap().unwrap();
        assert!(Lock::take(&socket).unwrap().is_none());
        drop(lock);
        assert_eq!(directory.path().read_dir().unwrap().count(), 0);
        assert!(Lock::take(&socket).unwrap().is_some());
    }

    #[test]
    fn of_many_at_once_one_at_a_time_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent.sock");
        let holders = std::sync::atomic::AtomicUsize::new(0);
        let rounds = || {
            use std::sync::atomic::Ordering::SeqCst;
            for _ in 0..2000 {
                if let Some(lock) = Lock::take(&socket).unwrap() {
                    assert_eq!(holders.fetch_add(1, SeqCst), 0, "two have the lock");
                    std::thread::yield_now();
                    holders.fetch_sub(1, SeqCst);
                    drop(lock);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(rounds);
            }
        });
    }
}

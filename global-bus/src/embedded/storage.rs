//! The few file operations that the log needs, behind a trait, so that tests can let each of them
//! fail, or the machine with it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A directory of files.
pub(crate) trait Storage: Send + 'static {
    /// One file of it.
    type File: StorageFile;

    /// The names of the files.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Makes the file, or empties what an earlier, failed attempt has left.
    fn create(&self, name: &str) -> io::Result<Self::File>;

    /// Opens a file that is there, to read it or to cut it.
    fn open(&self, name: &str) -> io::Result<Self::File>;

    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes the creations and removals durable.
    fn sync_dir(&self) -> io::Result<()>;

    /// How an error message names the file.
    fn path(&self, name: &str) -> PathBuf;
}

/// A file that only grows, or is cut.
pub(crate) trait StorageFile: Send {
    /// Writes all of `bytes` at the end. After an error any part of them may be there.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Makes the content and the length durable.
    fn sync(&mut self) -> io::Result<()>;

    fn len(&self) -> io::Result<u64>;

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    fn truncate(&mut self, bytes: u64) -> io::Result<()>;
}

/// The real thing.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    handle: File,
}

impl Directory {
    /// Opens `path`, and makes it first if it is missing.
    pub(crate) fn open(path: &Path) -> io::Result<Directory> {
        fs::create_dir_all(path)?;
        Ok(Directory {
            path: path.to_owned(),
            handle: File::open(path)?,
        })
    }
}

impl Storage for Directory {
    type File = File;

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(self.path(name))
    }

    fn open(&self, name: &str) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path(name))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.handle.sync_all()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl StorageFile for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.metadata().map(|metadata| metadata.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn truncate(&mut self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }
}

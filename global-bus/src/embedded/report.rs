//! What opening a log says.

use std::io;
use std::path::PathBuf;

use crate::codec::DecodeError;

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process has it.
    #[error(
        "the log in {dir} is in use by {holder}: stop that one, or choose another data directory"
    )]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// "process 123", or "another process" if it has not said which.
        holder: String,
    },
    /// The directory or a file cannot be read or written.
    #[error("cannot open the log: {}: {source}; {}", path.display(), remedy(source))]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An acknowledged record is damaged or missing.
    #[error(
        "{}: damaged at byte {offset}: {reason}; restore the file from a copy, or move the \
         directory away to begin anew (that loses its unfinished messages)", file.display()
    )]
    Corrupt {
        /// The segment.
        file: PathBuf,
        /// Where, in bytes.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// A segment of a newer build.
    #[error("{}: format version {found}, this build knows 1: use a newer one", file.display())]
    Version {
        /// The segment.
        file: PathBuf,
        /// Its version.
        found: u32,
    },
    /// There is no thread to write it.
    #[error("no thread can be made to write the log: {0}; look at the limit of processes")]
    Thread(#[source] io::Error),
    /// An intact frame whose record cannot be read.
    #[error("{}: the record at byte {offset}: {source}", file.display())]
    Record {
        /// The segment.
        file: PathBuf,
        /// Where, in bytes.
        offset: u64,
        /// What is wrong.
        source: DecodeError,
    },
}

/// What was found in a log that could be opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// Segment files.
    pub segments: usize,
    /// Records in them.
    pub records: u64,
    /// Messages that are not finished, and answers that have not expired.
    pub unfinished: usize,
    /// The torn end that was cut, if there was one.
    pub cut: Option<Cut>,
}

/// A torn end: what was being written when the process or the machine died. Nobody was told that
/// it is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The segment.
    pub file: PathBuf,
    /// Where the intact part ends, in bytes.
    pub offset: u64,
    /// How many bytes were cut.
    pub bytes: u64,
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some space",
        io::ErrorKind::ReadOnlyFilesystem => "the file system is read-only, choose another one",
        io::ErrorKind::PermissionDenied => "check the owner and the mode",
        _ => "check the disk and the path",
    }
}

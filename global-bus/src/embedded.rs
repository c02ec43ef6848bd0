//! The global bus of a single host: a durable log on its disk, no server.
//!
//! The appending thread encodes records into a buffer; one writer thread appends the buffer to
//! the current segment file and syncs it (a *group commit*: what arrives meanwhile makes the next
//! group). Finished prefixes are deleted segment by segment.

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::bus::{
    AppendError, FlushError, GlobalBus, Health, Limits, Mark, MarkError, PrepareError, ReplayError,
    Replayed, Ticket, Unbacked, Waker,
};
use crate::fold::now_unix_ms;
use crate::intake::{Intake, answered_by_intake, check_names};
use crate::record::Record;
use crate::shared::Shared;
use crate::window;

#[cfg(test)]
mod fault;
mod frame;
mod log;
mod recovery;
mod report;
mod storage;
#[cfg(test)]
mod tests;
mod writer;

use log::{Group, Log};
pub use report::{Cut, OpenError, OpenReport};
use storage::{Directory, Storage};
use writer::{Filling, GROUP_BYTES, Writer};

/// The file that says who has the log.
const LOCK_FILE: &str = "lock";

/// How an embedded bus works.
#[derive(Clone, Debug)]
pub struct EmbeddedOptions {
    /// What it takes.
    pub limits: Limits,
    /// The size at which a new segment file is begun, in bytes. Space comes back in such pieces.
    pub segment_bytes: u64,
    /// How long to collect records before a group is written. Longer means fewer syncs and less
    /// CPU; zero means the earliest acknowledgement. A [`GlobalBus::flush`] cuts it short.
    pub linger: Duration,
}

impl Default for EmbeddedOptions {
    /// Segments of 64 MiB, groups of 1 ms: at most a thousand syncs a second.
    fn default() -> EmbeddedOptions {
        EmbeddedOptions {
            limits: Limits::default(),
            segment_bytes: 64 << 20,
            linger: Duration::from_millis(1),
        }
    }
}

/// A [`GlobalBus`] on the local disk. What it acknowledged survives the death of the process and
/// of the machine, as far as the disk keeps what it has synced. A record that cannot be written
/// (disk full, I/O error, read-only) waits in the window, which then pushes back; the bus tries
/// again by itself.
pub struct EmbeddedBus {
    intake: Intake<Filling>,
    log: Arc<dyn Readable>,
    /// The log's length, told by the writer.
    spooled: Arc<AtomicU64>,
    limits: Limits,
    dir: String,
}

/// What the bus needs of the log beside the writer, whatever it is stored on.
trait Readable: Send + Sync {
    fn replay(&self, app: &str, visitor: &mut dyn FnMut(Record)) -> Result<Replayed, ReplayError>;
    fn marks(&self, app: &str) -> Vec<Mark>;
}

impl<S: Storage> Readable for Mutex<Log<S>> {
    fn replay(&self, app: &str, visitor: &mut dyn FnMut(Record)) -> Result<Replayed, ReplayError> {
        let log = self.lock().unwrap_or_else(PoisonError::into_inner);
        log.replay(app, now_unix_ms(), visitor)
    }

    fn marks(&self, app: &str) -> Vec<Mark> {
        self.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .marks(app)
    }
}

impl EmbeddedBus {
    /// Opens the log in `dir`, which is made if it is missing. Blocks while it reads all segments.
    ///
    /// # Errors
    /// [`OpenError`]: another process has the log, the disk fails, or a record is damaged. A torn
    /// end is no error: it is cut, and the report says so.
    pub fn open(
        dir: &Path,
        options: EmbeddedOptions,
    ) -> Result<(EmbeddedBus, OpenReport), OpenError> {
        let io = |source| OpenError::Io {
            path: dir.to_owned(),
            source,
        };
        let directory = Directory::open(dir).map_err(io)?;
        let lock = take_lock(dir)?;
        let (log, report) = Log::open(directory, options.segment_bytes)?;
        if let Some(cut) = &report.cut {
            tracing::warn!(file = %cut.file.display(), cut.offset, cut.bytes, "cut a torn end");
        }
        let dir = dir.display().to_string();
        let bus = EmbeddedBus::start(log, options, dir, Some(lock)).map_err(OpenError::Thread)?;
        Ok((bus, report))
    }

    fn start<S: Storage>(
        log: Log<S>,
        options: EmbeddedOptions,
        dir: String,
        lock: Option<File>,
    ) -> std::io::Result<EmbeddedBus> {
        let shared = Arc::new(Shared::new(Filling {
            group: Group::new(),
            next: log.next,
        }));
        let spooled = Arc::new(AtomicU64::new(log.bytes()));
        let log = Arc::new(Mutex::new(log));
        let writer = Writer {
            shared: Arc::clone(&shared),
            log: Arc::clone(&log),
            spooled: Arc::clone(&spooled),
            linger: options.linger,
            dir: dir.clone(),
            lock,
        };
        let run = || writer.run();
        Ok(EmbeddedBus {
            intake: Intake::start(shared, "bus-writer", "the disk is slow", run)?,
            log,
            spooled,
            limits: options.limits,
            dir,
        })
    }
}

impl GlobalBus for EmbeddedBus {
    fn prepare(&mut self, app: &str, grains: &[&str]) -> Result<(), PrepareError> {
        check_names(app, grains)?;
        let closed = |reason| PrepareError::Closed { reason };
        self.intake.shared.lock_open().map(drop).map_err(closed)
    }

    fn append(&mut self, records: &mut Vec<Record>) -> Result<Ticket, AppendError> {
        let bytes = window::check(records, &self.limits)?;
        let closed = |reason| AppendError::Closed { reason };
        let mut state = self.intake.shared.lock_open().map_err(closed)?;
        if records.is_empty() {
            return Ok(state.window.last());
        }
        if let Err(full) = state.window.admit(&self.limits, records.len(), bytes) {
            return Err(match &state.health {
                Health::Degraded { reason } => AppendError::DiskFull {
                    dir: self.dir.clone(),
                    reason: reason.clone(),
                },
                Health::Healthy | Health::Closed { .. } => full,
            });
        }
        let ticket = state.window.enter(records.len(), bytes);
        for record in records.drain(..) {
            let sequence = state.queue.next;
            state.queue.group.push(sequence, &record);
            state.queue.next += 1;
        }
        let urgent = state.queue.group.bytes() >= GROUP_BYTES;
        self.intake.shared.poke(state, urgent);
        Ok(ticket)
    }

    fn replay(
        &mut self,
        app: &str,
        visitor: &mut dyn FnMut(Record),
    ) -> Result<Replayed, ReplayError> {
        self.log.replay(app, visitor)
    }

    fn marks(&self, app: &str) -> Vec<Mark> {
        self.log.marks(app)
    }

    fn spooled_bytes(&self) -> u64 {
        self.spooled.load(Ordering::Relaxed)
    }

    answered_by_intake!();
}

impl fmt::Debug for EmbeddedBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedBus")
            .field("dir", &self.dir)
            .field("acknowledged", &self.acknowledged())
            .field("window", &self.window())
            .field("health", &self.health())
            .finish_non_exhaustive()
    }
}

/// Takes the lock of `dir`, which the kernel gives back when the process ends, however it ends.
fn take_lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join(LOCK_FILE);
    let io = |source| OpenError::Io {
        path: path.clone(),
        source,
    };
    let options = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .clone();
    let mut file = options.open(&path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            let holder = match pid.trim().parse::<u32>() {
                Ok(pid) => format!("process {pid}"),
                Err(_) => "another process".to_owned(),
            };
            let dir = dir.to_owned();
            return Err(OpenError::Locked { dir, holder });
        }
        Err(TryLockError::Error(source)) => return Err(io(source)),
    }
    // The pid is for the message above only; on a full disk the log can still be read.
    let _ = file
        .set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

//! The thread that makes appended groups durable.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::log::{Group, Log};
use super::storage::Storage;
use crate::bus::{Health, Ticket};
use crate::fold::now_unix_ms;
use crate::shared::{End, Shared};

/// The pause after a first failed write; it doubles up to the longest.
const RETRY_FIRST: Duration = Duration::from_millis(10);
const RETRY_LONGEST: Duration = Duration::from_secs(1);

/// A group of this size is written without waiting for more.
pub(super) const GROUP_BYTES: usize = 1 << 20;

/// What has been appended since the writer took the last group.
pub(super) struct Filling {
    pub(super) group: Group,
    /// The sequence number of the next record.
    pub(super) next: u64,
}

/// The writer.
pub(super) struct Writer<S: Storage> {
    pub(super) shared: Arc<Shared<Filling>>,
    pub(super) log: Arc<Mutex<Log<S>>>,
    /// The log's length, for whoever asks.
    pub(super) spooled: Arc<AtomicU64>,
    /// How long to collect records before a group is written.
    pub(super) linger: Duration,
    pub(super) dir: String,
    /// Held as long as this thread can write.
    pub(super) lock: Option<File>,
}

/// What there is to do.
struct Job {
    /// The group holds all appends up to this.
    ticket: Ticket,
    retain: bool,
    closing: bool,
}

impl<S: Storage> Writer<S> {
    /// Runs until the bus is closed.
    pub(super) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let end = End(&*shared);
        let mut group = Group::new();
        loop {
            let job = self.next_job(&mut group);
            if !group.is_empty() {
                if !self.write_until_durable(&mut group) {
                    break;
                }
                let mut state = shared.lock();
                state.window.acknowledge_through(job.ticket);
                shared.acknowledge(state, job.ticket);
                group.clear();
            }
            if job.retain {
                self.retain();
            }
            if job.closing && shared.lock().queue.group.is_empty() {
                break;
            }
        }
        if let Err(error) = self.lock_log().seal() {
            tracing::warn!(dir = self.dir, %error, "the log could not be sealed at its end");
        }
        // The lock goes before the news, so that who waited for the end can open the log again.
        drop(self.lock.take());
        drop(end);
    }

    /// Waits for something to do, collects for a while, and takes what there is then.
    fn next_job(&self, group: &mut Group) -> Job {
        let forever = Duration::from_secs(3600);
        let mut state = self.shared.park_while(forever, |state| {
            state.queue.group.is_empty() && !state.commit && !state.closing
        });
        if !state.queue.group.is_empty() && !self.linger.is_zero() {
            state = self.shared.collect(state, self.linger);
        }
        std::mem::swap(group, &mut state.queue.group);
        state.urgent = false;
        Job {
            ticket: state.window.last(),
            retain: std::mem::take(&mut state.commit),
            closing: state.closing,
        }
    }

    /// Tries until the group is durable; `false` if the bus is closed before that.
    fn write_until_durable(&self, group: &mut Group) -> bool {
        let mut pause = RETRY_FIRST;
        while let Err(error) = self.write(group) {
            self.report_failure(&error);
            if self.shared.pause(pause) {
                // One last time, since the pause was cut short.
                return self.write(group).is_ok();
            }
            pause = (pause * 2).min(RETRY_LONGEST);
        }
        self.shared.set_health(Health::Healthy);
        true
    }

    fn write(&self, group: &mut Group) -> io::Result<()> {
        let mut log = self.lock_log();
        let written = log.write(group);
        self.spooled.store(log.bytes(), Ordering::Relaxed);
        written
    }

    fn report_failure(&self, error: &io::Error) {
        tracing::error!(dir = self.dir, %error, "the log cannot be written, trying again");
        let reason = format!("{error}; free some space in {} or mend its disk", self.dir);
        self.shared.set_health(Health::Degraded { reason });
    }

    fn retain(&self) {
        let mut log = self.lock_log();
        if let Err(error) = log.retain(now_unix_ms()) {
            tracing::warn!(dir = self.dir, %error, "a finished segment could not be deleted");
        }
        self.spooled.store(log.bytes(), Ordering::Relaxed);
    }

    fn lock_log(&self) -> MutexGuard<'_, Log<S>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

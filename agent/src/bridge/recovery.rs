//! A bus thread without a sandbox: how it gets one, and what the old one held.

use std::time::{Duration, Instant};

use sandpipe_global_bus::ReplayError;

use super::local::{Attached, LocalError};
use super::thread::BusThread;

/// Between two attempts to make a sandbox.
const RETRY: Duration = Duration::from_millis(500);

impl BusThread {
    /// The sandbox is gone. What it still told lies in memory that this process maps.
    pub(super) fn lose_sandbox(&mut self, error: &LocalError) {
        tracing::warn!(app = %self.app, %error, "the sandbox is gone");
        self.read_what_waits();
        self.local = None;
        self.absent = error.to_string().into();
        self.mailbox.set_ringer(None);
    }

    /// Everything in flight was in the sandbox: it is read back from the global bus.
    pub(super) fn recover_sandbox(&mut self) {
        self.retry = Instant::now() + RETRY;
        self.core.begin_recovery();
        if self.backup && self.appends.flush(&mut *self.global).is_err() {
            return;
        }
        if self.backup
            && let Err(error) = self.global.flush(Instant::now() + RETRY)
        {
            self.absent = format!("messages cannot be recovered yet: {error}").into();
            return;
        }
        if let Some(number) = self.appends.acknowledged(&*self.global) {
            self.core.durable(self.clock.now(), number);
            self.carry_out();
        }
        match self.replay() {
            Ok(()) => self.attach(),
            Err(error) => self.absent = error.to_string().into(),
        }
    }

    pub(super) fn replay(&mut self) -> Result<(), ReplayError> {
        if self.backup {
            let core = &mut self.core;
            let found = self
                .global
                .replay(&self.app, &mut |record| core.recover(record))?;
            if found.messages > 0 {
                tracing::info!(app = %self.app, messages = found.messages, "recovered");
            }
        }
        Ok(())
    }

    /// Makes or adopts the sandbox, and ends the recovery that its attachment needs.
    pub(super) fn attach(&mut self) {
        self.retry = Instant::now() + RETRY;
        match self.source.attach() {
            Ok(Attached { local, adopted }) => {
                self.mailbox.set_ringer(Some(local.ringer()));
                // Before the news of what is finished, so that nothing is missed by both.
                let alive = local.alive();
                self.local = Some(local);
                self.high_water.clear();
                self.adopted |= adopted && self.attachments == 0;
                self.attachments += 1;
                self.read_what_waits();
                self.core.recovered(self.clock.now(), &alive);
                self.carry_out();
            }
            Err(error) => {
                tracing::error!(app = %self.app, %error, "no sandbox");
                self.fenced = matches!(error, LocalError::TakenOver(_));
                self.absent = error.to_string().into();
            }
        }
    }

    /// Reads what lies in `LQ(HA)`, but not for ever: a grain may tell more without an end.
    fn read_what_waits(&mut self) {
        let room = self.local.as_ref().map_or(0, |local| local.room());
        // Each turn reads a message or makes room for a thousand.
        let turns = 2 * room;
        let _ = (0..turns).all(|_| self.read_local() || self.make_room());
    }

    /// Reading stops while too many appends wait; whether it can go on.
    fn make_room(&mut self) -> bool {
        self.appends.is_congested() && self.flush()
    }
}

//! The side of a bus on which records are appended: what every bus does alike.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use crate::bus::{FlushError, Health, MarkError, PrepareError, Ticket, Unbacked, Waker};
use crate::record::check_name;
use crate::shared::Shared;

/// What the appending thread holds of a bus, its thread among it. Dropping it closes the bus
/// without waiting for a disk or a network.
pub(crate) struct Intake<Q> {
    pub(crate) shared: Arc<Shared<Q>>,
    thread: Option<JoinHandle<()>>,
    /// What to blame for a late flush when no fault is known.
    slow: &'static str,
}

impl<Q> Intake<Q> {
    /// Starts the bus's thread.
    ///
    /// # Errors
    /// No thread can be made; `run` is dropped then.
    pub(crate) fn start(
        shared: Arc<Shared<Q>>,
        name: &str,
        slow: &'static str,
        run: impl FnOnce() + Send + 'static,
    ) -> io::Result<Intake<Q>> {
        let thread = std::thread::Builder::new().name(name.to_owned());
        Ok(Intake {
            shared,
            thread: Some(thread.spawn(run)?),
            slow,
        })
    }

    pub(crate) fn acknowledged(&self) -> Ticket {
        self.shared.acknowledged()
    }

    pub(crate) fn commit_marks(&self) -> Result<(), MarkError> {
        let closed = |reason| MarkError::Closed { reason };
        let mut state = self.shared.lock_open().map_err(closed)?;
        state.commit = true;
        self.shared.poke(state, false);
        Ok(())
    }

    pub(crate) fn window(&self) -> Unbacked {
        self.shared.lock().window.unbacked()
    }

    pub(crate) fn health(&self) -> Health {
        self.shared.lock().health.clone()
    }

    pub(crate) fn set_waker(&self, waker: Waker) {
        self.shared.lock().waker = Some(waker);
    }

    pub(crate) fn flush(&self, deadline: Instant) -> Result<(), FlushError> {
        self.shared.flush(deadline, self.slow)
    }

    pub(crate) fn close(&mut self, deadline: Instant) -> Result<(), FlushError> {
        if self.thread.is_none() {
            return Ok(());
        }
        let flushed = self.flush(deadline);
        let thread = self.thread.take().filter(|_| self.shared.end(deadline));
        if let Some(thread) = thread {
            // A panic has been reported through the health.
            let _ = thread.join();
        }
        flushed
    }
}

impl<Q> Drop for Intake<Q> {
    fn drop(&mut self) {
        // Nobody hears of it; who must know has called `close`.
        let _ = self.close(Instant::now());
    }
}

/// Whether an application and its grains may be announced.
pub(crate) fn check_names(app: &str, grains: &[&str]) -> Result<(), PrepareError> {
    check_name("application", app)?;
    for grain in grains {
        check_name("grain", grain)?;
    }
    Ok(())
}

/// The methods of [`GlobalBus`](crate::GlobalBus) that an `intake` field answers by itself.
macro_rules! answered_by_intake {
    () => {
        fn acknowledged(&self) -> Ticket {
            self.intake.acknowledged()
        }

        fn commit_marks(&mut self) -> Result<(), MarkError> {
            self.intake.commit_marks()
        }

        fn window(&self) -> Unbacked {
            self.intake.window()
        }

        fn health(&self) -> Health {
            self.intake.health()
        }

        fn set_waker(&mut self, waker: Waker) {
            self.intake.set_waker(waker);
        }

        fn flush(&mut self, deadline: Instant) -> Result<(), FlushError> {
            self.intake.flush(deadline)
        }

        fn close(&mut self, deadline: Instant) -> Result<(), FlushError> {
            self.intake.close(deadline)
        }
    };
}
pub(crate) use answered_by_intake;

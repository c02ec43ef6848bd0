//! Workers that were ended since they were idle: init waits for their messages in their stead.
//!
//! Which worker and when is the agent's word. The rest needs no agent: a message wakes init by the
//! bell of the worker's queue, as it would wake the worker, and init starts it.

use std::io;

use sandpipe::wait::Watched;
use sandpipe::{Bell, Mapping, Parking};

use super::events::Ready;
use super::supervisor::Supervisor;
use super::worker::{Phase, Worker};

impl Supervisor {
    /// Has a worker end if it runs and has nothing to do.
    pub(super) fn unload(&mut self, index: usize) {
        let Some(worker) = self.workers.get_mut(index) else {
            return;
        };
        // What comes right after this look waits in the queue, or the worker finishes it.
        let activity = self.guardian.activity(worker.family);
        if !activity.waiting && !activity.at_work && self.ending.is_none() {
            worker.unload();
        }
    }

    /// Starts a worker that is unloaded, before its next message.
    pub(super) fn load(&mut self, index: usize) {
        let unloaded = self.workers.get(index).is_some_and(is_unloaded);
        if unloaded && self.ending.is_none() {
            self.start_worker(index);
        }
    }

    /// Waits for what may happen next, messages to unloaded workers included.
    pub(super) fn wait(&self) -> io::Result<Ready> {
        let bells: Vec<Bell<Mapping>> = self
            .unloaded()
            .filter_map(|worker| Some(self.guardian.view(worker.family)?.bell(worker.family)))
            .collect();
        let parkings: Vec<Parking<'_, Mapping>> = bells.iter().map(Bell::prepare).collect();
        let words: Vec<Watched<'_>> = parkings.iter().map(Parking::watched).collect();
        // Whoever published before the bells were prepared rings nobody.
        let ready = if self
            .unloaded()
            .any(|worker| self.guardian.has_waiting(worker.family))
        {
            self.events.wait(&[], std::time::Duration::ZERO)
        } else {
            self.events.wait(&words, self.timeout())
        };
        drop(words);
        parkings.into_iter().for_each(Parking::cancel);
        ready
    }

    fn unloaded(&self) -> impl Iterator<Item = &Worker> {
        self.workers.iter().filter(|worker| is_unloaded(worker))
    }
}

fn is_unloaded(worker: &Worker) -> bool {
    matches!(worker.phase, Phase::Unloaded)
}

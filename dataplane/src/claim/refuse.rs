//! What a claimer does about a family that lies.

use core::mem::offset_of;

use sandpipe_abi::layout::InFlightEntry;

use super::Claimer;
use crate::counters::Count;
use crate::memory::Memory;
use crate::message::{Message, read_words};
use crate::refusal::{Refusal, Refusals, Violation};
use crate::sync::Ordering;

impl<M: Memory> Claimer<M> {
    /// Takes nothing of a lane's source any more; the other lanes go on.
    #[cold]
    pub(super) fn refuse(&mut self, lane: usize, violation: Violation) {
        let family = self.lanes[lane].source;
        self.tally.add(Count::Quarantined, 1);
        self.refusals.record(Refusal { family, violation });
        for lane in self.lanes.iter_mut().filter(|lane| lane.source == family) {
            lane.reader = None;
        }
    }

    /// After a message that can be handled by nobody, which was acknowledged on the spot.
    #[cold]
    pub(super) fn refuse_message(&mut self, lane: usize, entry: usize) {
        self.own.word(self.started_at).store(0, Ordering::Relaxed);
        let words = read_words(&self.own, entry + offset_of!(InFlightEntry, message));
        let violation = match Message::from_words(&words) {
            // A lane leads to one queue: one for another was put there by a liar.
            Ok(message) => Violation::Queue(message.header.queue.0),
            Err(violation) => violation,
        };
        self.refuse(lane, violation);
    }

    /// Who was refused since the last call, if anybody was.
    pub fn take_refusal(&mut self) -> Option<Refusal> {
        self.refusals.take_news()
    }

    /// Who is refused by this process, and how often something was.
    #[must_use]
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }
}

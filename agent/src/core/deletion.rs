//! A dead letter that somebody deletes: its tombstone, and a word to whoever asked.
//!
//! The tombstone waits until everything before it is durable. What made the letter may lie in
//! `LQ(HA)` still, and an agent that reads it there keeps the letter again; by then the end of that
//! handling is appended. So it is durable before the tombstone is, and the message has been given
//! back before anybody is told. A death before that may leave the letter, and nobody was told.

use sandpipe_abi::MessageId;
use sandpipe_global_bus::Record;

use super::Core;
use super::durable::After;
use super::message::{Now, Reply};

impl<W> Core<W> {
    /// Deletes a dead letter: its event is gone for good. The waiter hears [`Reply::Accepted`] with
    /// the event's id once that is durable, [`Reply::Unknown`] if there is no such letter.
    pub fn delete_letter(&mut self, now: Now, event: MessageId, waiter: W) {
        if let Some(waiting) = self.deleting.get_mut(&event) {
            return waiting.push(waiter);
        }
        let Some(letter) = self.dead.remove(event) else {
            return self.answer(waiter, Reply::Unknown);
        };
        self.deleting.insert(event, vec![waiter]);
        let tombstone = self.tombstone_of(&letter);
        self.after(now, After::Delete { event, tombstone });
    }

    pub(super) fn bury(&mut self, now: Now, event: MessageId, tombstone: Record) {
        self.append(tombstone);
        self.after(now, After::Deleted { event });
    }

    pub(super) fn tell_of_deletion(&mut self, event: MessageId) {
        for waiter in self.deleting.remove(&event).into_iter().flatten() {
            self.answer(waiter, Reply::Accepted(event));
        }
    }
}

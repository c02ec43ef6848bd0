//! What becomes of an event whose attempts are used up: its dead letter, and how that is sent
//! again.
//!
//! Sent again, an event begins a request of its own at the grain where it died, under an id that is
//! derived from its own. So whoever asks twice means the same request. Order: the new request is
//! durable, then the letter's tombstone is appended. A death in between leaves both, and the next
//! agent, who knows the request, takes the letter off its list.

use std::sync::Arc;

use sandpipe_abi::MessageId;
use sandpipe_global_bus::{Payload, Record};

use super::dead::{self, DeadLetter, Death, WholeLetter};
use super::durable::After;
use super::message::{Cause, Identity, Local, Now, Reply, Submit, Wait};
use super::root::{Message, Root};
use super::{Core, root_id};

impl<W> Core<W> {
    /// The dead letters, the oldest first.
    #[must_use]
    pub fn dead_letters(&self) -> Vec<DeadLetter> {
        self.dead.list()
    }

    /// The letter of this event, with its data.
    #[must_use]
    pub fn dead_letter(&self, event: MessageId) -> Option<WholeLetter> {
        self.dead.find(event).map(dead::whole)
    }

    /// How many dead letters there are, and the bytes of their events.
    #[must_use]
    pub fn dead_letter_load(&self) -> (usize, usize) {
        (self.dead.len(), self.dead.bytes())
    }

    /// Sends the event of a dead letter again. The waiter hears [`Reply::Accepted`] with the new
    /// request's id once that is durable, [`Reply::Unknown`] if there is no such letter, or why
    /// it cannot be sent now; then the letter stays.
    pub fn redrive(&mut self, now: Now, event: MessageId, waiter: W) {
        let again = self.redriven_id(event);
        if self.results.has_ended(again) {
            self.forget_letter(now, event);
            return self.answer(waiter, Reply::Accepted(again));
        }
        let Some(letter) = self.dead.find(event) else {
            let reply = match self.roots.contains_key(&again) {
                true => Reply::Accepted(again),
                false => Reply::Unknown,
            };
            return self.answer(waiter, reply);
        };
        let grain = dead::grain(letter);
        let Some(grain) = self.grain_named(grain) else {
            let reason = format!("the application has no grain {grain} any more");
            return self.answer(waiter, Reply::Unavailable(reason.into()));
        };
        let payload = match &letter.payload {
            Payload::Inline(data) => data.clone(),
            Payload::Reference(_) => Vec::new(),
        };
        let submit = Submit {
            identity: Identity::Redriven(event),
            wait: Wait::Durable,
            waiter,
            payload,
            content_type: Arc::clone(&letter.content_type),
            traceparent: Arc::clone(&letter.traceparent),
            attributes: dead::attributes(letter),
            traced_since_ns: None,
            shows_trace: false,
        };
        self.enter(now, grain, submit);
        if self.roots.contains_key(&again) {
            self.counters.redriven += 1;
            self.forget_letter(now, event);
        }
    }

    /// Keeps the letter of an event whose attempts are used up. Told again, it changes nothing.
    pub(super) fn keep_letter(
        &mut self,
        now: Now,
        root: &Root<W>,
        cause: Cause,
        local: &mut Local,
    ) {
        let Some(data) = local.event.take() else {
            return;
        };
        let event = local.parent;
        // Without a backup there is nothing that a letter could be folded from.
        if !self.workflow.backup || self.dead.find(event).is_some() || self.is_redriven(event) {
            return;
        }
        let message = Message {
            id: event,
            parent: MessageId::NONE,
            grain: local.from,
        };
        let death = Death {
            event,
            grain: &self.workflow.grains[local.from],
            cause,
            reason: &String::from_utf8_lossy(&local.payload),
            attempts: self.workflow.max_attempts,
            unix_ms: now.unix_ms,
        };
        let letter = dead::letter(self.processing(root, message, data), &death);
        self.counters.dead += 1;
        self.append(letter.clone());
        self.fold_letter(letter);
    }

    /// Keeps the letter of a request that has ended: its answer was stored by an agent that died.
    pub(super) fn keep_letter_of_ended(&mut self, now: Now, cause: Cause, local: &mut Local) {
        let partition = self.partition_of(local.root);
        let mut root = Root::adopted(local.root, partition, 0);
        if let Some(answer) = self.results.find(local.root) {
            root.traceparent = Arc::clone(&answer.traceparent);
            root.attributes = Arc::clone(&answer.attributes);
        }
        self.keep_letter(now, &root, cause, local);
    }

    /// A letter that the global bus holds.
    pub(super) fn fold_letter(&mut self, letter: Record) {
        for gone in self.dead.keep(letter) {
            self.counters.dead_dropped += 1;
            let tombstone = self.tombstone_of(&gone);
            self.append(tombstone);
        }
    }

    /// Takes a letter off the list, once everything appended so far is durable.
    pub(super) fn forget_letter(&mut self, now: Now, event: MessageId) {
        if let Some(letter) = self.dead.remove(event) {
            let tombstone = self.tombstone_of(&letter);
            self.after(now, After::Append(tombstone));
        }
    }

    /// Takes the letters off the list whose events an agent before this one has sent again.
    pub(super) fn forget_redriven(&mut self, now: Now) {
        let events: Vec<MessageId> = self.dead.events().collect();
        for event in events {
            if self.is_redriven(event) {
                self.forget_letter(now, event);
            }
        }
    }

    /// This agent's, whichever wrote the letter: a reader drops what an older owner wrote after a
    /// newer one.
    pub(super) fn tombstone_of(&self, letter: &Record) -> Record {
        Record {
            epoch: self.workflow.epoch,
            ..letter.finished()
        }
    }

    fn is_redriven(&self, event: MessageId) -> bool {
        let again = self.redriven_id(event);
        self.roots.contains_key(&again) || self.results.has_ended(again)
    }

    fn redriven_id(&self, event: MessageId) -> MessageId {
        root_id(&self.workflow.app, 0, 0, &Identity::Redriven(event))
    }
}

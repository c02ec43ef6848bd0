//! After a death: what the global bus knows, and what still lives in the sandbox.
//!
//! Order: [`Core::begin_recovery`], then [`Core::recover`] for each record of the replay and
//! [`Core::local`] for each message that waits in `LQ(HA)`, then [`Core::recovered`]. What is open
//! then and does not live in the sandbox is published again, with the same id.

use std::collections::HashSet;
use std::sync::Arc;

use sandpipe_abi::MessageId;
use sandpipe_global_bus::{Flag, Payload, Record};

use super::Core;
use super::dead::is_letter;
use super::durable::{After, answer_from, final_from};
use super::message::{Cause, Delivery, Failure, Now};
use super::root::{Final, Message, Open, Root};

impl<W> Core<W> {
    /// From here on payloads are kept, so that they can be published again.
    pub fn begin_recovery(&mut self) {
        self.recovering = true;
    }

    /// A record that the global bus replays: a message that is not finished, or an answer.
    pub fn recover(&mut self, record: Record) {
        if record.is_result() {
            return if record.id == record.root {
                self.recover_answer(record);
            } else if is_letter(&record) {
                self.fold_letter(record);
            } else {
                self.recover_final(record);
            };
        }
        if self.results.find(record.root).is_none() && self.results.has_ended(record.root) {
            return; // in this agent's life: the tombstones are on their way
        }
        let grain = self.grain_named(&record.grain);
        // A grain that this application no longer has: its messages stay on the bus.
        let (Some(grain), Flag::Processing | Flag::Data(_)) = (grain, &record.flag) else {
            return;
        };
        let Payload::Inline(payload) = record.payload else {
            return;
        };
        let root = self.roots.entry(record.root).or_insert_with(|| {
            let mut root = Root::adopted(record.root, record.partition, record.deadline_unix_ms);
            root.content_type = record.content_type;
            root.traceparent = record.traceparent;
            root.attributes = record.attributes;
            Box::new(root)
        });
        if root.is_finished(record.id) {
            return;
        }
        match root.open.iter_mut().find(|open| open.id == record.id) {
            Some(open) => open.payload = Some(payload),
            None => {
                let mut open = Open::new(record.id, record.parent, grain);
                open.payload = Some(payload);
                root.open.push(open);
            }
        }
    }

    fn recover_answer(&mut self, record: Record) {
        // Of a request that this agent has concluded itself, it holds the answer already.
        if self
            .roots
            .get(&record.id)
            .is_none_or(|root| root.answer.is_none())
        {
            let expires_ms = record.deadline_unix_ms;
            self.results.keep(Arc::new(answer_from(record)), expires_ms);
        }
    }

    /// One of several outputs of a request that has not ended.
    fn recover_final(&mut self, record: Record) {
        let (id, parent, root, partition) =
            (record.id, record.parent, record.root, record.partition);
        let (name, payload) = final_from(record);
        let Some(grain) = self.grain_named(&name) else {
            return;
        };
        let root = self
            .roots
            .entry(root)
            .or_insert_with(|| Box::new(Root::adopted(root, partition, 0)));
        if root.answer.is_none() && root.finals.iter().all(|known| known.id != id) {
            root.finals.push(Final { id, grain, payload });
            root.stored_finals.push(Message { id, parent, grain });
        }
    }

    pub(super) fn grain_named(&self, name: &str) -> Option<usize> {
        self.workflow
            .grains
            .iter()
            .position(|known| **known == *name)
    }

    /// Everything that can be known is known. `alive` holds the ids in the sandbox's queues and
    /// hands.
    pub fn recovered(&mut self, now: Now, alive: &HashSet<MessageId>) {
        self.recovering = false;
        let mut ids: Vec<MessageId> = self.roots.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            if self.results.find(id).is_some() {
                self.finish_answered(now, id);
            } else {
                self.redeliver(now, id, alive);
            }
        }
        self.forget_redriven(now);
    }

    /// The answer is there: what is still open would change nothing.
    fn finish_answered(&mut self, now: Now, id: MessageId) {
        let Some(mut root) = self.roots.remove(&id) else {
            return;
        };
        for open in std::mem::take(&mut root.open) {
            self.append(self.finished(&root, open.message()));
        }
        for stored in std::mem::take(&mut root.stored_finals) {
            self.append(self.stored_final(&root, stored, Vec::new()).finished());
        }
        root.answer = self.results.find(id).cloned();
        root.ended = true;
        self.roots.insert(id, root);
        self.after(now, After::End { root: id });
    }

    fn redeliver(&mut self, now: Now, id: MessageId, alive: &HashSet<MessageId>) {
        let Some(mut root) = self.roots.remove(&id) else {
            return;
        };
        let traced = root.trace.is_some();
        let mut lost = false;
        let mut again = Vec::new();
        for open in &mut root.open {
            let payload = open.payload.take();
            if alive.contains(&open.id) {
                continue;
            }
            let Some(payload) = payload else {
                lost = true;
                continue;
            };
            again.push(Delivery {
                grain: open.grain,
                id: open.id,
                root: id,
                parent: open.parent,
                traced,
                fresh: false,
                payload,
            });
        }
        // Outputs whose messages are all finished: the answer was stored, and has expired since.
        let over = root.open.is_empty() && root.answer.is_none();
        if over || (lost && !root.promised) {
            self.forget(root);
        } else if lost {
            self.lose(now, root);
        } else {
            self.roots.insert(id, root);
            self.counters.redelivered += again.len() as u64;
            again
                .into_iter()
                .for_each(|delivery| self.publish(delivery));
        }
    }

    /// Ends a request of which nothing can be told any more. A retry begins anew, with the same
    /// ids.
    pub(super) fn forget(&mut self, root: Box<Root<W>>) {
        for open in &root.open {
            self.append(self.finished(&root, open.message()));
        }
        for &stored in &root.stored_finals {
            self.append(self.stored_final(&root, stored, Vec::new()).finished());
        }
    }

    /// A message of the request exists nowhere any more: its caller hears so.
    fn lose(&mut self, now: Now, mut root: Box<Root<W>>) {
        let id = root.id;
        let lost = std::mem::take(&mut root.open);
        if root.answer.is_none() {
            root.failure = Some(Failure {
                grain: Arc::default(),
                message: lost.first().map_or(id, |open| open.id),
                cause: Cause::SandboxLost,
                detail: "the sandbox ended while it held this message, and no backup of the \
                         message exists"
                    .to_owned(),
            });
            self.conclude(now, &mut root);
        }
        for message in lost.iter().map(Open::message) {
            self.append(self.finished(&root, message));
        }
        root.ended = true;
        self.roots.insert(id, root);
        self.after(now, After::End { root: id });
    }
}

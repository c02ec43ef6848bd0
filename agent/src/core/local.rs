//! What instances tell the agent through `LQ(HA)`.

use std::sync::Arc;

use sandpipe::Violation;
use sandpipe_abi::MessageId;

use super::Core;
use super::durable::After;
use super::message::{Cause, Failure, Local, News, Now};
use super::root::{Final, Message, Open, Root};
use super::trace::Hop;

/// Requests that an agent before this one may have left beyond what this one takes: its limit may
/// have been another.
pub(super) const UNKNOWN_ROOTS: usize = 4096;

impl<W> Core<W> {
    /// A message was read from `LQ(HA)`. It is released, by a later command, once it is durable.
    ///
    /// # Errors
    /// [`Violation::Parent`] if the sender speaks for a message that another grain handles; it is
    /// released like one that is known.
    pub fn local(&mut self, now: Now, mut local: Local) -> Result<(), Violation> {
        if self.results.has_ended(local.root) {
            if let News::Failed(cause) = local.news {
                self.keep_letter_of_ended(now, cause, &mut local);
            }
            self.fold(now, &local);
            return Ok(());
        }
        let mut root = match self.roots.remove(&local.root) {
            Some(root) => root,
            None if self.roots.len() >= self.roots_max() => {
                self.fold(now, &local);
                return Ok(());
            }
            None => Box::new(self.adopt(now, &local)),
        };
        let is_forged = root.is_of_another(local.parent, local.from);
        if is_forged || root.ended || root.is_finished(local.parent) {
            self.roots.insert(local.root, root);
            self.fold(now, &local);
            return if is_forged {
                Err(Violation::Parent)
            } else {
                Ok(())
            };
        }
        trace(&self.workflow.grains, &mut root, &local, now);
        match local.news {
            News::Output { grain } => self.output(&mut root, grain, &mut local),
            News::Final => self.output_of_last(&mut root, &mut local),
            News::Failed(cause) => self.failure(now, &mut root, cause, &mut local),
        }
        if root.shows_trace() {
            let message = Some(local.parent);
            self.roots.insert(local.root, root);
            self.after(
                now,
                After::TraceBackup {
                    root: local.root,
                    message,
                },
            );
            root = self
                .roots
                .remove(&local.root)
                .expect("it was put there two lines above");
        }
        self.close(now, root, &local);
        Ok(())
    }

    /// An output that also went to the next grain: backed up, unless it is known.
    fn output(&mut self, root: &mut Root<W>, grain: usize, local: &mut Local) {
        // Its own copy comes after the news of its end: the lanes are not ordered.
        if root.is_finished(local.id) {
            return;
        }
        // An index that no grain has: the sender lies, and nothing can be run from it.
        if root.is_open(local.id) || grain >= self.workflow.grains.len() {
            self.counters.folded += 1;
            return;
        }
        let payload = std::mem::take(&mut local.payload);
        let mut open = Open::new(local.id, local.parent, grain);
        if self.recovering {
            open.payload = Some(payload.clone());
        }
        root.open.push(open);
        let message = Message {
            id: local.id,
            parent: local.parent,
            grain,
        };
        let record = self.processing(root, message, payload);
        self.append(record);
    }

    /// The output of a last grain. It is part of the answer; if others are still to come, it gets
    /// a record of its own, or the agent's death would lose it.
    fn output_of_last(&mut self, root: &mut Root<W>, local: &mut Local) {
        if root.answer.is_some() {
            return; // another branch has failed
        }
        if root.finals.iter().any(|known| known.id == local.id) {
            self.counters.folded += 1;
            return;
        }
        let payload = std::mem::take(&mut local.payload);
        let ends = local.last && root.open.iter().all(|open| open.id == local.parent);
        if !ends && self.workflow.backup {
            let of = Message {
                id: local.id,
                parent: local.parent,
                grain: local.from,
            };
            let record = self.stored_final(root, of, payload.clone());
            self.append(record);
            root.stored_finals.push(of);
        }
        root.finals.push(Final {
            id: local.id,
            grain: local.from,
            payload,
        });
    }

    fn failure(&mut self, now: Now, root: &mut Root<W>, cause: Cause, local: &mut Local) {
        // Before the answer: it is never there without the letter.
        self.keep_letter(now, root, cause, local);
        if root.answer.is_none() {
            root.failure = Some(Failure {
                grain: Arc::clone(&self.workflow.grains[local.from]),
                message: local.parent,
                cause,
                detail: String::from_utf8_lossy(&local.payload).into_owned(),
            });
            self.conclude(now, root);
        }
    }

    /// Finishes the parent if this was the last of it, ends the request if nothing is open, and
    /// lets the message go when it may.
    fn close(&mut self, now: Now, mut root: Box<Root<W>>, local: &Local) {
        if !local.last {
            self.roots.insert(local.root, root);
            return self.after(now, After::Release(local.number));
        }
        if !matches!(local.news, News::Failed(_)) {
            // It had died, its answer was lost with an agent, and this time it was handled.
            self.forget_letter(now, local.parent);
        }
        let parent = root
            .finish(local.parent)
            .map_or(MessageId::NONE, |open| open.parent);
        if !self.workflow.copies {
            root.open.clear();
        }
        let ended = root.open.is_empty();
        if ended && root.answer.is_none() {
            self.conclude(now, &mut root);
        }
        root.ended = ended;
        let at_once = ended && !root.keep && !root.shows_trace();
        let done = Message {
            id: local.parent,
            parent,
            grain: local.from,
        };
        let record = self.finished(&root, done);
        self.roots.insert(local.root, root);
        if at_once {
            self.end(now, local.root);
        }
        self.after(
            now,
            After::Finish {
                record,
                local: local.number,
            },
        );
    }

    fn fold(&mut self, now: Now, local: &Local) {
        self.counters.folded += 1;
        self.after(now, After::Release(local.number));
    }

    /// Its own requests, and as many that an agent before it has left. A grain that invents more
    /// would have the agent's memory; of those nothing was promised to anybody.
    fn roots_max(&self) -> usize {
        2 * self.workflow.max_in_flight + UNKNOWN_ROOTS
    }

    /// A request that this agent has not heard of: its messages outlived the agent before it, and
    /// its own record did not reach the global bus. So its first message is not finished either,
    /// and what that one told still lies in `LQ(HA)` or is to come.
    fn adopt(&mut self, now: Now, local: &Local) -> Root<W> {
        let partition = self.partition_of(local.root);
        let deadline_ms = now.unix_ms + self.workflow.deadline_ms;
        self.deadlines.push_back((deadline_ms, local.root));
        let mut root = Root::adopted(local.root, partition, deadline_ms);
        root.promised = false;
        let entry = self.workflow.entry;
        root.open
            .push(Open::new(local.root, MessageId::NONE, entry));
        if local.parent != local.root {
            root.open
                .push(Open::new(local.parent, MessageId::NONE, local.from));
        }
        root
    }
}

fn trace<W>(grains: &[Arc<str>], root: &mut Root<W>, local: &Local, now: Now) {
    let Some(trace) = &mut root.trace else { return };
    let is_output = matches!(local.news, News::Output { .. });
    if is_output && trace.made.iter().all(|&(made, _)| made != local.id) {
        trace.made.push((local.id, local.parent));
    }
    if trace.hops.iter().any(|hop| hop.message == local.parent) {
        return;
    }
    trace.hops.push(Hop {
        grain: grains[local.from].to_string(),
        stamps: local.stamps.unwrap_or_default(),
        read_ns: now.mono_ns,
        backed_up_ns: 0,
        message: local.parent,
        failed: match local.news {
            News::Failed(cause) => Some(cause),
            News::Output { .. } | News::Final => None,
        },
    });
}

//! What is appended to the global bus, and what waits until that is durable.

use std::sync::Arc;

use sandpipe_abi::MessageId;
use sandpipe_global_bus::{Flag, Payload, RESULTS, Record};

use super::message::{Answer, Command, Delivery, Failure, Local, Now, Outcome, Reply, Wait};
use super::root::{Message, Root};
use super::trace::{Path, Trace};
use super::{Core, batch};

/// What waits for an append to be durable.
#[derive(Debug)]
pub(super) enum After {
    /// Tell who waits for that only.
    Accepted { root: MessageId },
    /// Put it into its queue.
    Publish(Delivery),
    /// Mark a message finished: what it produced is durable.
    Finish { record: Record, local: u64 },
    /// Append this.
    Append(Record),
    /// Give a message of `LQ(HA)` back.
    Release(u64),
    /// Tell who waits for the answer.
    Answer { root: MessageId },
    /// Forget the request, keep its answer.
    End { root: MessageId },
    /// Append the tombstone of a letter that somebody deletes.
    Delete { event: MessageId, tombstone: Record },
    /// Tell who deletes a letter that it is gone.
    Deleted { event: MessageId },
    /// Note the time: of the request's own backup, or of what the handling of a message produced.
    TraceBackup {
        root: MessageId,
        message: Option<MessageId>,
    },
}

impl<W> Core<W> {
    /// All appends up to this number are durable.
    pub fn durable(&mut self, now: Now, number: u64) {
        assert!(number <= self.appended, "append {number} was never made");
        self.durable = self.durable.max(number);
        while let Some(&(waits_for, _)) = self.after.front()
            && waits_for <= self.durable
        {
            let Some((_, after)) = self.after.pop_front() else {
                return;
            };
            self.run(now, after);
        }
    }

    /// Appends a record, or nothing where messages are not backed up.
    pub(super) fn append(&mut self, record: Record) {
        if self.workflow.backup {
            self.appended += 1;
            self.out.push_back(Command::Append {
                number: self.appended,
                record,
            });
        }
    }

    /// Does something once everything appended so far is durable.
    pub(super) fn after(&mut self, now: Now, after: After) {
        if self.appended <= self.durable {
            self.run(now, after);
        } else {
            self.after.push_back((self.appended, after));
        }
    }

    fn run(&mut self, now: Now, after: After) {
        match after {
            After::Accepted { root } => {
                let waiting = self
                    .roots
                    .get_mut(&root)
                    .map(|r| r.take_waiting(Wait::Durable));
                for waiter in waiting.into_iter().flatten() {
                    self.answer(waiter, Reply::Accepted(root));
                }
            }
            After::Publish(delivery) => self.publish(delivery),
            After::Finish { record, local } => {
                let root = record.root;
                self.append(record);
                self.after(now, After::Release(local));
                if self.roots.get(&root).is_some_and(|r| r.ended) {
                    self.after(now, After::End { root });
                }
            }
            After::Append(record) => self.append(record),
            After::Release(Local::NOT_READ) => {}
            After::Release(local) => self.out.push_back(Command::Release(local)),
            After::Answer { root } => self.tell(root),
            After::End { root } => self.end(now, root),
            After::Delete { event, tombstone } => self.bury(now, event, tombstone),
            After::Deleted { event } => self.tell_of_deletion(event),
            After::TraceBackup { root, message } => {
                if let Some(trace) = self.roots.get_mut(&root).and_then(|r| r.trace.as_mut()) {
                    trace.backed_up(message, now.mono_ns);
                }
            }
        }
    }

    /// Puts a message into its queue, behind those that found it full.
    pub(super) fn publish(&mut self, delivery: Delivery) {
        let backlog = &mut self.backlog[delivery.grain];
        if backlog.is_empty() {
            self.out.push_back(Command::Publish(delivery));
        } else {
            backlog.push_back(delivery);
        }
    }

    /// The workflow's answer is known: stores it, and tells whoever may hear it by now.
    pub(super) fn conclude(&mut self, now: Now, root: &mut Root<W>) {
        let outcome = match root.failure.take() {
            Some(failure) => Outcome::Failed(failure),
            None => self.outcome(root),
        };
        match outcome {
            Outcome::Failed(_) => self.counters.failed += 1,
            Outcome::Output { .. } => self.counters.answered += 1,
        }
        let attributes = Arc::clone(&root.attributes);
        let answer = Arc::new(Answer {
            root: root.id,
            outcome,
            attributes,
            traceparent: Arc::clone(&root.traceparent),
            trace: None,
        });
        if self.workflow.backup {
            self.append(self.result(now, root, &answer));
            for stored in std::mem::take(&mut root.stored_finals) {
                let forgotten = self.stored_final(root, stored, Vec::new()).finished();
                self.after(now, After::Append(forgotten));
            }
        }
        root.answer = Some(Arc::clone(&answer));
        if let Some(trace) = &mut root.trace {
            trace.known_ns = now.mono_ns;
        }
        if root.shows_trace() {
            return; // told at its end, so that the times of steps 9 and 10 are known
        }
        if root.keep {
            return self.after(now, After::Answer { root: root.id });
        }
        for waiter in root.take_waiting(Wait::Answer) {
            self.answer(waiter, Reply::Done(Arc::clone(&answer)));
        }
    }

    fn outcome(&self, root: &mut Root<W>) -> Outcome {
        if root.finals.len() > 1 {
            return batch::outcome(&self.workflow, &mut root.finals);
        }
        let body = root
            .finals
            .pop()
            .map(|only| only.payload)
            .unwrap_or_default();
        Outcome::Output {
            content_type: Arc::default(),
            body,
        }
    }

    fn tell(&mut self, id: MessageId) {
        let Some(root) = self.roots.get_mut(&id) else {
            return;
        };
        let Some(answer) = root.answer.clone() else {
            return;
        };
        for waiter in root.take_waiting(Wait::Answer) {
            self.answer(waiter, Reply::Done(Arc::clone(&answer)));
        }
    }

    /// Nothing of the request is open, and that is durable as far as it has to be.
    pub(super) fn end(&mut self, now: Now, id: MessageId) {
        let Some(mut root) = self.roots.remove(&id) else {
            return;
        };
        let Some(mut answer) = root.answer.take() else {
            return;
        };
        if let Some(mut trace) = root.trace.take() {
            if trace.shown {
                trace.finished_ns = now.mono_ns;
                trace.answered_ns = now.mono_ns;
                answer = Arc::new(Answer {
                    trace: Some(trace.clone()),
                    ..(*answer).clone()
                });
            }
            self.out.push_back(Command::Traced(path(&answer, trace)));
        }
        for waiter in std::mem::take(&mut root.waiters) {
            let reply = match waiter.wait {
                Wait::Answer => Reply::Done(Arc::clone(&answer)),
                Wait::Durable => Reply::Accepted(id),
            };
            self.answer(waiter.who, reply);
        }
        if root.keep {
            self.results
                .keep(answer, now.unix_ms + self.workflow.result_ttl_ms);
        } else {
            self.results.remember(id);
        }
    }

    /// The record of one output among several, until the answer is there.
    pub(super) fn stored_final(&self, root: &Root<W>, of: Message, payload: Vec<u8>) -> Record {
        let mut record = self.processing(root, of, payload);
        let grain = self.workflow.grains[of.grain].to_string();
        record.grain = RESULTS.into();
        record.deadline_unix_ms = 0; // it never expires by itself
        record.attributes = Arc::new([(GRAIN.to_owned(), grain)]);
        record
    }

    /// The tombstone of a message.
    pub(super) fn finished(&self, root: &Root<W>, message: Message) -> Record {
        self.processing(root, message, Vec::new()).finished()
    }

    /// The record of an answer. One that nobody will come back for expires with the deadline.
    fn result(&self, now: Now, root: &Root<W>, answer: &Answer) -> Record {
        let expires_ms = if root.keep {
            now.unix_ms + self.workflow.result_ttl_ms
        } else {
            root.deadline_ms
        };
        let message = Message {
            id: root.id,
            parent: MessageId::NONE,
            grain: self.workflow.entry,
        };
        let mut record = self.processing(root, message, Vec::new());
        record.grain = RESULTS.into();
        record.deadline_unix_ms = expires_ms;
        match &answer.outcome {
            Outcome::Output { content_type, body } => {
                record.content_type = Arc::clone(content_type);
                record.payload = Payload::Inline(body.clone());
            }
            Outcome::Failed(failure) => {
                record.content_type = Arc::default();
                record.attributes = failure.attributes(&root.attributes);
                record.payload = Payload::Inline(failure.detail.clone().into_bytes());
            }
        }
        debug_assert_eq!(
            record.flag,
            Flag::Processing,
            "an answer is never a tombstone"
        );
        record
    }
}

fn path(answer: &Answer, trace: Box<Trace>) -> Path {
    Path {
        root: answer.root,
        traceparent: Arc::clone(&answer.traceparent),
        trace,
        failed: match &answer.outcome {
            Outcome::Output { .. } => None,
            Outcome::Failed(failure) => Some(failure.cause),
        },
    }
}

/// Names of the attributes that make a stored answer a failure.
const CAUSE: &str = "sandpipecause";
const GRAIN: &str = "sandpipegrain";
const MESSAGE: &str = "sandpipemessage";

impl Failure {
    fn attributes(&self, of_request: &[(String, String)]) -> Arc<[(String, String)]> {
        let own = [
            (CAUSE, self.cause.name().to_owned()),
            (GRAIN, self.grain.to_string()),
            (MESSAGE, self.message.to_string()),
        ];
        let own = own
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value));
        of_request.iter().cloned().chain(own).collect()
    }
}

/// The output that a record of the topic of answers holds for itself, and its grain's name.
pub(super) fn final_from(record: Record) -> (String, Vec<u8>) {
    let name = record
        .attributes
        .first()
        .map(|(_, grain)| grain.clone())
        .unwrap_or_default();
    match record.payload {
        Payload::Inline(payload) => (name, payload),
        Payload::Reference(_) => (name, Vec::new()),
    }
}

/// The answer that a record of the topic of answers holds.
pub(super) fn answer_from(record: Record) -> Answer {
    use super::message::Cause;
    let find = |name: &str| {
        record
            .attributes
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    };
    let body = match record.payload {
        Payload::Inline(body) => body,
        Payload::Reference(object) => object.name.into_bytes(),
    };
    let Some(cause) = find(CAUSE).map(Cause::from_name) else {
        let outcome = Outcome::Output {
            content_type: record.content_type,
            body,
        };
        return Answer {
            root: record.id,
            outcome,
            attributes: record.attributes,
            traceparent: record.traceparent,
            trace: None,
        };
    };
    let failure = Failure {
        grain: find(GRAIN).unwrap_or_default().into(),
        message: find(MESSAGE).and_then(MessageId::parse).unwrap_or_default(),
        cause,
        detail: String::from_utf8_lossy(&body).into_owned(),
    };
    let own = [CAUSE, GRAIN, MESSAGE];
    let attributes = record
        .attributes
        .iter()
        .filter(|(name, _)| !own.contains(&name.as_str()))
        .cloned();
    Answer {
        root: record.id,
        outcome: Outcome::Failed(failure),
        attributes: attributes.collect(),
        traceparent: record.traceparent,
        trace: None,
    }
}

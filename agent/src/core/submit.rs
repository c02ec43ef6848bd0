//! Requests from the front door, until their message is in the first grain's queue.

use std::sync::Arc;

use sandpipe_abi::MessageId;
use sandpipe_global_bus::{Flag, Payload, Record};

use super::durable::After;
use super::message::{Cause, Command, Delivery, Identity, Local, News, Now, Reply, Submit, Wait};
use super::root::{Message, Open, Root, Waiter};
use super::{Core, root_id};

impl<W> Core<W> {
    /// A request has come in. Its waiter is answered exactly once, by a later command.
    pub fn submit(&mut self, now: Now, submit: Submit<W>) {
        self.enter(now, self.workflow.entry, submit);
    }

    /// A request that begins at this grain.
    pub(super) fn enter(&mut self, now: Now, grain: usize, submit: Submit<W>) {
        let id = self.id_of(&submit);
        if let Some(answer) = self.results.find(id) {
            self.counters.joined += 1;
            let reply = match submit.wait {
                Wait::Answer => Reply::Done(Arc::clone(answer)),
                Wait::Durable => Reply::Accepted(id),
            };
            return self.answer(submit.waiter, reply);
        }
        let deadline_ms = now.unix_ms + self.workflow.deadline_ms;
        if self.roots.contains_key(&id) {
            return self.join(now, id, submit, deadline_ms);
        }
        let must_be_durable = submit.must_be_durable();
        if let (true, Some(reason)) = (must_be_durable, &self.unavailable) {
            let reply = Reply::Unavailable(Arc::clone(reason));
            return self.answer(submit.waiter, reply);
        }
        // What sends a dead letter again makes room.
        let grows = self.workflow.backup && !matches!(submit.identity, Identity::Redriven(_));
        if let (true, Some(reason)) = (grows, &self.spool_full) {
            let reply = Reply::Unavailable(Arc::clone(reason));
            self.counters.spool_full += 1;
            return self.answer(submit.waiter, reply);
        }
        let too_many = self.roots.len() >= self.workflow.max_in_flight;
        if too_many || !self.backlog[grain].is_empty() {
            self.counters.busy += 1;
            self.counters.queue_full += u64::from(!too_many);
            return self.answer(submit.waiter, Reply::Busy);
        }
        self.accept(now, id, grain, submit, deadline_ms);
    }

    /// Somebody asks for the answer of a request.
    pub fn collect(&mut self, id: MessageId, waiter: W) {
        let reply = match (self.results.find(id), self.roots.get(&id)) {
            (Some(answer), _) => Reply::Done(Arc::clone(answer)),
            (None, Some(_)) => Reply::Pending(id),
            (None, None) => Reply::Unknown,
        };
        self.answer(waiter, reply);
    }

    /// A delivery is in its queue.
    pub fn published(&mut self, now: Now, delivery: Delivery) {
        if let Some(trace) = self
            .roots
            .get_mut(&delivery.root)
            .and_then(|r| r.trace.as_mut())
        {
            trace.published_ns = now.mono_ns;
        }
        self.publish_next(delivery.grain);
        if delivery.fresh {
            let Some(root) = self.roots.get(&delivery.root) else {
                return;
            };
            let record = self.processing(root, delivery.message(), delivery.payload);
            self.append_root(now, record, delivery.traced);
        }
    }

    /// A delivery found its queue full. What was accepted waits; what was not is refused.
    pub fn full(&mut self, delivery: Delivery) {
        if !delivery.fresh {
            return self.backlog[delivery.grain].push_front(delivery);
        }
        let Some(mut root) = self.roots.remove(&delivery.root) else {
            return;
        };
        for waiter in root.take_waiting(Wait::Answer) {
            self.counters.busy += 1;
            self.counters.queue_full += 1;
            self.counters.accepted -= 1;
            self.answer(waiter, Reply::Busy);
        }
    }

    /// No queue will ever take the delivery: it is of a version of the application that took more
    /// at once. Its request fails for `reason`, its event becomes a dead letter, and what waits
    /// behind it goes on.
    pub fn undeliverable(&mut self, now: Now, delivery: Delivery, reason: &str) {
        self.publish_next(delivery.grain);
        if !self.roots.contains_key(&delivery.root) {
            return;
        }
        let told = self.local(
            now,
            Local {
                number: Local::NOT_READ,
                id: delivery.id,
                root: delivery.root,
                parent: delivery.id,
                from: delivery.grain,
                news: News::Failed(Cause::PayloadTooLarge),
                last: true,
                stamps: None,
                payload: reason.as_bytes().to_vec(),
                event: Some(delivery.payload),
            },
        );
        debug_assert_eq!(told, Ok(()), "a grain was told of its own message");
    }

    fn publish_next(&mut self, grain: usize) {
        if let Some(next) = self.backlog[grain].pop_front() {
            self.out.push_back(Command::Publish(next));
        }
    }

    fn id_of(&mut self, submit: &Submit<W>) -> MessageId {
        self.sequence += 1;
        root_id(
            &self.workflow.app,
            self.workflow.epoch,
            self.sequence,
            &submit.identity,
        )
    }

    /// The same request again: it gets the same answer.
    fn join(&mut self, now: Now, id: MessageId, submit: Submit<W>, deadline_ms: u64) {
        self.counters.joined += 1;
        let Some(root) = self.roots.get_mut(&id) else {
            return;
        };
        let waiter = Waiter {
            who: submit.waiter,
            wait: submit.wait,
            deadline_ms,
        };
        root.waiters.push(waiter);
        root.promised = true;
        self.deadlines.push_back((deadline_ms, id));
        match submit.wait {
            // Its record was appended before: it is durable once everything up to now is.
            Wait::Durable => self.after(now, After::Accepted { root: id }),
            // It has failed already while other branches go on.
            Wait::Answer if root.answer.is_some() => self.after(now, After::Answer { root: id }),
            Wait::Answer => {}
        }
    }

    fn accept(
        &mut self,
        now: Now,
        id: MessageId,
        grain: usize,
        submit: Submit<W>,
        deadline_ms: u64,
    ) {
        self.counters.accepted += 1;
        let partition = self.partition_of(id);
        let mut root = Box::new(Root::submitted(id, &submit, partition, deadline_ms));
        root.keep = submit.must_be_durable();
        if let Some(trace) = &mut root.trace {
            trace.taken_ns = now.mono_ns;
        }
        root.open.push(Open::new(id, MessageId::NONE, grain));
        root.waiters.push(Waiter {
            who: submit.waiter,
            wait: submit.wait,
            deadline_ms,
        });
        self.deadlines.push_back((deadline_ms, id));
        let traced = root.trace.is_some();
        let mut delivery = Delivery {
            grain,
            id,
            root: id,
            parent: MessageId::NONE,
            traced,
            fresh: true,
            payload: submit.payload,
        };
        if submit.wait == Wait::Answer {
            self.roots.insert(id, root);
            return self.out.push_back(Command::Publish(delivery));
        }
        // Promised for later: first durable, then published, and the promise in between.
        delivery.fresh = false;
        let record = self.processing(&root, delivery.message(), delivery.payload.clone());
        self.roots.insert(id, root);
        self.append_root(now, record, traced);
        self.after(now, After::Accepted { root: id });
        self.after(now, After::Publish(delivery));
    }

    fn append_root(&mut self, now: Now, record: Record, traced: bool) {
        let root = record.id;
        self.append(record);
        if traced {
            self.after(
                now,
                After::TraceBackup {
                    root,
                    message: None,
                },
            );
        }
    }

    pub(super) fn partition_of(&self, root: MessageId) -> u32 {
        (root.words()[0] % u64::from(self.workflow.partitions.max(1))) as u32
    }

    pub(super) fn answer(&mut self, waiter: W, reply: Reply) {
        self.out.push_back(Command::Answer { waiter, reply });
    }

    /// The record with which a message is accepted.
    pub(super) fn processing(&self, root: &Root<W>, message: Message, payload: Vec<u8>) -> Record {
        Record {
            id: message.id,
            root: root.id,
            parent: message.parent,
            app: Arc::clone(&self.workflow.app),
            grain: Arc::clone(&self.workflow.grains[message.grain]),
            partition: root.partition,
            flag: Flag::Processing,
            attempt: 0,
            deadline_unix_ms: root.deadline_ms,
            epoch: self.workflow.epoch,
            workflow: Arc::default(),
            reply_to: None,
            content_type: Arc::clone(&root.content_type),
            traceparent: Arc::clone(&root.traceparent),
            attributes: Arc::clone(&root.attributes),
            payload: Payload::Inline(payload),
        }
    }
}

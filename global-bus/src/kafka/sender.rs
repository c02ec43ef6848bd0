//! The thread between the appending one and librdkafka: makes topics, sends, commits marks.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};
use sandpipe_abi::MessageId;

use super::KafkaOptions;
use super::admin::{Admin, TopicError};
use super::client::{Context, unreachable};
use super::mapping;
use super::tracker::Trackers;
use crate::bus::{Health, Ticket};
use crate::codec::Head;
use crate::record::{Flag, Record};
use crate::shared::{End, Shared};

/// The pause before a topic is tried again; also how often a silent, degraded bus asks for Kafka.
const RETRY: Duration = Duration::from_millis(500);

/// Emptied vectors kept for the appending thread.
const SPARES_MAX: usize = 16;

/// Application and grain.
type Topic = (Arc<str>, Arc<str>);

/// What has been appended and not yet been given to librdkafka.
#[derive(Default)]
pub(super) struct Outbox {
    batches: VecDeque<(Ticket, Vec<Record>)>,
    spares: Vec<Vec<Record>>,
    /// Topics that will be needed.
    pub(super) announced: Vec<Topic>,
}

impl Outbox {
    /// Takes all of `records` and gives a vector with room in exchange.
    pub(super) fn push(&mut self, ticket: Ticket, records: &mut Vec<Record>) {
        let spare = self.spares.pop().unwrap_or_default();
        self.batches
            .push_back((ticket, std::mem::replace(records, spare)));
    }

    fn is_empty(&self) -> bool {
        self.batches.is_empty() && self.announced.is_empty()
    }
}

/// What librdkafka keeps for us until a record is acknowledged.
pub(super) struct Sent {
    pub(super) ticket: Ticket,
    pub(super) app: Arc<str>,
    pub(super) grain: Arc<str>,
    pub(super) partition: u32,
    id: MessageId,
    finished: bool,
    deadline_unix_ms: u64,
    epoch: u64,
}

impl Sent {
    fn new(ticket: Ticket, record: &Record) -> Sent {
        Sent {
            ticket,
            app: Arc::clone(&record.app),
            grain: Arc::clone(&record.grain),
            partition: record.partition,
            id: record.id,
            finished: record.flag == Flag::Finished,
            deadline_unix_ms: record.deadline_unix_ms,
            epoch: record.epoch,
        }
    }

    pub(super) fn head(&self) -> Head<'_> {
        Head {
            id: self.id,
            app: &self.app,
            grain: &self.grain,
            partition: self.partition,
            finished: self.finished,
            deadline_unix_ms: self.deadline_unix_ms,
            epoch: self.epoch,
        }
    }

    pub(super) fn topic(&self) -> String {
        format!("{}.{}", self.app, self.grain)
    }
}

/// The sender thread.
pub(super) struct Sender {
    producer: ThreadedProducer<Context>,
    admin: Admin,
    shared: Arc<Shared<Outbox>>,
    trackers: Arc<Mutex<Trackers>>,
    bootstrap: String,
    linger: Duration,
    known: HashSet<Topic>,
    /// What has been deleted already.
    committed: std::collections::HashMap<(String, u32), u64>,
}

/// The bus was closed while a record could not be sent.
struct Closed;

impl Sender {
    pub(super) fn new(
        producer: ThreadedProducer<Context>,
        admin: Admin,
        options: &KafkaOptions,
        shared: &Arc<Shared<Outbox>>,
        trackers: &Arc<Mutex<Trackers>>,
    ) -> Sender {
        Sender {
            producer,
            admin,
            shared: Arc::clone(shared),
            trackers: Arc::clone(trackers),
            bootstrap: options.bootstrap.clone(),
            linger: options.linger,
            known: HashSet::new(),
            committed: std::collections::HashMap::new(),
        }
    }

    /// Runs until the bus is closed.
    pub(super) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let end = End(&*shared);
        while self.turn().is_ok() {}
        // The producer gives back what is still on its way, and that before the news of the end.
        drop(self);
        drop(end);
    }

    /// Waits for something to do and does it.
    fn turn(&mut self) -> Result<(), Closed> {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.park_while(RETRY, |state| {
            state.queue.is_empty() && !state.commit && !state.closing
        });
        if !state.queue.is_empty() && !self.linger.is_zero() {
            state = shared.collect(state, self.linger);
        }
        let announced = std::mem::take(&mut state.queue.announced);
        let mut batches = std::mem::take(&mut state.queue.batches);
        let commit = std::mem::take(&mut state.commit);
        let closing = state.closing;
        let degraded = matches!(state.health, Health::Degraded { .. });
        let is_closed = matches!(state.health, Health::Closed { .. });
        state.urgent = false;
        drop(state);
        if is_closed {
            return Err(Closed);
        }
        let idle = batches.is_empty();
        self.ensure(announced)?;
        for (ticket, batch) in &mut batches {
            for record in batch.drain(..) {
                self.send(*ticket, &record)?;
            }
        }
        self.give_back(batches);
        if commit {
            self.commit_marks();
        }
        if closing && idle {
            return Err(Closed);
        }
        if degraded && idle {
            self.ask_for_kafka();
        }
        Ok(())
    }

    fn send(&mut self, ticket: Ticket, record: &Record) -> Result<(), Closed> {
        let topic = (Arc::clone(&record.app), Arc::clone(&record.grain));
        if !self.known.contains(&topic) {
            self.ensure(vec![topic])?;
        }
        let topic = record.topic();
        let key = record.id.to_string();
        let partition = i32::try_from(record.partition).unwrap_or(i32::MAX);
        let sent = Box::new(Sent::new(ticket, record));
        let mut message = BaseRecord::<str, [u8], Box<Sent>>::with_opaque_to(&topic, sent)
            .partition(partition)
            .key(&key)
            .headers(mapping::headers(record));
        message.payload = mapping::value(record);
        loop {
            let Err((error, refused)) = self.producer.send(message) else {
                return Ok(());
            };
            // The window should be the tighter limit, but settings can change that.
            if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) {
                if self.shared.pause(Duration::from_millis(5)) {
                    return Err(Closed);
                }
                message = refused;
                continue;
            }
            return Err(self.fail(&topic, &error));
        }
    }

    /// Closes the bus for good: a record that was accepted cannot be sent.
    fn fail(&self, topic: &str, error: &KafkaError) -> Closed {
        let reason = format!("librdkafka has refused a record for {topic}: {error}");
        tracing::error!(reason, "the global bus is closed");
        self.shared.set_health(Health::Closed { reason });
        Closed
    }

    /// Makes the topics that are not known yet, for as long as it takes.
    fn ensure(&mut self, mut topics: Vec<Topic>) -> Result<(), Closed> {
        topics.retain(|topic| !self.known.contains(topic));
        if topics.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = topics
            .iter()
            .map(|(app, grain)| format!("{app}.{grain}"))
            .collect();
        while let Err(error) = self.admin.create_topics(&names) {
            tracing::debug!(%error, "topics are not ready, trying again");
            let reason = match error {
                TopicError::NotYet(_) => None,
                TopicError::Away(reason) => Some(unreachable(&self.bootstrap, &reason)),
                TopicError::Refused(reason) => Some(reason),
            };
            if let Some(reason) = reason {
                self.shared.set_health(Health::Degraded { reason });
            }
            if self.shared.pause(RETRY) {
                return Err(Closed);
            }
        }
        self.shared.set_health(Health::Healthy);
        self.known.extend(topics);
        Ok(())
    }

    /// Deletes what lies below the marks; that is how a mark is kept. A failure costs a longer
    /// replay, nothing else.
    fn commit_marks(&mut self) {
        let mut offsets = TopicPartitionList::new();
        let mut news = Vec::new();
        let trackers = self.trackers.lock().unwrap_or_else(PoisonError::into_inner);
        for app in trackers.apps() {
            for mark in trackers.marks(app) {
                let key = (format!("{app}.{}", mark.grain), mark.partition);
                if mark.position <= self.committed.get(&key).copied().unwrap_or(0) {
                    continue;
                }
                let partition = i32::try_from(mark.partition).unwrap_or(i32::MAX);
                let offset = Offset::Offset(i64::try_from(mark.position).unwrap_or(i64::MAX));
                if offsets
                    .add_partition_offset(&key.0, partition, offset)
                    .is_ok()
                {
                    news.push((key, mark.position));
                }
            }
        }
        drop(trackers);
        if news.is_empty() {
            return;
        }
        match self.admin.delete_below(&offsets) {
            Ok(()) => self.committed.extend(news),
            Err(error) => tracing::warn!(error, "marks were not committed"),
        }
    }

    /// Without traffic nobody else would notice that Kafka is back.
    fn ask_for_kafka(&self) {
        if self.producer.client().fetch_metadata(None, RETRY).is_ok() {
            self.shared.set_health(Health::Healthy);
        }
    }

    fn give_back(&self, batches: VecDeque<(Ticket, Vec<Record>)>) {
        let mut state = self.shared.lock();
        for (_, spare) in batches {
            if state.queue.spares.len() < SPARES_MAX {
                state.queue.spares.push(spare);
            }
        }
    }
}

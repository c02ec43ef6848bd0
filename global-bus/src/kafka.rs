//! The global bus on a real Apache Kafka.
//!
//! The appending thread queues the records; a sender thread makes Kafka messages of them (see
//! `mapping`) and hands them to librdkafka's idempotent producer, which batches, retries and keeps
//! the order of each partition. A message never times out: one that Kafka does not take waits in
//! the window, which then pushes back.
//!
//! Kafka's own durability is what its configuration says: by default it does not sync each write,
//! so one broker alone survives the death of its process, not of its machine; three brokers with
//! `min.insync.replicas=2` survive the death of one machine.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::producer::ThreadedProducer;

use crate::bus::{
    AppendError, FlushError, GlobalBus, Health, Limits, Mark, MarkError, PrepareError, ReplayError,
    Replayed, Ticket, Unbacked, Waker,
};
use crate::intake::{Intake, answered_by_intake, check_names};
use crate::record::Record;
use crate::shared::Shared;
use crate::window;

mod admin;
mod client;
mod mapping;
#[cfg(test)]
mod mapping_tests;
mod replay;
mod sender;
mod tracker;

use admin::Admin;
use client::Context;
use sender::{Outbox, Sender};
use tracker::Trackers;

/// Which Kafka, and how.
#[derive(Clone, Debug)]
pub struct KafkaOptions {
    /// `host:port,…` of some brokers.
    pub bootstrap: String,
    /// What the bus takes. Topics are made with this many partitions and this largest record;
    /// the number of partitions cannot change later.
    pub limits: Limits,
    /// How long to wait for Kafka when the bus is opened, and for progress in a replay.
    pub connect_timeout: Duration,
    /// How long to collect records, once on the way to librdkafka and once in it. Longer means
    /// fewer requests and less CPU.
    pub linger: Duration,
    /// Replicas of a topic that the bus makes; -1 = the broker's default.
    pub replication: i32,
    /// More settings of librdkafka, such as `security.protocol`. They win over the bus's own,
    /// which are there for a reason: idempotence and time-outs should stay as they are.
    pub settings: Vec<(String, String)>,
}

impl KafkaOptions {
    /// The defaults for the Kafka at `bootstrap`: 10 s to connect, linger 1 ms, the broker's
    /// replication.
    #[must_use]
    pub fn new(bootstrap: &str) -> KafkaOptions {
        KafkaOptions {
            bootstrap: bootstrap.to_owned(),
            limits: Limits::default(),
            connect_timeout: Duration::from_secs(10),
            linger: Duration::from_millis(1),
            replication: -1,
            settings: Vec::new(),
        }
    }
}

/// Why there is no bus on Kafka.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nobody answers.
    #[error(
        "Kafka is not reachable at {bootstrap}: {reason} (waited {waited:?}); check the address, \
         or start one with scripts/kafka start"
    )]
    Unreachable {
        /// The address.
        bootstrap: String,
        /// How long we waited.
        waited: Duration,
        /// What librdkafka said.
        reason: String,
    },
    /// There is no thread to send from.
    #[error("no thread can be made to send to Kafka: {reason}; look at the limit of processes")]
    Thread {
        /// What the system said.
        reason: String,
    },
    /// librdkafka does not take a setting.
    #[error("a setting for Kafka is not valid: {reason}")]
    Settings {
        /// What librdkafka said.
        reason: String,
    },
}

/// A [`GlobalBus`] on Apache Kafka.
pub struct KafkaBus {
    intake: Intake<Outbox>,
    trackers: Arc<Mutex<Trackers>>,
    options: KafkaOptions,
}

impl KafkaBus {
    /// Connects. Blocks until a broker has answered, at most `connect_timeout`.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub fn open(options: KafkaOptions) -> Result<KafkaBus, ConnectError> {
        let shared = Arc::new(Shared::new(Outbox::default()));
        let trackers = Arc::new(Mutex::new(Trackers::default()));
        let context = Context::new(&options, Arc::clone(&shared), Arc::clone(&trackers));
        let settings = |error: rdkafka::error::KafkaError| ConnectError::Settings {
            reason: error.to_string(),
        };
        let config = client::producer_config(&options);
        let producer: ThreadedProducer<Context> =
            config.create_with_context(context).map_err(settings)?;
        client::wait_for_broker(&producer, &options)?;
        let admin = Admin::new(&options).map_err(settings)?;
        let sender = Sender::new(producer, admin, &options, &shared, &trackers);
        let run = || sender.run();
        let thread = |error: std::io::Error| ConnectError::Thread {
            reason: error.to_string(),
        };
        Ok(KafkaBus {
            intake: Intake::start(shared, "bus-sender", "Kafka is slow", run).map_err(thread)?,
            trackers,
            options,
        })
    }
}

impl GlobalBus for KafkaBus {
    fn prepare(&mut self, app: &str, grains: &[&str]) -> Result<(), PrepareError> {
        check_names(app, grains)?;
        let closed = |reason| PrepareError::Closed { reason };
        let mut state = self.intake.shared.lock_open().map_err(closed)?;
        let topics = grains.iter().map(|&grain| (app.into(), grain.into()));
        state.queue.announced.extend(topics);
        self.intake.shared.poke(state, false);
        Ok(())
    }

    fn append(&mut self, records: &mut Vec<Record>) -> Result<Ticket, AppendError> {
        let bytes = window::check(records, &self.options.limits)?;
        let closed = |reason| AppendError::Closed { reason };
        let mut state = self.intake.shared.lock_open().map_err(closed)?;
        if records.is_empty() {
            return Ok(state.window.last());
        }
        state
            .window
            .admit(&self.options.limits, records.len(), bytes)?;
        let ticket = state.window.enter(records.len(), bytes);
        state.queue.push(ticket, records);
        self.intake.shared.poke(state, false);
        Ok(ticket)
    }

    fn replay(
        &mut self,
        app: &str,
        visitor: &mut dyn FnMut(Record),
    ) -> Result<Replayed, ReplayError> {
        // Until nothing is on its way, and nothing comes while we borrow the bus: the log stands
        // still, as far as this host writes it.
        let flushed = self.flush(Instant::now() + self.options.connect_timeout);
        flushed.map_err(|error| ReplayError::Failed {
            app: app.to_owned(),
            reason: error.to_string(),
        })?;
        let found = replay::read(&self.options, app)?;
        let replayed = found.hand_out(app, visitor);
        self.trackers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(app, found.tracker);
        Ok(replayed)
    }

    fn marks(&self, app: &str) -> Vec<Mark> {
        self.trackers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .marks(app)
    }

    answered_by_intake!();
}

impl fmt::Debug for KafkaBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaBus")
            .field("bootstrap", &self.options.bootstrap)
            .field("acknowledged", &self.acknowledged())
            .field("window", &self.window())
            .field("health", &self.health())
            .finish_non_exhaustive()
    }
}

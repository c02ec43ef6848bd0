//! librdkafka's configuration, and what it calls back.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{Producer, ProducerContext, ThreadedProducer};

use super::sender::{Outbox, Sent};
use super::tracker::Trackers;
use super::{ConnectError, KafkaOptions};
use crate::bus::Health;
use crate::shared::Shared;

/// Room for the key, the headers and Kafka's framing beside a record's own bytes.
pub(super) const FRAMING_BYTES: usize = 64 << 10;

/// What all clients have in common.
pub(super) fn base_config(options: &KafkaOptions) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &options.bootstrap)
        .set("client.id", "sandpipe")
        // A broker comes back within seconds; librdkafka's own back-off grows to ten.
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "1000")
        .set_log_level(RDKafkaLogLevel::Warning);
    config
}

/// Applied last, so that the user has the last word.
pub(super) fn with_settings(mut config: ClientConfig, options: &KafkaOptions) -> ClientConfig {
    for (name, value) in &options.settings {
        config.set(name, value);
    }
    config
}

pub(super) fn producer_config(options: &KafkaOptions) -> ClientConfig {
    let limits = &options.limits;
    let mut config = base_config(options);
    config
        .set("enable.idempotence", "true")
        .set("acks", "all")
        // Never: a message that timed out may be in the log, and to send it again then makes a
        // duplicate out of order. The window and the caller's deadlines stand above.
        .set("message.timeout.ms", "0")
        .set("linger.ms", options.linger.as_millis().to_string())
        .set("batch.size", "262144")
        .set(
            "message.max.bytes",
            (limits.record_bytes + FRAMING_BYTES).to_string(),
        )
        // The window limits what is on its way; librdkafka's queue must never be the tighter one.
        .set("queue.buffering.max.messages", "10000000")
        .set("queue.buffering.max.kbytes", "2097151");
    with_settings(config, options)
}

/// Blocks until a broker answers.
pub(super) fn wait_for_broker(
    producer: &ThreadedProducer<Context>,
    options: &KafkaOptions,
) -> Result<(), ConnectError> {
    let begin = Instant::now();
    let timeout = options.connect_timeout;
    match producer.client().fetch_metadata(None, timeout) {
        Ok(_) => Ok(()),
        Err(error) => Err(ConnectError::Unreachable {
            bootstrap: options.bootstrap.clone(),
            waited: Duration::from_millis(begin.elapsed().as_millis().try_into().unwrap_or(0)),
            reason: match error.rdkafka_error_code() {
                Some(code) => code.to_string(),
                None => error.to_string(),
            },
        }),
    }
}

/// A client context that only logs: librdkafka's lines are for those who debug it, the bus's
/// health speaks for itself.
#[derive(Debug)]
pub(super) struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(?level, facility, message, "librdkafka");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
    }
}

impl rdkafka::consumer::ConsumerContext for Quiet {}

/// The producer's context: acknowledgements come in here, on librdkafka's polling thread.
pub(super) struct Context {
    shared: Arc<Shared<Outbox>>,
    trackers: Arc<Mutex<Trackers>>,
    bootstrap: String,
}

impl Context {
    pub(super) fn new(
        options: &KafkaOptions,
        shared: Arc<Shared<Outbox>>,
        trackers: Arc<Mutex<Trackers>>,
    ) -> Context {
        Context {
            shared,
            trackers,
            bootstrap: options.bootstrap.clone(),
        }
    }

    fn refused(&self, sent: &Sent, error: &KafkaError) {
        if self.shared.lock().closing {
            return; // The producer gives back what it could not send before its end.
        }
        let reason = format!("Kafka has refused a record for {}: {error}", sent.topic());
        tracing::error!(reason, "the global bus is closed");
        self.shared.set_health(Health::Closed { reason });
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        Quiet.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        Quiet.error(error.clone(), reason);
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AllBrokersDown) => {
                let reason = unreachable(&self.bootstrap, reason);
                self.shared.set_health(Health::Degraded { reason });
            }
            Some(RDKafkaErrorCode::Fatal) => {
                let reason = format!("librdkafka has given up: {reason}");
                self.shared.set_health(Health::Closed { reason });
            }
            _ => {}
        }
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = Box<Sent>;

    fn delivery(&self, result: &DeliveryResult<'_>, sent: Box<Sent>) {
        let message = match result {
            Ok(message) => message,
            Err((error, _)) => return self.refused(&sent, error),
        };
        let Ok(offset) = u64::try_from(message.offset()) else {
            // A setting such as acks=0: nobody has said that the record is durable.
            let error = KafkaError::MessageProduction(RDKafkaErrorCode::InvalidRequiredAcks);
            return self.refused(&sent, &error);
        };
        let mut trackers = self.trackers.lock().unwrap_or_else(PoisonError::into_inner);
        trackers.delivered(&sent, offset);
        drop(trackers);
        let mut state = self.shared.lock();
        let was_degraded = matches!(state.health, Health::Degraded { .. });
        let ticket = state.window.acknowledge_one(sent.ticket);
        self.shared.acknowledge(state, ticket);
        if was_degraded {
            self.shared.set_health(Health::Healthy);
        }
    }
}

/// What to tell a user whose Kafka is away.
pub(super) fn unreachable(bootstrap: &str, reason: &str) -> String {
    format!(
        "Kafka is not reachable at {bootstrap}: {reason}; records wait until it is back, or start \
         one with scripts/kafka start"
    )
}

//! Making topics, and deleting what lies below the marks.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::error::{KafkaResult, RDKafkaErrorCode};

use super::KafkaOptions;
use super::client::{FRAMING_BYTES, Quiet, base_config, with_settings};

/// How long one request may take before it is tried again.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Why topics are not there; each may pass.
#[derive(Debug, thiserror::Error)]
pub(super) enum TopicError {
    /// They were made a moment ago and are not known everywhere.
    #[error("topic {0} is being made")]
    NotYet(String),
    /// No answer.
    #[error("{0}")]
    Away(String),
    /// Kafka has answered, and it is no.
    #[error("{0}")]
    Refused(String),
}

/// The administration of one Kafka.
pub(super) struct Admin {
    client: AdminClient<Quiet>,
    partitions: u32,
    replication: i32,
    record_bytes_max: String,
}

impl Admin {
    pub(super) fn new(options: &KafkaOptions) -> KafkaResult<Admin> {
        Ok(Admin {
            client: with_settings(base_config(options), options).create_with_context(Quiet)?,
            partitions: options.limits.partitions,
            replication: options.replication,
            record_bytes_max: (options.limits.record_bytes + FRAMING_BYTES).to_string(),
        })
    }

    /// Makes `topics`; those that are there already stay as they are. Blocks for the time-out.
    ///
    /// `compact` lets tombstones clear the finished messages away; `delete` without a limit of
    /// time or size deletes nothing by itself, but allows deleting below the mark.
    pub(super) fn create_topics(&self, topics: &[String]) -> Result<(), TopicError> {
        let partitions = i32::try_from(self.partitions).unwrap_or(i32::MAX);
        let new: Vec<NewTopic<'_>> = topics
            .iter()
            .map(|topic| {
                NewTopic::new(topic, partitions, TopicReplication::Fixed(self.replication))
                    .set("cleanup.policy", "compact,delete")
                    .set("retention.ms", "-1")
                    .set("retention.bytes", "-1")
                    .set("max.message.bytes", &self.record_bytes_max)
            })
            .collect();
        let made = wait(self.client.create_topics(&new, &options()))
            .ok_or_else(|| TopicError::Away("no answer to the request to make topics".into()))?
            .map_err(|error| TopicError::Away(error.to_string()))?;
        for result in made {
            match result {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, error)) => {
                    let reason = format!("Kafka does not make topic {topic}: {error}");
                    return Err(TopicError::Refused(reason));
                }
            }
        }
        self.check_partitions(topics)
    }

    /// A topic of another number of partitions would scatter the lineages.
    fn check_partitions(&self, topics: &[String]) -> Result<(), TopicError> {
        for topic in topics {
            let metadata = self
                .client
                .inner()
                .fetch_metadata(Some(topic), REQUEST_TIMEOUT)
                .map_err(|error| TopicError::Away(error.to_string()))?;
            let found = metadata
                .topics()
                .first()
                .map_or(0, |topic| topic.partitions().len());
            if found == 0 {
                return Err(TopicError::NotYet(topic.clone()));
            }
            if found != usize::try_from(self.partitions).unwrap_or(usize::MAX) {
                return Err(TopicError::Refused(format!(
                    "topic {topic} has {found} partitions, {} are configured: use its number, or \
                     another application name",
                    self.partitions
                )));
            }
        }
        Ok(())
    }

    /// Moves the beginning of the topic partitions to these offsets. Blocks for the time-out.
    pub(super) fn delete_below(&self, offsets: &TopicPartitionList) -> Result<(), String> {
        let deleted = wait(self.client.delete_records(offsets, &options()))
            .ok_or_else(|| "no answer to the request to delete records".to_owned())?
            .map_err(|error| error.to_string())?;
        for element in deleted.elements() {
            element.error().map_err(|error| {
                format!(
                    "{} partition {}: {error}",
                    element.topic(),
                    element.partition()
                )
            })?;
        }
        Ok(())
    }
}

fn options() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(REQUEST_TIMEOUT))
        .operation_timeout(Some(REQUEST_TIMEOUT))
}

/// Runs a future of librdkafka to its end on this thread; `None` if it takes too long.
fn wait<T>(future: impl Future<Output = T>) -> Option<T> {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let deadline = Instant::now() + 2 * REQUEST_TIMEOUT;
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(value);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        std::thread::park_timeout(left);
    }
}

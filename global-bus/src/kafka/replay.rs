//! Reading an application's topics from their marks to their ends, and folding them.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};

use super::KafkaOptions;
use super::client::{Quiet, base_config, with_settings};
use super::mapping;
use super::tracker::Tracker;
use crate::bus::{ReplayError, Replayed};
use crate::codec::Head;
use crate::fold::{Fold, now_unix_ms};
use crate::record::Record;

/// Between two questions to a broker that is coming up.
const RETRY: Duration = Duration::from_millis(100);

/// What a replay has read.
pub(super) struct Found {
    fold: Fold<Record>,
    pub(super) tracker: Tracker,
}

impl Found {
    /// Calls the visitor with what is not finished.
    pub(super) fn hand_out(&self, app: &str, visitor: &mut dyn FnMut(Record)) -> Replayed {
        let mut replayed = Replayed {
            fenced: self.fold.fenced(app),
            ..Replayed::default()
        };
        for live in self.fold.unfinished(app, now_unix_ms()) {
            let count = if live.is_result {
                &mut replayed.results
            } else {
                &mut replayed.messages
            };
            *count += 1;
            visitor(live.location.clone());
        }
        replayed
    }
}

/// Reads all topics of `app`.
pub(super) fn read(options: &KafkaOptions, app: &str) -> Result<Found, ReplayError> {
    let mut config = base_config(options);
    config
        .set("group.id", "sandpipe-replay")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_committed")
        .set("check.crcs", "true")
        .set("fetch.wait.max.ms", "100");
    let config = with_settings(config, options);
    let consumer = config.create_with_context(Quiet);
    let mut reader = Reader {
        consumer: consumer.map_err(|error| failed(app, &error))?,
        options,
        app,
        found: Found {
            fold: Fold::new(),
            tracker: Tracker::new(),
        },
    };
    for (topic, partitions) in reader.topics()? {
        // One topic at a time: the event that a partition has ended does not name its topic.
        reader.read_topic(&topic, partitions)?;
    }
    Ok(reader.found)
}

struct Reader<'a> {
    consumer: BaseConsumer<Quiet>,
    options: &'a KafkaOptions,
    app: &'a str,
    found: Found,
}

impl Reader<'_> {
    /// The topics of the application, each with its number of partitions.
    fn topics(&self) -> Result<Vec<(String, i32)>, ReplayError> {
        let metadata = self
            .consumer
            .fetch_metadata(None, self.options.connect_timeout)
            .map_err(|error| failed(self.app, &error))?;
        let is_ours = |name: &str| {
            name.split_once('.')
                .is_some_and(|(app, grain)| app == self.app && !grain.contains('.'))
        };
        Ok(metadata
            .topics()
            .iter()
            .filter(|topic| is_ours(topic.name()))
            .map(|topic| {
                let partitions = i32::try_from(topic.partitions().len()).unwrap_or(i32::MAX);
                (topic.name().to_owned(), partitions)
            })
            .collect())
    }

    /// The first position and the end of a partition.
    fn watermarks(&self, topic: &str, partition: i32) -> Result<(i64, i64), KafkaError> {
        let timeout = self.options.connect_timeout;
        until_known(timeout, || {
            self.consumer.fetch_watermarks(topic, partition, timeout)
        })
    }

    fn read_topic(&mut self, topic: &str, partitions: i32) -> Result<(), ReplayError> {
        let mut assignment = TopicPartitionList::new();
        // The partitions not read to their ends, each with its end.
        let mut ends: HashMap<i32, i64> = HashMap::new();
        for partition in 0..partitions {
            let (low, high) = self
                .watermarks(topic, partition)
                .map_err(|error| failed(self.app, &error))?;
            self.saw(topic, partition, high);
            if low < high {
                ends.insert(partition, high);
                assignment
                    .add_partition_offset(topic, partition, Offset::Offset(low))
                    .map_err(|error| failed(self.app, &error))?;
            }
        }
        if ends.is_empty() {
            return Ok(());
        }
        self.consumer
            .assign(&assignment)
            .map_err(|error| failed(self.app, &error))?;
        let mut progress = Instant::now();
        while !ends.is_empty() {
            let polled = self.consumer.poll(self.options.connect_timeout);
            match polled {
                Some(Ok(message)) => {
                    progress = Instant::now();
                    let (partition, offset) = (message.partition(), message.offset());
                    let end = ends.get(&partition).copied().unwrap_or(0);
                    if offset < end {
                        fold(&mut self.found, &message)?;
                    }
                    if offset + 1 >= end {
                        ends.remove(&partition);
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    ends.remove(&partition);
                }
                Some(Err(error)) if progress.elapsed() > self.options.connect_timeout => {
                    return Err(failed(self.app, &error));
                }
                Some(Err(error)) => tracing::debug!(%error, topic, "replay goes on"),
                None if progress.elapsed() > self.options.connect_timeout => {
                    let waited = self.options.connect_timeout;
                    return Err(ReplayError::Failed {
                        app: self.app.to_owned(),
                        reason: format!("{topic}: no record within {waited:?}; is Kafka up?"),
                    });
                }
                None => {}
            }
        }
        Ok(())
    }

    /// All records of the topic partition below `end` are going to be read.
    fn saw(&mut self, topic: &str, partition: i32, end: i64) {
        let grain = topic.split_once('.').map_or("", |(_, grain)| grain);
        if let (Ok(partition), Ok(end)) = (u32::try_from(partition), u64::try_from(end)) {
            self.found
                .tracker
                .seen
                .insert((grain.into(), partition), end);
        }
    }
}

fn fold(found: &mut Found, message: &BorrowedMessage<'_>) -> Result<(), ReplayError> {
    // rdkafka panics on a header name that is no UTF-8, and anyone may have written this one.
    let record = catch_unwind(AssertUnwindSafe(|| mapping::record(message)))
        .unwrap_or(Err(mapping::MappingError::Field("header names")))
        .map_err(|error| ReplayError::Unreadable {
            place: format!(
                "{} partition {} offset {}",
                message.topic(),
                message.partition(),
                message.offset()
            ),
            reason: error.to_string(),
        })?;
    let position = u64::try_from(message.offset()).unwrap_or(0);
    let head = Head::of(&record);
    found.tracker.fold.apply(&head, position, (), |()| {});
    let kept = record.clone();
    found.fold.apply(&head, position, kept, drop);
    Ok(())
}

/// Asks until the answer is not one of a broker that has just come up and does not know its
/// partitions yet; for `limit` at most, then its answer is the error.
fn until_known<T>(
    limit: Duration,
    mut ask: impl FnMut() -> Result<T, KafkaError>,
) -> Result<T, KafkaError> {
    let until = Instant::now() + limit;
    loop {
        match ask() {
            Err(error) if is_passing(&error) && Instant::now() < until => {
                std::thread::sleep(RETRY);
            }
            found => return found,
        }
    }
}

/// Whether a partition may be there a moment later.
fn is_passing(error: &KafkaError) -> bool {
    use rdkafka::types::RDKafkaErrorCode::{
        LeaderNotAvailable, NotLeaderForPartition, UnknownPartition, UnknownTopicOrPartition,
    };
    let passing = [
        LeaderNotAvailable,
        NotLeaderForPartition,
        UnknownPartition,
        UnknownTopicOrPartition,
    ];
    let code = error.rdkafka_error_code();
    code.is_some_and(|code| passing.contains(&code))
}

fn failed(app: &str, error: &KafkaError) -> ReplayError {
    ReplayError::Failed {
        app: app.to_owned(),
        reason: format!("{error}; check that Kafka is up and try again"),
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::types::RDKafkaErrorCode::{
        self, LeaderNotAvailable, NotLeaderForPartition, TopicAuthorizationFailed,
        UnknownPartition, UnknownTopicOrPartition,
    };

    use super::*;

    const FAR: Duration = Duration::from_secs(60);

    /// Asks a broker that says this so many times and then answers; what came of it, and how often
    /// it was asked.
    fn ask(
        says: RDKafkaErrorCode,
        times: usize,
        limit: Duration,
    ) -> (Result<(i64, i64), KafkaError>, usize) {
        let mut asked = 0;
        let found = until_known(limit, || {
            asked += 1;
            if asked <= times {
                // As `fetch_watermarks` has it.
                return Err(KafkaError::MetadataFetch(says));
            }
            Ok((3, 7))
        });
        (found, asked)
    }

    #[test]
    fn a_broker_that_does_not_know_its_partitions_yet_is_asked_again() {
        for says in [
            UnknownPartition,
            UnknownTopicOrPartition,
            LeaderNotAvailable,
            NotLeaderForPartition,
        ] {
            assert_eq!(ask(says, 2, FAR), (Ok((3, 7)), 3), "{says:?}");
        }
    }

    #[test]
    fn a_broker_that_never_knows_them_is_an_error_when_the_time_is_up() {
        let unknown = || Err(KafkaError::MetadataFetch(UnknownPartition));
        let never = usize::MAX;
        assert_eq!(ask(UnknownPartition, never, Duration::ZERO), (unknown(), 1));
        let (found, asked) = ask(UnknownPartition, never, 2 * RETRY);
        assert_eq!(found, unknown());
        assert!((2..=3).contains(&asked), "asked {asked} times");
    }

    #[test]
    fn any_other_error_of_a_broker_is_one_at_once() {
        let refused = Err(KafkaError::MetadataFetch(TopicAuthorizationFailed));
        assert_eq!(ask(TopicAuthorizationFailed, 1, FAR), (refused, 1));
    }
}

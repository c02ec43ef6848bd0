//! Kafka's own client in Rust (librdkafka): one message at a time, from one process to another.

use std::sync::atomic::Ordering;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

use crate::clock::{PEER_SILENCE_MAX, die_with_parent, now_ns, spin_until};
use crate::error::BenchError;
use crate::raw::{SharedWords, fork};
use crate::stats::Samples;

/// The topic; made by the broker at its first message.
pub const TOPIC: &str = "sandpipe-bench-5b";
/// Bytes of a message, as over the local bus.
pub const MESSAGE_BYTES: usize = 1024;
/// Pause between two messages: each travels alone, as in the paper ("no load").
pub const PAUSE: Duration = Duration::from_millis(2);
/// Messages of each run that are not counted: connections, first fetches.
const COLD: usize = 50;
/// Messages that warm a fresh broker's JIT compiler.
const WARM_UP: usize = 5_000;

/// Words shared with the two processes.
const CONSUMER_READY: usize = 0;

fn client(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("broker.address.family", "v4")
        .set("socket.nagle.disable", "true");
    config
}

fn producer(bootstrap: &str) -> Result<BaseProducer, KafkaError> {
    client(bootstrap)
        .set("acks", "all")
        .set("linger.ms", "0")
        .create()
}

fn wrong(error: &KafkaError) -> BenchError {
    BenchError::peer("Kafka", error.to_string())
}

/// Whether Kafka's client is built in: it is.
///
/// # Errors
/// None here; a build without the feature `kafka` says so.
pub fn check() -> Result<(), BenchError> {
    Ok(())
}

/// Sends a few thousand messages, so that the topic is there and the broker's hot paths are
/// compiled.
///
/// # Errors
/// If the broker does not take them.
pub fn warm(bootstrap: &str) -> Result<(), BenchError> {
    // In a child, since librdkafka starts threads and the harness must stay without any.
    run_child("Kafka's warm-up", || {
        let producer = producer(bootstrap)?;
        for _ in 0..WARM_UP {
            let record = BaseRecord::<(), [u8]>::to(TOPIC).payload(&[0; MESSAGE_BYTES]);
            producer.send(record).map_err(|(error, _)| error)?;
            producer.poll(Duration::ZERO);
        }
        producer.flush(PEER_SILENCE_MAX)
    })
}

/// Latencies of `count` messages of 1 KiB from just before the producer's send until the consumer
/// has them.
///
/// # Errors
/// If the broker or one of the two processes fails.
pub fn one_way(bootstrap: &str, count: usize) -> Result<Samples, BenchError> {
    let shared = SharedWords::new(1)?;
    let latencies = SharedWords::packed(count)?;
    let run = now_ns();
    let consumer = fork(|| {
        die_with_parent();
        status(
            "consumer",
            consume(bootstrap, run, count, &shared, &latencies),
        )
    })?;
    run_child("Kafka's producer", || {
        produce(bootstrap, run, count, &shared)
    })?;
    match consumer.wait()? {
        Some(0) => {}
        end => {
            return Err(BenchError::peer(
                "Kafka's consumer",
                format!("ended with {end:?}"),
            ));
        }
    }
    Ok((0..count)
        .map(|i| latencies.word(i).load(Ordering::Relaxed))
        .collect())
}

fn run_child(name: &str, body: impl FnOnce() -> Result<(), KafkaError>) -> Result<(), BenchError> {
    let child = fork(|| {
        die_with_parent();
        status(name, body().map_err(|error| wrong(&error)))
    })?;
    match child.wait()? {
        Some(0) => Ok(()),
        end => Err(BenchError::peer(name, format!("ended with {end:?}"))),
    }
}

fn status(name: &str, result: Result<(), BenchError>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("sandpipe-bench: {name}: {error}");
            1
        }
    }
}

/// A message's beginning: stamp, run and index; the run tells it from those of earlier runs.
fn produce(
    bootstrap: &str,
    run: u64,
    count: usize,
    shared: &SharedWords,
) -> Result<(), KafkaError> {
    let producer = producer(bootstrap)?;
    let mut message = [0; MESSAGE_BYTES];
    message[8..16].copy_from_slice(&run.to_le_bytes());
    let ready = || shared.word(CONSUMER_READY).load(Ordering::Acquire) != 0;
    let waited = spin_until("Kafka's consumer", || {
        std::thread::sleep(Duration::from_millis(1));
        ready()
    });
    if waited.is_err() {
        return Err(KafkaError::Canceled);
    }
    for index in 0..(COLD + count) as u64 {
        std::thread::sleep(PAUSE);
        producer.poll(Duration::ZERO);
        message[16..24].copy_from_slice(&index.to_le_bytes());
        message[..8].copy_from_slice(&now_ns().to_le_bytes());
        let record = BaseRecord::<(), [u8]>::to(TOPIC)
            .partition(0)
            .payload(&message);
        producer.send(record).map_err(|(error, _)| error)?;
    }
    producer.flush(PEER_SILENCE_MAX)
}

fn consume(
    bootstrap: &str,
    run: u64,
    count: usize,
    shared: &SharedWords,
    latencies: &SharedWords,
) -> Result<(), BenchError> {
    let consumer: BaseConsumer = client(bootstrap)
        .set("group.id", "sandpipe-bench")
        .set("enable.auto.commit", "false")
        .set("fetch.min.bytes", "1")
        .create()
        .map_err(|e| wrong(&e))?;
    let (_, end) = consumer
        .fetch_watermarks(TOPIC, 0, PEER_SILENCE_MAX)
        .map_err(|e| wrong(&e))?;
    let mut assignment = TopicPartitionList::new();
    assignment
        .add_partition_offset(TOPIC, 0, Offset::Offset(end))
        .and_then(|()| consumer.assign(&assignment))
        .map_err(|e| wrong(&e))?;
    shared.word(CONSUMER_READY).store(1, Ordering::Release);
    let mut left = count;
    while left > 0 {
        let Some(message) = consumer.poll(PEER_SILENCE_MAX) else {
            return Err(BenchError::peer("Kafka", "gave no message for a long time"));
        };
        let now = now_ns();
        let message = message.map_err(|e| wrong(&e))?;
        let Some([stamp, of_run, index]) = message.payload().and_then(beginning) else {
            continue;
        };
        let Some(place) = usize::try_from(index)
            .ok()
            .and_then(|i| i.checked_sub(COLD))
        else {
            continue;
        };
        if of_run == run && place < count {
            latencies
                .word(place)
                .store(now.saturating_sub(stamp).max(1), Ordering::Relaxed);
            left -= 1;
        }
    }
    Ok(())
}

fn beginning(payload: &[u8]) -> Option<[u64; 3]> {
    let word = |i: usize| {
        Some(u64::from_le_bytes(
            payload.get(i * 8..i * 8 + 8)?.try_into().ok()?,
        ))
    };
    Some([word(0)?, word(1)?, word(2)?])
}

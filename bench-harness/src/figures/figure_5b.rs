//! SAND's figure 5b: one message from a process to another on the same host, over the local bus
//! and over Kafka.

use std::sync::atomic::Ordering;
use std::time::Duration;

use sandpipe::Ack;

use super::{FigureKind, Parts, Setting};
use crate::broker::Broker;
use crate::clock::{now_ns, spin_for, spin_until, two_cpus};
use crate::error::BenchError;
use crate::kafka;
use crate::pair::{self, Peer};
use crate::paper;
use crate::probes::wake::{Bell, Cores, SETTLE, one_way};
use crate::python::Python;
use crate::raw::SharedWords;
use crate::report::Unit;
use crate::rounds::Plan;
use crate::stats::Samples;

pub(super) const FIGURE: FigureKind = FigureKind {
    id: "5b",
    title: "Message delivery, one way, 1 KiB",
    source: "SAND, figure 5b",
    measure,
};

/// Bytes of a message; the paper does not say its size.
const MESSAGE_BYTES: usize = 1024;
/// Messages of a round over Kafka, each 2 ms after the one before.
const MESSAGES: usize = 150;
/// Messages of each run that are not counted.
const COLD: usize = 100;

const AWAKE: &str = "local bus, consumer awake";
const PARKED: &str = "local bus, consumer asleep";
const KAFKA: &str = "Kafka, acks=all";

/// Pause between two messages to a consumer that is awake: each travels alone.
const AWAKE_PAUSE: Duration = Duration::from_micros(1);

const SUBSTITUTIONS: [&str; 4] = [
    "Kafka 4 (KRaft) as one warm broker on loopback with one replica, all JIT tiers, for Kafka \
     0.10.1 on three hosts with three replicas",
    "Rust for Java: the paper's values beside Rust rows are those of its Java client",
    "1 KiB a message; the paper does not say the size",
    "the local bus is shared memory read by a consumer that spins or sleeps, without the agent's \
     copy; the paper's is a Java server behind Thrift",
];

fn measure(setting: &Setting<'_>) -> Result<Parts, BenchError> {
    let cpus = two_cpus()?;
    let mut parts = Parts::default();
    parts.substitutions.extend(SUBSTITUTIONS.map(str::to_owned));
    let broker = warm_broker(setting);
    if let Err(error) = &broker {
        parts.notes.push(format!("{KAFKA}: {error}"));
    }
    let mut plan = Plan::default();
    rust_rows(setting, &mut plan, cpus, broker.as_ref().ok());
    if let Err(error) = python_rows(setting, &mut plan, cpus, broker.as_ref().ok()) {
        parts.notes.push(format!("all Python rows: {error}"));
    }
    parts.measure(setting, plan, Unit::Us, paper_ns)?;
    Ok(parts)
}

fn rust_rows<'a>(
    setting: &Setting<'_>,
    plan: &mut Plan<'a>,
    cpus: [usize; 2],
    broker: Option<&'a Broker>,
) {
    let cores = Cores::Pinned(cpus);
    let wakes = setting.profile.samples(300);
    let awake = plan.case(AWAKE, "Rust", setting.profile.samples(3000), move |n| {
        local_one_way(cpus, n, Consumer::Awake)
    });
    let parked = plan.case(PARKED, "Rust", wakes, move |n| {
        local_one_way(cpus, n, Consumer::Asleep)
    });
    let futex = plan.case("futex wake", "floor", wakes, move |n| {
        one_way(Bell::Futex, cores, SETTLE, n)
    });
    let pipe = plan.case("pipe", "floor", wakes, move |n| {
        one_way(Bell::Pipe, cores, SETTLE, n)
    });
    plan.near_block(&[pipe, futex, parked]);
    plan.ratio("5b.parked_over_futex.rust", parked, futex);
    let Some(broker) = broker else {
        return plan.near_block(&[awake]);
    };
    let rust = plan.case(KAFKA, "Rust", setting.profile.samples(MESSAGES), |n| {
        kafka::one_way(broker.bootstrap(), n)
    });
    plan.near_block(&[awake, rust, parked]);
    plan.ratio("5b.kafka_over_local.rust.awake", rust, awake);
    plan.ratio("5b.kafka_over_local.rust.parked", rust, parked);
}

/// Programs of bench-harness/python, whose processes pin themselves.
fn python_rows<'a>(
    setting: &Setting<'_>,
    plan: &mut Plan<'a>,
    cpus: [usize; 2],
    broker: Option<&'a Broker>,
) -> Result<(), BenchError> {
    let python = Python::with(&setting.root, "sandpipe")?;
    let pair = format!("{},{}", cpus[0], cpus[1]);
    let local = move |n: usize, more: &[&str]| {
        let count = n.to_string();
        let arguments = [&["--cpus", &pair, "--count", &count], more].concat();
        python.latencies("local_bus_one_way.py", &arguments)
    };
    let asleep = local.clone();
    let awake = plan.case(AWAKE, "Python", setting.profile.samples(1000), move |n| {
        local(n, &[])
    });
    let parked = plan.case(PARKED, "Python", setting.profile.samples(200), move |n| {
        asleep(n, &["--asleep"])
    });
    let Some(broker) = broker else {
        plan.near_block(&[awake, parked]);
        return Ok(());
    };
    let python = Python::with(&setting.root, "confluent_kafka")?;
    let kafka = plan.case(
        KAFKA,
        "Python",
        setting.profile.samples(MESSAGES),
        move |n| {
            let count = n.to_string();
            let topic = ["--topic", kafka::TOPIC, "--count", &count];
            let arguments = [&["--bootstrap", broker.bootstrap()], &topic[..]].concat();
            python.latencies("kafka_one_way.py", &arguments)
        },
    );
    plan.near_block(&[parked, awake, kafka]);
    plan.ratio("5b.kafka_over_local.python.awake", kafka, awake);
    Ok(())
}

/// A broker whose topic is there and whose hot paths are compiled.
fn warm_broker(setting: &Setting<'_>) -> Result<Broker, BenchError> {
    kafka::check()?;
    setting.progress.doing("starting Kafka");
    let broker = Broker::start(&setting.root)?;
    setting.progress.doing("warming Kafka");
    kafka::warm(broker.bootstrap())?;
    Ok(broker)
}

/// The paper measured Java and Python: Rust, compiled as Java is, stands beside Java.
fn paper_ns(case: &str, series: &str) -> Option<f64> {
    let x = match case {
        AWAKE | PARKED => "Local bus",
        KAFKA if series == "Python" => "Global (Kafka)",
        KAFKA => "Global (Kafka 0.10.1.0 3 hosts 3 replicas)",
        _ => return None,
    };
    paper::mean_ns("5b", if series == "Python" { "Python" } else { "Java" }, x)
}

/// What the consumer does while no message is there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Consumer {
    Awake,
    Asleep,
}

/// Latencies from just before the producer takes a chunk until the consumer has copied the message
/// out of shared memory.
fn local_one_way(
    cpus: [usize; 2],
    count: usize,
    consumer: Consumer,
) -> Result<Samples, BenchError> {
    let turns = COLD + count;
    let shared = SharedWords::new(1)?;
    let acked = shared.word(0);
    let latencies = SharedWords::packed(turns)?;
    let pause = if consumer == Consumer::Awake {
        AWAKE_PAUSE
    } else {
        SETTLE
    };
    let produce = |mut peer: Peer| {
        let mut message = [7_u8; MESSAGE_BYTES];
        for turn in 1..=turns as u64 {
            spin_for(pause);
            message[..8].copy_from_slice(&now_ns().to_le_bytes());
            peer.send_chunk(MESSAGE_BYTES, &message, Ack::NOTHING)?;
            spin_until("the consumer", || acked.load(Ordering::Acquire) == turn)?;
        }
        Ok(())
    };
    let consume = |mut peer: Peer| {
        let mut message = [0_u8; MESSAGE_BYTES];
        for turn in 1..=turns as u64 {
            let (_, place) = match consumer {
                Consumer::Awake => peer.receive_spinning(&mut message)?,
                Consumer::Asleep => peer.receive_parked(&mut message)?,
            };
            let now = now_ns();
            let stamp = u64::from_le_bytes(*message.first_chunk().expect("it has 1024 bytes"));
            let ns = now.saturating_sub(stamp).max(1);
            latencies.word(place_of(turn)).store(ns, Ordering::Relaxed);
            peer.acknowledge(place);
            acked.store(turn, Ordering::Release);
        }
        Ok(())
    };
    pair::run(cpus, produce, consume)?;
    Ok((COLD..turns)
        .map(|i| latencies.word(i).load(Ordering::Relaxed))
        .collect())
}

fn place_of(turn: u64) -> usize {
    usize::try_from(turn - 1).expect("turns come from a usize")
}

//! The bus on a real Apache Kafka: the conformance suite, and what happens when a broker dies.
#![cfg(feature = "kafka")]

mod broker;

use std::time::{Duration, Instant};

use broker::Broker;
use sandpipe_global_bus::conformance::{Subject, WATCHDOG, record, replay, unique_app, wait_until};
use sandpipe_global_bus::{
    AppendError, ConnectError, GlobalBus, Health, KafkaBus, KafkaOptions, Limits, Payload, Record,
    Ticket, conformance_suite,
};

struct Kafka(&'static str);

impl Subject for Kafka {
    fn open(&mut self, limits: Limits) -> Box<dyn GlobalBus> {
        Box::new(open(self.0, limits))
    }
}

fn open(bootstrap: &str, limits: Limits) -> KafkaBus {
    let options = KafkaOptions {
        limits,
        // A busy machine with a single-core broker may take its time.
        connect_timeout: WATCHDOG,
        ..KafkaOptions::new(bootstrap)
    };
    KafkaBus::open(options).unwrap()
}

fn kafka() -> Option<Kafka> {
    Broker::shared().map(Kafka)
}

conformance_suite!(kafka());

#[test]
fn an_absent_kafka_is_an_error_that_says_what_to_do() {
    // Bound and not listening: nobody else can take the port meanwhile, and nobody answers.
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let bootstrap = format!("127.0.0.1:{port}");
    let options = KafkaOptions {
        connect_timeout: Duration::from_millis(500),
        ..KafkaOptions::new(&bootstrap)
    };
    let begin = Instant::now();
    let error = KafkaBus::open(options).unwrap_err();
    assert!(begin.elapsed() < WATCHDOG);
    assert!(
        matches!(error, ConnectError::Unreachable { .. }),
        "{error:?}"
    );
    let text = error.to_string();
    assert!(
        text.contains(&format!("not reachable at {bootstrap}")),
        "{text}"
    );
    assert!(text.contains("scripts/kafka start"), "{text}");
}

#[test]
fn an_unknown_setting_is_an_error() {
    let mut options = KafkaOptions::new("127.0.0.1:1");
    options
        .settings
        .push(("no.such.setting".to_owned(), "1".to_owned()));
    let error = KafkaBus::open(options).unwrap_err();
    assert!(error.to_string().contains("no.such.setting"), "{error}");
}

#[test]
fn a_setting_that_gives_up_acknowledgements_closes_the_bus() {
    let Some(bootstrap) = Broker::shared() else {
        return;
    };
    let app = unique_app("acks");
    let mut options = KafkaOptions::new(bootstrap);
    options.connect_timeout = WATCHDOG;
    for (name, value) in [("enable.idempotence", "false"), ("acks", "0")] {
        options.settings.push((name.to_owned(), value.to_owned()));
    }
    let mut bus = KafkaBus::open(options).unwrap();
    bus.append(&mut vec![record(&app, 1)]).unwrap();
    wait_until("the bus to close", || {
        matches!(bus.health(), Health::Closed { .. })
    });
    assert_eq!(bus.acknowledged(), Ticket(0));
    assert!(matches!(
        bus.append(&mut vec![record(&app, 2)]),
        Err(AppendError::Closed { .. })
    ));
}

#[test]
fn a_payload_of_several_mebibytes_is_carried() {
    let Some(bootstrap) = Broker::shared() else {
        return;
    };
    let app = unique_app("large");
    let mut bus = open(bootstrap, Limits::default());
    let payload = (0..5 << 20).map(|i: u32| (i % 251) as u8).collect();
    let large = Record {
        payload: Payload::Inline(payload),
        ..record(&app, 1)
    };
    bus.append(&mut vec![large.clone()]).unwrap();
    assert!(replay(&mut bus, &app) == [large]);
    bus.close(Instant::now() + WATCHDOG).unwrap();
}

#[test]
fn a_topic_with_another_number_of_partitions_is_named() {
    let Some(bootstrap) = Broker::shared() else {
        return;
    };
    let app = unique_app("partitions");
    let mut bus = open(bootstrap, Limits::default());
    bus.append(&mut vec![record(&app, 1)]).unwrap();
    bus.close(Instant::now() + WATCHDOG).unwrap();
    let two = Limits {
        partitions: 2,
        ..Limits::default()
    };
    let mut bus = open(bootstrap, two);
    bus.append(&mut vec![record(&app, 2)]).unwrap();
    let named = |bus: &KafkaBus| match bus.health() {
        Health::Degraded { reason } => {
            reason.starts_with("topic ") && reason.contains("has 4 partitions, 2 are configured")
        }
        _ => false,
    };
    wait_until("the health to name the topic", || named(&bus));
    assert!(bus.flush(Instant::now()).is_err());
}

/// Appends `count` records numbered from `first`, waiting while the window is full.
fn append_all(bus: &mut KafkaBus, app: &str, first: u128, count: u128) -> Ticket {
    let mut last = Ticket(0);
    let deadline = Instant::now() + 2 * WATCHDOG;
    for number in first..first + count {
        let mut batch = vec![record(app, number)];
        batch[0].partition = u32::try_from(number % 4).unwrap();
        loop {
            match bus.append(&mut batch) {
                Ok(ticket) => break last = ticket,
                Err(AppendError::Full { .. }) => std::thread::sleep(Duration::from_millis(1)),
                Err(error) => panic!("{error}"),
            }
            assert!(
                Instant::now() < deadline,
                "stuck at {number}: {:?}",
                bus.health()
            );
        }
    }
    last
}

#[test]
fn a_broker_killed_and_restarted_under_load_loses_nothing() {
    let Some(mut broker) = Broker::start(1) else {
        return;
    };
    let app = unique_app("killed");
    let mut bus = open(broker.bootstrap(), Limits::default());
    let mut sent = 0;
    for _ in 0..2 {
        let before = append_all(&mut bus, &app, sent + 1, 2000);
        broker.kill(1);
        // Some of these are on their way when the broker dies, the others wait for the next one.
        append_all(&mut bus, &app, sent + 2001, 2000);
        sent += 4000;
        wait_until("the loss of the broker to be noticed", || {
            matches!(bus.health(), Health::Degraded { .. })
        });
        assert!(bus.acknowledged() < Ticket(before.0 + 2000));
        broker.restart();
        bus.flush(Instant::now() + 2 * WATCHDOG).unwrap();
        wait_until("the health to recover", || bus.health() == Health::Healthy);
    }
    bus.close(Instant::now() + WATCHDOG).unwrap();
    let mut bus = open(broker.bootstrap(), Limits::default());
    let mut ids: Vec<u128> = replay(&mut bus, &app)
        .iter()
        .map(|record| record.id.0)
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, (1..=sent).collect::<Vec<_>>());
    // Idempotence: the broker's log holds each record once, also those that were sent again.
    let finish = replay(&mut bus, &app)
        .iter()
        .map(Record::finished)
        .collect::<Vec<_>>();
    bus.append(&mut finish.clone()).unwrap();
    bus.flush(Instant::now() + WATCHDOG).unwrap();
    let records: u64 = bus.marks(&app).iter().map(|mark| mark.position).sum();
    assert_eq!(u128::from(records), 2 * sent);
    bus.close(Instant::now() + WATCHDOG).unwrap();
}

#[test]
fn while_kafka_is_away_the_window_fills_and_then_pushes_back() {
    let Some(mut broker) = Broker::start(1) else {
        return;
    };
    let app = unique_app("away");
    let limits = Limits {
        window_messages: 500,
        ..Limits::default()
    };
    let mut bus = open(broker.bootstrap(), limits);
    append_all(&mut bus, &app, 1, 10);
    bus.flush(Instant::now() + WATCHDOG).unwrap();
    broker.kill(1);
    let mut accepted = 10;
    let full = loop {
        let mut batch = vec![record(&app, accepted + 1)];
        match bus.append(&mut batch) {
            Ok(_) => accepted += 1,
            Err(error) => break error,
        }
        assert!(accepted < 10_000);
    };
    assert!(
        matches!(full, AppendError::Full { messages: 500, .. }),
        "{full:?}"
    );
    assert_eq!(bus.window().messages, 500);
    wait_until("the health to say why", || match bus.health() {
        Health::Degraded { reason } => reason.contains("scripts/kafka start"),
        _ => false,
    });
    let error = bus
        .flush(Instant::now() + Duration::from_millis(50))
        .unwrap_err();
    assert!(error.to_string().contains("500 messages"), "{error}");
    assert!(bus.window().oldest_age >= Duration::from_millis(50));
    broker.restart();
    bus.flush(Instant::now() + 2 * WATCHDOG).unwrap();
    let ids = replay(&mut bus, &app);
    assert_eq!(ids.len() as u128, accepted);
    bus.close(Instant::now() + WATCHDOG).unwrap();
}

#[test]
fn no_broker_outlives_its_owner() {
    let Some((dir, pid)) = Broker::start_for_a_dead_owner() else {
        return;
    };
    assert!(!broker::is_alive(pid));
    wait_until("its directory to be deleted", || !dir.exists());
}

//! What every global bus must do, as tests: an implementation brings a [`Subject`] and calls
//! [`conformance_suite!`](crate::conformance_suite).
//!
//! Each case uses an application name of its own, so that all can run on one broker at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sandpipe_abi::MessageId;

use crate::bus::{GlobalBus, Limits, Ticket};
use crate::fold::now_unix_ms;
use crate::record::{Flag, ObjectRef, Payload, RESULTS, Record, ReplyTo};

mod limits;

pub use limits::{
    a_closed_bus_says_so, a_full_window_pushes_back_and_keeps_the_records,
    an_invalid_record_is_refused_with_all_of_its_append,
    committed_marks_lose_no_unfinished_message, the_mark_is_the_finished_prefix,
};

/// How long a case waits for what takes milliseconds.
pub const WATCHDOG: Duration = Duration::from_secs(30);

/// A place where buses can be opened, one after the other, onto the same records.
pub trait Subject {
    /// Opens the bus. The one opened before has been closed or dropped.
    fn open(&mut self, limits: Limits) -> Box<dyn GlobalBus>;
}

/// Makes one test a case; `$subject` is an expression of type `Option<impl Subject>`, `None` if
/// the machine cannot run it (the expression says why).
#[macro_export]
macro_rules! conformance_suite {
    ($subject:expr) => {
        $crate::conformance_suite!($subject =>
            an_append_is_acknowledged_and_calls_the_waker,
            tickets_rise_and_are_acknowledged_in_order,
            a_replay_gives_every_field_back,
            a_replay_gives_the_newest_record_of_each_unfinished_message_in_order,
            a_replay_sees_what_was_appended_before_it_on_the_same_bus,
            answers_are_replayed_until_they_expire,
            applications_do_not_see_each_other,
            the_records_of_an_older_owner_are_dropped,
            the_mark_is_the_finished_prefix,
            committed_marks_lose_no_unfinished_message,
            a_full_window_pushes_back_and_keeps_the_records,
            an_invalid_record_is_refused_with_all_of_its_append,
            a_closed_bus_says_so,
        );
    };
    ($subject:expr => $($case:ident),+ $(,)?) => {
        $(
            #[test]
            fn $case() {
                if let Some(mut subject) = $subject {
                    $crate::conformance::$case(&mut subject);
                }
            }
        )+
    };
}

/// An application name that no other case and no earlier run has used.
#[must_use]
pub fn unique_app(name: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{name}-{}-{}-{count}", now_unix_ms(), std::process::id())
}

/// An acknowledgement moves `acknowledged` and is announced.
pub fn an_append_is_acknowledged_and_calls_the_waker(subject: &mut dyn Subject) {
    let app = unique_app("waker");
    let mut bus = subject.open(Limits::default());
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&calls);
    bus.set_waker(Arc::new(move || {
        counter.fetch_add(1, Ordering::Release);
    }));
    bus.prepare(&app, &["grain"]).unwrap();
    assert_eq!(bus.acknowledged(), Ticket(0));
    assert_eq!(bus.append(&mut Vec::new()).unwrap(), Ticket(0));
    let ticket = append(&mut *bus, record(&app, 1));
    wait_until("the acknowledgement", || bus.acknowledged() >= ticket);
    wait_until("the waker", || calls.load(Ordering::Acquire) > 0);
    assert_eq!(bus.window().messages, 0);
    assert_eq!(bus.window().bytes, 0);
    close(bus);
}

/// Tickets are consecutive, acknowledgements never run backwards or ahead.
pub fn tickets_rise_and_are_acknowledged_in_order(subject: &mut dyn Subject) {
    let app = unique_app("tickets");
    let mut bus = subject.open(Limits::default());
    let mut last = Ticket(0);
    let mut acknowledged = Ticket(0);
    for number in 1..=200 {
        let mut batch: Vec<Record> = (0..3).map(|i| record(&app, number * 3 + i)).collect();
        for (record, partition) in batch.iter_mut().zip(0..) {
            record.partition = partition;
        }
        let ticket = bus.append(&mut batch).unwrap();
        assert!(batch.is_empty());
        assert_eq!(ticket, Ticket(last.0 + 1));
        last = ticket;
        let now = bus.acknowledged();
        assert!(
            acknowledged <= now && now <= last,
            "{acknowledged:?} {now:?} {last:?}"
        );
        acknowledged = now;
    }
    flush(&mut *bus);
    assert_eq!(bus.acknowledged(), last);
    assert_eq!(replay(&mut *bus, &app).len(), 600);
    close(bus);
}

/// What goes in comes out, after a restart.
pub fn a_replay_gives_every_field_back(subject: &mut dyn Subject) {
    let app = unique_app("fields");
    let object = |name: &str| ObjectRef {
        name: name.to_owned(),
        size: u64::MAX - 1,
        hash: std::array::from_fn(|index| u8::try_from(index * 7).unwrap()),
    };
    let full = Record {
        root: MessageId(u128::MAX),
        parent: MessageId(5),
        partition: 3,
        flag: Flag::Data(object("an output")),
        attempt: 4,
        deadline_unix_ms: 1_800_000_000_123,
        epoch: 6,
        workflow: Arc::from([0, 1, 0xff]),
        reply_to: Some(ReplyTo {
            front_door: "door-a.example".into(),
            partition: 8,
        }),
        content_type: "application/json; charset=utf-8".into(),
        traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
        attributes: Arc::new([
            ("id".to_owned(), "1".to_owned()),
            ("source".to_owned(), "/ä".to_owned()),
            ("emptyext".to_owned(), String::new()),
        ]),
        payload: Payload::Inline((0..=255).collect()),
        ..record(&app, 1)
    };
    let mut by_reference = record(&app, 2);
    by_reference.payload = Payload::Reference(object("a payload"));
    by_reference.partition = 3;
    let mut empty = record(&app, 3);
    empty.payload = Payload::Inline(Vec::new());
    empty.partition = 3;
    let sent = vec![full, by_reference, empty];
    let mut bus = subject.open(Limits::default());
    bus.append(&mut sent.clone()).unwrap();
    close(bus);
    let mut bus = subject.open(Limits::default());
    assert_eq!(replay(&mut *bus, &app), sent);
    close(bus);
}

/// Folding: the newest flag counts, tombstones end a message, order is kept.
pub fn a_replay_gives_the_newest_record_of_each_unfinished_message_in_order(
    subject: &mut dyn Subject,
) {
    let app = unique_app("fold");
    let mut bus = subject.open(Limits::default());
    for number in 1..=40 {
        append(&mut *bus, record(&app, number));
    }
    for number in (1..=40).filter(|number| number % 3 == 0) {
        append(&mut *bus, record(&app, number).finished());
    }
    let mut again = record(&app, 10);
    again.attempt = 1;
    append(&mut *bus, again);
    close(bus);
    let mut bus = subject.open(Limits::default());
    let found = replay(&mut *bus, &app);
    let mut expected: Vec<u128> = (1..=40).filter(|n| n % 3 != 0 && *n != 10).collect();
    expected.push(10);
    let ids: Vec<u128> = found.iter().map(|record| record.id.0).collect();
    assert_eq!(ids, expected);
    assert_eq!(found.last().unwrap().attempt, 1);
    // What was finished may be sent again by hand.
    append(&mut *bus, record(&app, 3));
    flush(&mut *bus);
    let ids: Vec<u128> = replay(&mut *bus, &app)
        .iter()
        .map(|record| record.id.0)
        .collect();
    expected.push(3);
    assert_eq!(ids, expected);
    close(bus);
}

/// A replay is not only for the beginning.
pub fn a_replay_sees_what_was_appended_before_it_on_the_same_bus(subject: &mut dyn Subject) {
    let app = unique_app("live");
    let mut bus = subject.open(Limits::default());
    assert!(replay(&mut *bus, &app).is_empty());
    append(&mut *bus, record(&app, 1));
    append(&mut *bus, record(&app, 2));
    append(&mut *bus, record(&app, 1).finished());
    flush(&mut *bus);
    assert_eq!(replay(&mut *bus, &app), [record(&app, 2)]);
    close(bus);
}

/// Answers have a time to live; one has the same id as its root message.
pub fn answers_are_replayed_until_they_expire(subject: &mut dyn Subject) {
    let app = unique_app("answers");
    let answer = |number, deadline_unix_ms| Record {
        grain: RESULTS.into(),
        deadline_unix_ms,
        ..record(&app, number)
    };
    let mut bus = subject.open(Limits::default());
    append(&mut *bus, record(&app, 1));
    append(&mut *bus, answer(1, now_unix_ms() + 3_600_000));
    append(&mut *bus, answer(2, now_unix_ms() - 1));
    append(&mut *bus, answer(3, 0));
    append(&mut *bus, answer(4, 0));
    append(&mut *bus, answer(4, 0).finished());
    append(&mut *bus, record(&app, 1).finished());
    close(bus);
    let mut bus = subject.open(Limits::default());
    let mut found = Vec::new();
    let replayed = bus.replay(&app, &mut |record| found.push(record)).unwrap();
    assert_eq!((replayed.messages, replayed.results), (0, 2));
    assert!(found.iter().all(Record::is_result));
    let ids: Vec<u128> = found.iter().map(|record| record.id.0).collect();
    assert_eq!(ids, [1, 3]);
    close(bus);
}

/// One application's name may be the beginning of another's.
pub fn applications_do_not_see_each_other(subject: &mut dyn Subject) {
    let app = unique_app("apps");
    let longer = format!("{app}-2");
    let mut bus = subject.open(Limits::default());
    append(&mut *bus, record(&app, 1));
    append(&mut *bus, record(&longer, 2));
    flush(&mut *bus);
    assert_eq!(replay(&mut *bus, &app), [record(&app, 1)]);
    assert_eq!(replay(&mut *bus, &longer), [record(&longer, 2)]);
    assert!(replay(&mut *bus, "no-such-app").is_empty());
    close(bus);
}

/// Fencing: after a newer epoch an older one's records do not count, a front door's always.
pub fn the_records_of_an_older_owner_are_dropped(subject: &mut dyn Subject) {
    let app = unique_app("fence");
    let of = |number, epoch| Record {
        epoch,
        ..record(&app, number)
    };
    let mut bus = subject.open(Limits::default());
    append(&mut *bus, of(1, 1));
    append(&mut *bus, of(2, 2));
    append(&mut *bus, of(3, 1));
    append(&mut *bus, of(2, 1).finished());
    append(&mut *bus, of(4, 0));
    append(&mut *bus, of(1, 2).finished());
    close(bus);
    let mut bus = subject.open(Limits::default());
    let mut ids = Vec::new();
    let replayed = bus
        .replay(&app, &mut |record| ids.push(record.id.0))
        .unwrap();
    assert_eq!(ids, [2, 4]);
    assert_eq!(replayed.fenced, 2);
    close(bus);
}

/// Message `number` of `app`, for the grain `grain` at index 0.
#[must_use]
pub fn record(app: &str, number: u128) -> Record {
    let payload = format!("payload {number}").into_bytes();
    Record::new(MessageId(number), app, "grain", payload)
}

/// All that a replay of `app` gives.
///
/// # Panics
/// If the replay fails.
pub fn replay(bus: &mut dyn GlobalBus, app: &str) -> Vec<Record> {
    let mut found = Vec::new();
    let replayed = bus.replay(app, &mut |record| found.push(record)).unwrap();
    assert_eq!(replayed.messages + replayed.results, found.len() as u64);
    found
}

/// Polls `condition` until it holds.
///
/// # Panics
/// If it does not within [`WATCHDOG`].
pub fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + WATCHDOG;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {WATCHDOG:?} for {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn append(bus: &mut dyn GlobalBus, record: Record) -> Ticket {
    bus.append(&mut vec![record]).unwrap()
}

fn flush(bus: &mut dyn GlobalBus) {
    bus.flush(Instant::now() + WATCHDOG).unwrap();
}

fn close(mut bus: Box<dyn GlobalBus>) {
    bus.close(Instant::now() + WATCHDOG).unwrap();
}

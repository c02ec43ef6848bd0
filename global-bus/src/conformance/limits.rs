//! The cases about marks, back pressure, refusals and the end.

use std::time::Instant;

use sandpipe_abi::MessageId;

use super::{Subject, WATCHDOG, append, close, flush, record, replay, unique_app, wait_until};
use crate::bus::{AppendError, GlobalBus, Limits};
use crate::record::{InvalidRecord, Payload, Record};

/// The mark moves over finished messages only as far as there is no gap.
pub fn the_mark_is_the_finished_prefix(subject: &mut dyn Subject) {
    let app = unique_app("mark");
    let mut bus = subject.open(Limits::default());
    replay(&mut *bus, &app);
    for number in 1..=5 {
        append(&mut *bus, record(&app, number));
        flush(&mut *bus);
    }
    let mark = |bus: &dyn GlobalBus| {
        let marks = bus.marks(&app);
        assert_eq!(marks.len(), 1, "{marks:?}");
        (marks[0].position, marks[0].unfinished)
    };
    let (start, unfinished) = mark(&*bus);
    assert_eq!(unfinished, 5);
    append(&mut *bus, record(&app, 2).finished());
    flush(&mut *bus);
    assert_eq!(mark(&*bus), (start, 4));
    append(&mut *bus, record(&app, 1).finished());
    flush(&mut *bus);
    assert_eq!(mark(&*bus), (start + 2, 3));
    for number in 3..=5 {
        append(&mut *bus, record(&app, number).finished());
    }
    flush(&mut *bus);
    assert_eq!(mark(&*bus), (start + 10, 0));
    close(bus);
}

/// After a commit the past may be forgotten, the present not.
pub fn committed_marks_lose_no_unfinished_message(subject: &mut dyn Subject) {
    let app = unique_app("commit");
    let mut bus = subject.open(Limits::default());
    replay(&mut *bus, &app);
    for number in 1..=300 {
        append(&mut *bus, record(&app, number));
        if number % 100 != 0 {
            append(&mut *bus, record(&app, number).finished());
        }
        if number % 40 == 0 {
            flush(&mut *bus);
            bus.commit_marks().unwrap();
        }
    }
    flush(&mut *bus);
    bus.commit_marks().unwrap();
    close(bus);
    for _ in 0..2 {
        let mut bus = subject.open(Limits::default());
        let ids: Vec<u128> = replay(&mut *bus, &app)
            .iter()
            .map(|record| record.id.0)
            .collect();
        assert_eq!(ids, [100, 200, 300]);
        bus.commit_marks().unwrap();
        close(bus);
    }
}

/// Back pressure: a refused append leaves its records, and nothing is lost when tried again.
pub fn a_full_window_pushes_back_and_keeps_the_records(subject: &mut dyn Subject) {
    let app = unique_app("full");
    let limits = Limits {
        window_messages: 8,
        ..Limits::default()
    };
    let mut bus = subject.open(limits);
    let mut refused = 0;
    let mut number = 0;
    let deadline = Instant::now() + WATCHDOG;
    while refused < 20 || number < 400 {
        assert!(Instant::now() < deadline, "refused {refused} of {number}");
        let mut batch: Vec<Record> = (1..=4).map(|i| record(&app, number + i)).collect();
        match bus.append(&mut batch) {
            Ok(_) => number += 4,
            Err(AppendError::Full { messages, .. }) => {
                assert!((5..=8).contains(&messages), "{messages}");
                assert_eq!(batch.len(), 4);
                refused += 1;
                wait_until("room", || bus.window().messages == 0);
            }
            Err(error) => panic!("{error}"),
        }
    }
    close(bus);
    let mut bus = subject.open(Limits::default());
    let ids: Vec<u128> = replay(&mut *bus, &app)
        .iter()
        .map(|record| record.id.0)
        .collect();
    assert_eq!(ids, (1..=number).collect::<Vec<_>>());
    close(bus);
}

/// All or nothing, and the error names what is wrong.
pub fn an_invalid_record_is_refused_with_all_of_its_append(subject: &mut dyn Subject) {
    let app = unique_app("invalid");
    let good = record(&app, 1);
    let large = Record {
        payload: Payload::Inline(vec![0; 2000]),
        ..good.clone()
    };
    let wrong = [
        (
            Record {
                app: "a.b".into(),
                ..good.clone()
            },
            "application name \"a.b\"",
        ),
        (
            Record {
                grain: "".into(),
                ..good.clone()
            },
            "grain name \"\"",
        ),
        (
            Record {
                id: MessageId::NONE,
                ..good.clone()
            },
            "has no id",
        ),
        (
            Record {
                partition: 4,
                ..good.clone()
            },
            "has 4 partitions",
        ),
        (large, "over the limit of 1000 bytes"),
    ];
    let limits = Limits {
        record_bytes: 1000,
        partitions: 4,
        ..Limits::default()
    };
    let mut bus = subject.open(limits);
    for (bad, message) in wrong {
        let mut batch = vec![good.clone(), bad];
        let error = bus.append(&mut batch).unwrap_err();
        assert!(matches!(error, AppendError::Invalid(_)), "{error:?}");
        assert!(error.to_string().contains(message), "{error}");
        assert_eq!(batch.len(), 2);
    }
    assert!(matches!(
        bus.prepare("a b", &["grain"]),
        Err(crate::PrepareError::Invalid(InvalidRecord::Name { .. }))
    ));
    flush(&mut *bus);
    assert!(replay(&mut *bus, &app).is_empty());
    close(bus);
}

/// After `close` nothing is taken, and closing again is harmless.
pub fn a_closed_bus_says_so(subject: &mut dyn Subject) {
    let app = unique_app("closed");
    let mut bus = subject.open(Limits::default());
    append(&mut *bus, record(&app, 1));
    bus.close(Instant::now() + WATCHDOG).unwrap();
    bus.close(Instant::now() + WATCHDOG).unwrap();
    let mut batch = vec![record(&app, 2)];
    let error = bus.append(&mut batch).unwrap_err();
    assert!(matches!(error, AppendError::Closed { .. }), "{error:?}");
    assert_eq!(batch.len(), 1);
    assert!(matches!(bus.health(), crate::Health::Closed { .. }));
    assert!(bus.prepare(&app, &["grain"]).is_err());
    assert!(bus.commit_marks().is_err());
    drop(bus);
    let mut bus = subject.open(Limits::default());
    assert_eq!(replay(&mut *bus, &app), [record(&app, 1)]);
    close(bus);
}

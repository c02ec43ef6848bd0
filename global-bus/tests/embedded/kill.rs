//! SIGKILL while a process appends, and the lock that dies with its holder.

use std::collections::BTreeSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::path::Path;
use std::time::Duration;

use sandpipe_abi::MessageId;
use sandpipe_global_bus::{
    EmbeddedBus, EmbeddedOptions, GlobalBus, OpenError, Record, Ticket, conformance,
};

use crate::child::Running;

/// Appends that the child has on their way at most.
const PIPELINE: u64 = 40;

/// Each tenth message is never finished; the others are, in the append this much later.
const LATER: u64 = 20;

fn open(dir: &Path) -> EmbeddedBus {
    let options = EmbeddedOptions {
        segment_bytes: 16 << 10,
        linger: Duration::from_micros(200),
        ..EmbeddedOptions::default()
    };
    EmbeddedBus::open(dir, options).unwrap().0
}

fn message(app: &str, number: u64) -> Record {
    Record::new(MessageId(number.into()), app, "grain", vec![1; 100])
}

fn is_finished_later(number: u64) -> bool {
    !number.is_multiple_of(10)
}

/// The child: append number n holds message n and the end of message n - LATER. Prints each
/// acknowledged ticket, which is the number of the append.
pub fn append_for_ever(dir: &Path, app: &str) {
    let mut bus = open(dir);
    let mut printed = 0;
    // The test harness has begun a line of its own.
    println!();
    for number in 1.. {
        let mut records = vec![message(app, number)];
        if number > LATER && is_finished_later(number - LATER) {
            records.push(message(app, number - LATER).finished());
        }
        assert_eq!(bus.append(&mut records).unwrap(), Ticket(number));
        if number.is_multiple_of(100) {
            bus.commit_marks().unwrap();
        }
        loop {
            let acknowledged = bus.acknowledged().0;
            if acknowledged > printed {
                println!("acknowledged {acknowledged}");
                printed = acknowledged;
            }
            if number - acknowledged < PIPELINE {
                break;
            }
            std::thread::yield_now();
        }
    }
}

/// The child that only has the log.
pub fn hold(dir: &Path) {
    let _bus = open(dir);
    // The test harness has begun a line of its own.
    println!("\nopen 1");
    std::thread::sleep(conformance::WATCHDOG);
}

/// Checks that a replay has all that the acknowledged appends 1..=`acknowledged` say.
fn check(dir: &Path, app: &str, acknowledged: u64) {
    let mut bus = open(dir);
    let found: BTreeSet<u128> = conformance::replay(&mut bus, app)
        .iter()
        .map(|record| record.id.0)
        .collect();
    for number in 1..=acknowledged {
        let finished_by = number + LATER;
        let expected = if !is_finished_later(number) {
            true
        } else if finished_by <= acknowledged {
            false
        } else {
            continue; // Its end may have been written and not acknowledged.
        };
        let is_there = found.contains(&number.into());
        assert_eq!(
            is_there, expected,
            "{app}: message {number} of {acknowledged}"
        );
    }
    // Appended and not acknowledged: a prefix of them may be there, and no more.
    let last = found.last().copied().unwrap_or(0);
    assert!(
        last <= u128::from(acknowledged + 2 * PIPELINE),
        "{app}: invented {last}"
    );
    let last = u64::try_from(last).unwrap();
    for number in acknowledged + 1..last {
        if is_finished_later(number) && number + LATER <= last {
            continue;
        }
        assert!(
            found.contains(&number.into()),
            "{app}: hole at {number}, the last is {last}"
        );
    }
}

#[test]
fn a_process_killed_at_a_random_time_loses_no_acknowledged_record() {
    let kills = if std::env::var_os("SANDPIPE_FULL").is_some() {
        1000
    } else {
        50
    };
    let dir = tempfile::tempdir().unwrap();
    let random = RandomState::new();
    for kill in 0..kills {
        let app = format!("kill-{kill}");
        let mut child = Running::start("append", dir.path(), &app);
        let mut acknowledged = child.next("acknowledged").expect("the child begins");
        std::thread::sleep(Duration::from_micros(random.hash_one(kill) % 30_000));
        child.kill();
        while let Some(more) = child.next("acknowledged") {
            assert!(more > acknowledged);
            acknowledged = more;
        }
        check(dir.path(), &app, acknowledged);
    }
}

#[test]
fn a_second_opener_is_told_who_has_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut holder = Running::start("hold", dir.path(), "");
    holder.next("open").expect("the child begins");
    let error = EmbeddedBus::open(dir.path(), EmbeddedOptions::default()).unwrap_err();
    assert!(matches!(error, OpenError::Locked { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(&format!("process {}", holder.id())), "{text}");
    assert!(text.contains(&dir.path().display().to_string()), "{text}");
    holder.kill();
    drop(open(dir.path()));
}

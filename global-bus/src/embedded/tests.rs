//! The log on a disk that fails at each of its operations.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use sandpipe_abi::MessageId;

use super::fault::{Fault, SimDisk};
use super::frame::{FRAME_HEADER_BYTES, SEGMENT_HEADER_BYTES, SYNCED_BYTES};
use super::log::{Group, Log};
use super::*;

/// So small that the workload crosses segments and deletes some.
const SEGMENT_BYTES: u64 = 700;

/// What a caller of the log has been told.
#[derive(Default)]
struct Told {
    /// For each message: is it unfinished, by the acknowledged records?
    unfinished: BTreeMap<u128, bool>,
    /// Messages with a record that was not acknowledged: both answers are right.
    unknown: BTreeSet<u128>,
}

impl Told {
    /// Checks a log that was opened after a crash.
    fn check(&self, log: &Log<SimDisk>, place: &str) {
        let mut found = BTreeSet::new();
        let mut visit = |record: Record| {
            assert!(found.insert(record.id.0), "{place}: {} twice", record.id);
        };
        log.replay("app", 0, &mut visit).unwrap();
        for (id, unfinished) in &self.unfinished {
            if !self.unknown.contains(id) {
                assert_eq!(found.contains(id), *unfinished, "{place}: message {id}");
            }
        }
        let known = |id: &u128| self.unfinished.contains_key(id) || self.unknown.contains(id);
        assert!(found.iter().all(known), "{place}: invented {found:?}");
    }
}

/// The records of step `step`: a new message, and the end of the one of three steps before; each
/// tenth ends twenty steps late.
fn step_records(step: u128) -> Vec<Record> {
    let message = |step| Record::new(MessageId(step + 1), "app", "grain", vec![7; 40]);
    let mut records = vec![message(step)];
    if step >= 3 && step % 10 != 7 {
        records.push(message(step - 3).finished());
    }
    if step >= 27 && step % 10 == 7 {
        records.push(message(step - 23).finished());
    }
    records
}

/// Opens a log and works with it until the end or the crash; a failed write is tried again.
fn work(disk: &SimDisk, steps: u128) -> Told {
    let mut told = Told::default();
    let Ok((mut log, _)) = Log::open(disk.clone(), SEGMENT_BYTES) else {
        return told;
    };
    let mut group = Group::new();
    for step in 0..steps {
        let records = step_records(step);
        for (record, sequence) in records.iter().zip(log.next..) {
            group.push(sequence, record);
            told.unknown.insert(record.id.0);
        }
        let mut tries = 0;
        while let Err(error) = log.write(&mut group) {
            tries += 1;
            if disk.has_crashed() {
                return told;
            }
            assert!(tries < 10, "step {step}: {error}");
        }
        group.clear();
        for record in &records {
            told.unknown.remove(&record.id.0);
            told.unfinished
                .insert(record.id.0, record.flag != crate::Flag::Finished);
        }
        if step % 5 == 4 {
            // A failure leaves a segment for the next time.
            let _ = log.retain(0);
        }
    }
    let _ = log.seal();
    told
}

/// The number of operations of an undisturbed run.
fn operations(steps: u128) -> u64 {
    let disk = SimDisk::default();
    let told = work(&disk, steps);
    assert!(told.unknown.is_empty());
    assert!(disk.names().len() > 2, "{:?}", disk.names());
    assert!(
        !disk.names().contains(&log::segment_name(0)),
        "nothing was deleted"
    );
    disk.operations()
}

#[test]
fn a_crash_at_any_operation_loses_no_acknowledged_record() {
    let steps = 40;
    for at in 0..operations(steps) {
        let disk = SimDisk::default();
        disk.plan(at, Fault::Crash);
        let told = work(&disk, steps);
        assert!(disk.has_crashed());
        for seed in 0..12 {
            let place = format!("crash at operation {at}, seed {seed}");
            let rebooted = disk.reboot(seed);
            let opened = Log::open(rebooted.clone(), SEGMENT_BYTES);
            let (log, _) = opened.unwrap_or_else(|error| panic!("{place}: {error}"));
            told.check(&log, &place);
        }
    }
}

#[test]
fn what_a_reopened_log_has_shown_survives_a_power_loss() {
    let shown = |log: &Log<SimDisk>| {
        let mut ids = Vec::new();
        log.replay("app", 0, &mut |record| ids.push(record.id))
            .unwrap();
        ids
    };
    for at in 0..operations(40) {
        let disk = SimDisk::default();
        disk.plan(at, Fault::Crash);
        let told = work(&disk, 40);
        disk.revive();
        let (log, _) = Log::open(disk.clone(), SEGMENT_BYTES).unwrap();
        told.check(&log, &format!("process killed at operation {at}"));
        for seed in 0..4 {
            let (again, _) = Log::open(disk.reboot(seed), SEGMENT_BYTES).unwrap();
            assert_eq!(
                shown(&again),
                shown(&log),
                "killed at operation {at}, seed {seed}"
            );
        }
    }
}

#[test]
fn a_crash_while_a_log_is_opened_loses_nothing_either() {
    let steps = 12;
    for at in (0..operations(40).min(90)).step_by(3) {
        let disk = SimDisk::default();
        disk.plan(at, Fault::Crash);
        let told = work(&disk, steps);
        for seed in 0..4 {
            let first = disk.reboot(seed);
            for second in 0.. {
                let rebooted = first.reboot(seed + 50);
                rebooted.plan(second, Fault::Crash);
                let opened = Log::open(rebooted.clone(), SEGMENT_BYTES);
                if opened.is_ok() {
                    break;
                }
                let (log, _) = Log::open(rebooted.reboot(second), SEGMENT_BYTES).unwrap();
                told.check(
                    &log,
                    &format!("crash at {at}, seed {seed}, again at {second}"),
                );
            }
        }
    }
}

#[test]
fn an_error_at_any_operation_delays_records_and_loses_none() {
    let steps = 40;
    for fault in [Fault::Io, Fault::DiskFull] {
        for at in 2..operations(steps) {
            let disk = SimDisk::default();
            disk.plan(at, fault);
            let told = work(&disk, steps);
            assert!(told.unknown.is_empty(), "{fault:?} at {at}");
            for seed in 0..4 {
                let place = format!("{fault:?} at operation {at}, seed {seed}");
                let opened = Log::open(disk.reboot(seed), SEGMENT_BYTES);
                let (log, _) = opened.unwrap_or_else(|error| panic!("{place}: {error}"));
                told.check(&log, &place);
            }
        }
    }
}

#[test]
fn the_bus_reports_a_fault_pushes_back_and_goes_on_by_itself() {
    let options = || EmbeddedOptions {
        limits: Limits {
            window_messages: 4,
            ..Limits::default()
        },
        segment_bytes: SEGMENT_BYTES,
        linger: Duration::ZERO,
    };
    let patience = || Instant::now() + Duration::from_secs(30);
    for fault in [Fault::Io, Fault::DiskFull] {
        for at in 0..6 {
            let disk = SimDisk::default();
            let (log, _) = Log::open(disk.clone(), SEGMENT_BYTES).unwrap();
            disk.plan(at, fault);
            let mut bus = EmbeddedBus::start(log, options(), "/sim".to_owned(), None).unwrap();
            let mut acknowledged = 0;
            for step in 0..8 {
                bus.append(&mut step_records(step)).unwrap();
                bus.flush(patience()).unwrap();
                acknowledged += 1;
                assert_eq!(bus.acknowledged(), Ticket(acknowledged));
            }
            assert_eq!(bus.health(), Health::Healthy);
            bus.close(patience()).unwrap();
            let (log, report) = Log::open(disk.reboot(at), SEGMENT_BYTES).unwrap();
            assert_eq!(
                log.replay("app", 0, &mut |_| {}).unwrap().messages,
                4,
                "{fault:?} {at}"
            );
            assert!(report.cut.is_none(), "{fault:?} {at}: {report:?}");
        }
    }
}

/// A log of three groups in one sealed segment; returns where the second group begins.
fn three_groups() -> (SimDisk, usize) {
    let disk = SimDisk::default();
    let (mut log, _) = Log::open(disk.clone(), 1 << 20).unwrap();
    let mut second = 0;
    for step in 0..3 {
        let mut group = Group::new();
        group.push(log.next, &step_records(step)[0]);
        if step == 1 {
            second = usize::try_from(log.segments[0].bytes).unwrap();
        }
        log.write(&mut group).unwrap();
    }
    log.seal().unwrap();
    (disk, second)
}

#[test]
fn damage_to_an_acknowledged_record_is_an_error_with_file_and_offset() {
    let (whole, second) = three_groups();
    let record = second + SYNCED_BYTES;
    let length = whole.length("00000000000000000000.log");
    for at in SEGMENT_HEADER_BYTES..length {
        let disk = whole.reboot(1);
        disk.damage("00000000000000000000.log", |bytes| bytes[at] ^= 0x10);
        match Log::open(disk, 1 << 20) {
            Err(OpenError::Corrupt { file, offset, .. }) => {
                assert_eq!(file, std::path::Path::new("/sim/00000000000000000000.log"));
                let offset = usize::try_from(offset).unwrap();
                assert!(offset <= at && at < offset + 300, "{at}: {offset}");
            }
            // Only the seal itself and the record frames' own synced frames can be spared.
            Ok((log, report)) => {
                assert_eq!(log.next, 3, "{at}");
                assert!(report.cut.is_some(), "{at}");
            }
            Err(error) => panic!("{at}: {error}"),
        }
    }
    whole.damage("00000000000000000000.log", |bytes| {
        bytes[record + FRAME_HEADER_BYTES] ^= 1
    });
    let error = Log::open(whole, 1 << 20).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains(&format!("damaged at byte {record}")),
        "{text}"
    );
    assert!(text.contains("restore the file"), "{text}");
}

#[test]
fn a_torn_end_is_cut_and_reported() {
    let disk = SimDisk::default();
    let (mut log, _) = Log::open(disk.clone(), 1 << 20).unwrap();
    let mut group = Group::new();
    group.push(0, &step_records(0)[0]);
    log.write(&mut group).unwrap();
    let intact = log.segments[0].bytes;
    drop(log);
    disk.damage("00000000000000000000.log", |bytes| {
        bytes.extend_from_slice(&[3; 77])
    });
    let (log, report) = Log::open(disk.clone(), 1 << 20).unwrap();
    let cut = report.cut.unwrap();
    assert_eq!((cut.offset, cut.bytes), (intact, 77));
    assert_eq!(log.next, 1);
    drop(log);
    let (_, report) = Log::open(disk, 1 << 20).unwrap();
    assert_eq!(report.cut, None);
    assert_eq!(
        (report.segments, report.records, report.unfinished),
        (1, 1, 1)
    );
}

#[test]
fn a_missing_segment_is_an_error() {
    let disk = SimDisk::default();
    work(&disk, 40);
    let names = disk.names();
    disk.clone().remove(&names[1]).unwrap();
    let error = Log::open(disk, SEGMENT_BYTES).unwrap_err();
    assert!(error.to_string().contains("damaged or missing"), "{error}");
}

#[test]
fn a_segment_of_a_newer_build_is_refused_by_its_version() {
    let (disk, _) = three_groups();
    disk.damage("00000000000000000000.log", |bytes| {
        bytes[8] = 2;
        let checksum = crc32c::crc32c(&bytes[..28]);
        bytes[28..32].copy_from_slice(&checksum.to_le_bytes());
    });
    let error = Log::open(disk, 1 << 20).unwrap_err();
    assert!(
        matches!(error, OpenError::Version { found: 2, .. }),
        "{error}"
    );
}

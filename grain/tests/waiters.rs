//! A worker waits for its queue, its children, its line and its clock through each waiter.

mod sandbox;

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use rustix::process::{Signal, kill_process};
use sandbox::{Sandbox, chain, is_alive, pid_of, settings};
use sandpipe::wait::{Loop, WaiterKind};
use sandpipe::{FailureCode, Kind};
use sandpipe_grain::{Mode, WorkerConfig};

const MODES: [(Mode, u16); 3] = [(Mode::Fork, 0), (Mode::Fork, 2), (Mode::Pool, 0)];

/// Each waiter that this machine has, in each mode.
fn each(mut test: impl FnMut(WaiterKind, Mode, u16)) {
    for kind in WaiterKind::ALL {
        if let Err(error) = kind.open(Loop::Own) {
            eprintln!("SKIP workers that wait through {}: {error}", kind.name());
            continue;
        }
        for (mode, spares) in MODES {
            test(kind, mode, spares);
        }
    }
}

fn start(length: u16, like: &WorkerConfig, kind: WaiterKind) -> Sandbox {
    Sandbox::start_with(chain(length, like), &[], Some(kind))
}

fn has_ring(pid: i32) -> bool {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    maps.contains("io_uring")
}

fn has_watchman(pid: i32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    tasks
        .filter_map(|task| fs::read_to_string(task.path().join("comm")).ok())
        .any(|name| name.trim() == "sandpipe-wait")
}

/// What a process waits on that it did not get as its standard descriptors.
fn waits_on(pid: i32) -> Vec<String> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let links = links.filter_map(|fd| {
        let number: i32 = fd.file_name().to_str()?.parse().ok()?;
        Some((number, fs::read_link(fd.path()).ok()?))
    });
    links
        .filter(|&(number, _)| number > 2)
        .map(|(_, link)| link.to_string_lossy().into_owned())
        .filter(|link| {
            ["socket:", "eventpoll", "eventfd", "pidfd"]
                .iter()
                .any(|part| link.contains(part))
        })
        .collect()
}

#[test]
fn events_deaths_and_the_end_are_served_through_each_waiter() {
    each(|kind, mode, spares| {
        let patient = WorkerConfig {
            max_attempts: 1000,
            ..settings(mode, 2, spares)
        };
        let mut sandbox = start(2, &patient, kind);
        let mut killed = 0;
        for id in 1..=100 {
            sandbox.send(id, &format!("event-{id}"));
            if id % 10 == 0
                && let Some(&pid) = sandbox.instances(0).first()
            {
                killed += u32::from(kill_process(pid_of(pid), Signal::KILL).is_ok());
            }
        }
        sandbox.wait_for(100);
        for answers in sandbox.answers.values() {
            assert!(answers.iter().all(|answer| answer.kind == Kind::Final));
            assert!(answers[0].text.ends_with(">g1>g2"), "{answers:?}");
        }
        eprintln!(
            "{}, {mode:?}, {spares} spares: {killed} killed",
            kind.name()
        );
        let worker = sandbox.worker_pid(0);
        assert_eq!(has_ring(worker), kind == WaiterKind::IoUring);
        assert_eq!(has_watchman(worker), kind == WaiterKind::Futex);
        sandbox.finish();
    });
}

#[test]
fn an_instance_has_nothing_of_what_its_worker_waits_through() {
    each(|kind, mode, spares| {
        let mut sandbox = start(1, &settings(mode, 1, spares), kind);
        sandbox.send(1, "sleep 100");
        sandbox.until("an instance has taken it", |sandbox| {
            sandbox.view_of(0).in_flight.len() == 1
        });
        assert!(!waits_on(sandbox.worker_pid(0)).is_empty());
        // One that was forked just now is about to let go.
        sandbox.until("no instance has anything of it", |sandbox| {
            let instances = sandbox.instances(0);
            instances
                .iter()
                .all(|&pid| !has_ring(pid) && waits_on(pid).is_empty())
        });
        sandbox.wait_for(1);
        sandbox.finish();
    });
}

#[test]
fn a_time_limit_ends_a_wait_through_each_waiter() {
    each(|kind, mode, spares| {
        let like = WorkerConfig {
            time_limit_ms: 100,
            max_attempts: 1,
            ..settings(mode, 1, spares)
        };
        let mut sandbox = start(1, &like, kind);
        let answer = sandbox.ask(1, "hang");
        assert_eq!(answer.failure, FailureCode::Timeout, "{}", answer.text);
        sandbox.finish();
    });
}

#[test]
fn a_guardian_that_hangs_up_ends_an_idle_worker_through_each_waiter() {
    each(|kind, mode, spares| {
        let mut sandbox = start(1, &settings(mode, 1, spares), kind);
        assert_eq!(sandbox.ask(1, "hello").text, "hello>g1");
        let instances = sandbox.instances(0);
        sandbox.hang_up(0);
        assert_eq!(sandbox.wait_for_exit(0).code(), Some(1));
        sandbox.until("its instances are gone", |_| {
            instances.iter().all(|&pid| !is_alive(pid))
        });
    });
}

#[test]
fn every_sleep_is_counted_with_what_ended_it() {
    each(|kind, mode, spares| {
        let mut sandbox = start(1, &settings(mode, 1, spares), kind);
        let before = sandbox.counters(0);
        assert_eq!((before.woken, before.quarantined), (0, 0));
        sandbox.until("an idle grain looks by itself", |sandbox| {
            sandbox.counters(0).rescans > 2
        });
        for id in 1..=10 {
            // Asleep again before the next.
            let parked = sandbox.counters(0).parked;
            assert_eq!(sandbox.ask(id, "hello").text, "hello>g1");
            sandbox.until("it sleeps again", |sandbox| {
                sandbox.counters(0).parked > parked
            });
        }
        std::thread::sleep(Duration::from_millis(1));
        let counted = sandbox.counters(0);
        let ended = counted.woken + counted.rescans;
        assert!(counted.woken >= 5, "{counted:?}");
        assert!(ended <= counted.parked, "{counted:?}");
        assert_eq!(counted.spins, 2 * counted.parked, "{counted:?}");
        sandbox.finish();
    });
}

#[test]
fn stops_interrupt_neither_a_wait_nor_the_news_of_a_peer() {
    each(|kind, mode, spares| {
        let mut sandbox = start(2, &settings(mode, 2, spares), kind);
        let second = pid_of(sandbox.worker_pid(1));
        let (stops, (test, gone)) = (AtomicU64::new(0), mpsc::channel::<()>());
        std::thread::scope(|scope| {
            // Dropped when the test is over, also when it fails.
            let _test = test;
            // Calls that wait end with EINTR when a stopped process goes on.
            let stops = &stops;
            scope.spawn(move || {
                let pause = Duration::from_micros(300);
                while gone.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                    kill_process(second, Signal::STOP).unwrap();
                    kill_process(second, Signal::CONT).unwrap();
                    stops.fetch_add(1, Ordering::Relaxed);
                }
            });
            let mut id = 0;
            while stops.load(Ordering::Relaxed) < 200 {
                id += 1;
                if id % 20 == 0 {
                    sandbox.restart_worker(0);
                }
                let text = sandbox.ask(id, "hello").text;
                assert_eq!(text, "hello>g1>g2", "{}", kind.name());
            }
        });
        assert_eq!(sandbox.log(1), "", "{}", kind.name());
        sandbox.finish();
    });
}

//! What handlers do wrong, and what becomes of it.

mod sandbox;

use sandbox::{Sandbox, Sleepers, chain, settings};
use sandpipe::{FailureCode, Kind};
use sandpipe_grain::{BackOff, Mode, WorkerConfig};

const MODES: [(Mode, u16); 3] = [(Mode::Fork, 0), (Mode::Fork, 2), (Mode::Pool, 0)];

fn each_mode(test: impl Fn(&mut Sandbox)) {
    for (mode, spares) in MODES {
        let mut sandbox = Sandbox::start(chain(1, &settings(mode, 2, spares)));
        test(&mut sandbox);
        assert_eq!(sandbox.ask(1000, "hello").text, "hello>g1");
        sandbox.finish();
    }
}

#[test]
fn an_event_that_rests_between_its_attempts_holds_up_no_other() {
    for (mode, spares) in [(Mode::Fork, 1), (Mode::Fork, 0), (Mode::Pool, 0)] {
        let config = WorkerConfig {
            max_attempts: 2,
            back_off: BackOff {
                first_ms: 3_000,
                max_ms: 3_000,
            },
            ..settings(mode, 1, spares)
        };
        let mut sandbox = Sandbox::start(chain(1, &config));
        sandbox.send(1, "exit 7");
        sandbox.until("it rests", |sandbox| sandbox.view_of(0).orphans == 1);
        for id in 2..22 {
            assert_eq!(sandbox.ask(id, "x").text, "x>g1");
        }
        assert_eq!(sandbox.view_of(0).orphans, 1, "it still rests");
        sandbox.wait_for(21);
        assert_eq!(sandbox.view_of(0).in_flight, []);
        sandbox.finish();
    }
}

#[test]
fn an_error_or_a_panic_of_the_handler_is_its_answer() {
    each_mode(|sandbox| {
        for (id, text, expected) in [
            (1, "fail", "as it was told"),
            (2, "panic", "the handler panicked: as it was told"),
        ] {
            let answer = sandbox.ask(id, text);
            assert_eq!(answer.failure, FailureCode::HandlerError);
            assert_eq!((answer.kind, &*answer.text), (Kind::Failed, expected));
        }
    });
}

#[test]
fn a_pooled_instance_that_panicked_handles_no_more() {
    let mut sandbox = Sandbox::start(chain(1, &settings(Mode::Pool, 1, 0)));
    let before = sandbox.ask(1, "pid");
    assert_eq!(sandbox.ask(2, "fail").kind, Kind::Failed);
    assert_eq!(sandbox.ask(3, "pid"), before);
    assert_eq!(sandbox.ask(4, "panic").kind, Kind::Failed);
    assert_ne!(sandbox.ask(5, "pid"), before);
    sandbox.finish();
}

#[test]
fn an_instance_that_ends_without_an_answer_is_tried_again() {
    each_mode(|sandbox| {
        for (id, text) in [(1, "first:exit 7"), (2, "first:exit 0"), (3, "first:abort")] {
            let answer = sandbox.ask(id, text);
            assert_eq!(answer.text, format!("{text}>g1"));
        }
    });
}

#[test]
fn an_event_that_kills_every_instance_fails_with_the_last_reason() {
    each_mode(|sandbox| {
        for (id, text, expected) in [
            (1, "exit 7", "exit code 7"),
            (2, "exit 0", "without an answer"),
            (3, "abort", "signal 6"),
        ] {
            let answer = sandbox.ask(id, text);
            assert_eq!(answer.failure, FailureCode::Crashed, "{}", answer.text);
            assert!(
                answer.text.contains("each of 3 attempts"),
                "{}",
                answer.text
            );
            assert!(answer.text.contains(expected), "{}", answer.text);
            let event = answer.event.as_deref();
            assert_eq!((answer.kind, event), (Kind::Dead, Some(text.as_bytes())));
        }
    });
}

#[test]
fn an_instance_over_its_time_limit_is_killed_and_the_event_tried_again() {
    for (mode, spares) in MODES {
        let like = WorkerConfig {
            time_limit_ms: 150,
            max_attempts: 2,
            ..settings(mode, 1, spares)
        };
        let mut sandbox = Sandbox::start(chain(1, &like));
        assert_eq!(sandbox.ask(1, "first:hang").text, "first:hang>g1");
        let answer = sandbox.ask(2, "hang");
        assert_eq!(answer.failure, FailureCode::Timeout, "{}", answer.text);
        assert!(
            answer.text.contains("time limit of 150 ms"),
            "{}",
            answer.text
        );
        sandbox.finish();
    }
}

#[test]
fn a_child_left_behind_dies_with_its_instance() {
    for (mode, spares) in [(Mode::Fork, 0), (Mode::Fork, 2)] {
        let mut sandbox = Sandbox::start(chain(1, &settings(mode, 1, spares)));
        let left = Sleepers::new(98);
        assert!(
            sandbox
                .ask(1, &format!("leave {}", left.length))
                .text
                .ends_with(">g1")
        );
        sandbox.until("the child is gone", |_| left.alive().is_empty());
        sandbox.finish();
    }
}

#[test]
fn a_handler_that_closes_every_descriptor_still_answers() {
    each_mode(|sandbox| assert_eq!(sandbox.ask(1, "close").text, "close>g1"));
}

#[test]
fn an_output_over_the_limit_fails_with_both_numbers() {
    each_mode(|sandbox| {
        let answer = sandbox.ask(1, "big 1048577");
        assert_eq!(answer.failure, FailureCode::PayloadTooLarge);
        assert!(answer.text.contains("1048577") && answer.text.contains("1048576"));
        assert_eq!(sandbox.ask(2, "big 1048576").text.len(), 1 << 20);
    });
}

#[test]
fn a_worker_that_cannot_load_its_handler_says_why_once_and_ends_with_3() {
    let like = WorkerConfig {
        handler: "refuse".into(),
        ..settings(Mode::Fork, 1, 1)
    };
    let mut sandbox = Sandbox::start(chain(1, &like));
    assert_eq!(sandbox.wait_for_exit(0).code(), Some(3));
    assert_eq!(sandbox.log(0).matches("no such module").count(), 1);
}

#[test]
fn a_worker_that_is_told_to_end_lets_its_instances_finish() {
    for (mode, spares) in MODES {
        let mut sandbox = Sandbox::start(chain(1, &settings(mode, 1, spares)));
        sandbox.traced = true;
        sandbox.send(1, "sleep 300");
        sandbox.until("an instance has taken it", |sandbox| {
            sandbox.view_of(0).in_flight.len() == 1
        });
        sandbox.terminate(0);
        assert!(sandbox.wait_for_exit(0).success());
        sandbox.wait_for(1);
        assert!(
            sandbox
                .answers
                .values()
                .all(|all| all[0].kind == Kind::Final)
        );
    }
}

//! Programs as grains.

mod sandbox;

use sandbox::{Sandbox, Sleepers, chain, settings};
use sandpipe::FailureCode;
use sandpipe_grain::{Mode, Route, WorkerConfig};

/// A chain of shell scripts.
fn scripts(scripts: &[&str]) -> Vec<WorkerConfig> {
    let mut configs = chain(scripts.len() as u16, &settings(Mode::Fork, 1, 1));
    for (config, script) in configs.iter_mut().zip(scripts) {
        config.handler = "/bin/sh".into();
        config.args = vec!["-c".into(), (*script).into()];
    }
    configs
}

#[test]
fn a_program_reads_the_event_and_writes_the_answer() {
    let script = "tr a-z A-Z; printf ' %s %s' \"$SANDPIPE_GRAIN\" \"$SANDPIPE_ATTEMPT\"";
    let mut sandbox = Sandbox::start_with(scripts(&[script, "cat"]), &["exec-worker"], None);
    assert_eq!(sandbox.ask(1, "hello").text, "HELLO g1 1");
    sandbox.finish();
}

#[test]
fn a_large_payload_passes_a_program_that_answers_while_it_reads() {
    let mut sandbox = Sandbox::start_with(scripts(&["cat", "cat"]), &["exec-worker"], None);
    let large = "0123456789".repeat(100_000);
    assert_eq!(sandbox.ask(1, &large).text, large);
    sandbox.finish();
}

#[test]
fn a_program_that_does_not_read_its_input_may_answer() {
    let mut sandbox = Sandbox::start_with(scripts(&["echo done"]), &["exec-worker"], None);
    assert_eq!(sandbox.ask(1, &"x".repeat(1 << 20)).text, "done\n");
    sandbox.finish();
}

#[test]
fn a_status_other_than_0_is_an_error_with_the_end_of_stderr() {
    let script = "echo first >&2; head -c 100000 /dev/zero >&2; echo last words >&2; exit 3";
    let mut sandbox = Sandbox::start_with(scripts(&[script]), &["exec-worker"], None);
    let answer = sandbox.ask(1, "hello");
    assert_eq!(answer.failure, FailureCode::HandlerError);
    assert!(answer.text.starts_with("exit status: 3"), "{}", answer.text);
    assert!(answer.text.ends_with("last words") && answer.text.len() < 3000);
    sandbox.finish();
}

#[test]
fn a_program_that_writes_without_end_is_stopped_at_the_limit() {
    let mut sandbox = Sandbox::start_with(scripts(&["cat /dev/zero"]), &["exec-worker"], None);
    let answer = sandbox.ask(1, "hello");
    assert_eq!(answer.failure, FailureCode::PayloadTooLarge);
    sandbox.finish();
}

#[test]
fn a_program_over_the_time_limit_dies_with_its_instance() {
    let left = Sleepers::new(97);
    let mut configs = scripts(&[&format!("sleep {}; echo late", left.length)]);
    (configs[0].time_limit_ms, configs[0].max_attempts) = (150, 1);
    let mut sandbox = Sandbox::start_with(configs, &["exec-worker"], None);
    assert_eq!(sandbox.ask(1, "hello").failure, FailureCode::Timeout);
    sandbox.until("the program is gone", |_| left.alive().is_empty());
    sandbox.finish();
}

#[test]
fn a_program_names_the_next_grain_in_its_first_line() {
    let mut configs = scripts(&["echo g2; cat", "cat"]);
    configs[0].route = Route::ByOutput;
    let mut sandbox = Sandbox::start_with(configs, &["exec-worker"], None);
    assert_eq!(sandbox.ask(1, "hello").text, "hello");
    sandbox.finish();
}

#[test]
fn a_program_that_is_not_there_is_a_load_error() {
    let mut configs = scripts(&["true"]);
    configs[0].handler = "/nowhere/program".into();
    let mut sandbox = Sandbox::start_with(configs, &["exec-worker"], None);
    assert_eq!(sandbox.wait_for_exit(0).code(), Some(3));
    assert!(sandbox.log(0).contains("/nowhere/program"));
}

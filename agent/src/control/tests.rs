use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

fn status() -> AgentStatus {
    AgentStatus {
        pid: 7,
        url: "http://127.0.0.1:1".into(),
        ..AgentStatus::default()
    }
}

fn answer(_: &Question) -> Answer {
    Answer::Status(Box::new(status()))
}

/// Serves at `path`, as long as it lives; and whether it was told to stop.
fn serve(path: &std::path::Path) -> (Control, Arc<AtomicBool>) {
    let control = Control::bind(path, "app").unwrap();
    let stopped = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&stopped);
    control
        .serve(answer, move || stop.store(true, Ordering::SeqCst))
        .unwrap();
    (control, stopped)
}

#[test]
fn it_says_how_it_is_and_stops_when_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run/agent-app.sock");
    let (control, stopped) = serve(&path);
    assert_eq!(ask(&path, Question::Status).unwrap(), status());
    assert!(!stopped.load(Ordering::SeqCst));
    ask(&path, Question::Shutdown).unwrap();
    while !stopped.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
    drop(control);
    assert!(!path.exists());
}

#[test]
fn it_is_for_its_own_user_only() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run/agent-app.sock");
    let _control = Control::bind(&path, "app").unwrap();
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
}

#[test]
fn a_second_agent_of_the_application_is_told_of_the_first() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent-app.sock");
    let control = Control::bind(&path, "app").unwrap();
    control.serve(answer, || {}).unwrap();
    let error = Control::bind(&path, "app").unwrap_err().to_string();
    assert!(
        error.contains("pid 7") && error.contains("--run-dir"),
        "{error}"
    );
}

#[test]
fn the_socket_of_a_living_agent_that_refuses_or_is_silent_is_not_taken() {
    let directory = tempfile::tempdir().unwrap();
    let busy = directory.path().join("busy.sock");
    let control = Control::bind(&busy, "app").unwrap();
    let refuse = |_: &Question| Answer::Refused {
        reason: "too many".into(),
        wrong_file: false,
    };
    control.serve(refuse, || {}).unwrap();
    // It is stopped, say: the system takes connections for it.
    let silent = directory.path().join("silent.sock");
    let _listener = UnixListener::bind(&silent).unwrap();
    for path in [busy, silent] {
        let error = Control::bind(&path, "app").unwrap_err().to_string();
        assert!(error.contains("already runs app"), "{error}");
        assert!(path.exists());
    }
}

#[test]
fn of_two_agents_that_start_at_once_the_second_takes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent-app.sock");
    // It has found a dead one's socket, and is about to replace it.
    drop(UnixListener::bind(&path).unwrap());
    let first = lock::Lock::take(&path).unwrap();
    let error = Control::bind(&path, "app").unwrap_err().to_string();
    assert!(error.contains("about to run app"), "{error}");
    assert!(path.exists());
    drop(first);
    Control::bind(&path, "app").unwrap();
}

#[test]
fn the_socket_of_a_dead_agent_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent-app.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    Control::bind(&path, "app").unwrap();
}

#[test]
fn where_nobody_is_the_remedy_is_named() {
    let error = ask(std::path::Path::new("/nonexistent/x"), Question::Status).unwrap_err();
    assert!(error.to_string().contains("sandpipe run"), "{error}");
}

/// What a process of the same user may send: lines, halves of lines, noise, nothing.
#[test]
fn whatever_is_sent_to_it_it_goes_on_answering() {
    use std::io::{Read, Write};
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent-app.sock");
    let (_control, stopped) = serve(&path);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let known = [
        "\"status\"",
        "{\"shutdown\":1}",
        "[",
        "\"Status\"",
        "null",
        "\u{1}",
    ];
    for round in 0..1000 {
        let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let watchdog = std::time::Duration::from_secs(20);
        stream.set_read_timeout(Some(watchdog)).unwrap();
        let mut line = match round % 3 {
            0 => known[round / 3 % known.len()].as_bytes().to_vec(),
            1 => (0..next() % 3000).map(|_| next() as u8).collect(),
            _ => vec![b'"'; (next() % 2000) as usize],
        };
        if !next().is_multiple_of(4) {
            line.push(b'\n');
        }
        // It may have had enough of a long line before its end.
        let _ = stream.write_all(&line);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let read = stream.read_to_end(&mut Vec::new());
        let silent = read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        assert!(!silent, "round {round}: neither an answer nor an end");
    }
    assert_eq!(ask(&path, Question::Status).unwrap(), status());
    assert!(
        !stopped.load(Ordering::SeqCst),
        "noise was taken for an order"
    );
}

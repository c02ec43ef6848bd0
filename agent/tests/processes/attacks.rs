//! Thousands of connections that do nothing, against a whole agent.

use std::io::Write;
use std::net::TcpStream;
use std::process::Command;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::harness::{Agent, Place, SANDPIPE, skip, until};

const IDLE: usize = 5000;
const DESCRIPTORS: usize = 1024;

#[test]
fn five_thousand_idle_connections_fit_into_1024_descriptors_and_keep_nobody_out() {
    if !raise_own_limit(IDLE as u64 + 500) {
        skip(&format!("this process may not open {IDLE} sockets"));
        return;
    }
    let place = Place::chain(&["a"], "", "");
    let agent = start_with(&place, DESCRIPTORS);
    assert_eq!(agent.post(&[], "x").text(), "xa");
    let (descriptors, memory) = (descriptors_of(&agent), resident_kib(&agent));
    let mut idle = Vec::new();
    for number in 0..IDLE {
        let mut stream = TcpStream::connect(agent.address).unwrap();
        // A displaced one may be closed already.
        let _ = match number % 4 {
            0 => Ok(()),
            1 => stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"),
            2 => stream.write_all(b"POST / HTTP/1.1\r\nx-"),
            _ => stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        };
        idle.push(stream);
        if number % 250 == 0 {
            assert_eq!(agent.post(&[], "x").text(), "xa", "after {number}");
            assert!(descriptors_of(&agent) < DESCRIPTORS);
        }
    }
    assert_eq!(agent.post(&[], "x").text(), "xa");
    assert_eq!(agent.get("/readyz").status, 200);
    let grown = resident_kib(&agent).saturating_sub(memory);
    assert!(
        grown < 64 << 10,
        "{grown} KiB for connections that are idle"
    );
    drop(idle);
    until("their descriptors are free again", || {
        descriptors_of(&agent) <= descriptors + 2
    });
    agent.stop();
    place.assert_clean();
}

fn raise_own_limit(wanted: u64) -> bool {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return true;
    }
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    limit.maximum.is_none_or(|maximum| maximum >= wanted)
        && setrlimit(Resource::Nofile, raised).is_ok()
}

/// An agent that may have so many descriptors.
fn start_with(place: &Place, descriptors: usize) -> Agent<'_> {
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!("ulimit -n {descriptors} && exec \"$0\" \"$@\""))
        .arg(SANDPIPE)
        .args(place.command().get_args());
    Agent::start(place, command)
}

fn descriptors_of(agent: &Agent<'_>) -> usize {
    let directory = format!("/proc/{}/fd", agent.pid());
    std::fs::read_dir(directory).unwrap().count()
}

pub fn resident_kib(agent: &Agent<'_>) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    line.unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}

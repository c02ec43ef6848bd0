//! Open-loop load: requests leave at fixed times whatever the answers do, and a latency counts
//! from the time at which its request was due. So a stall is seen by every request that fell into
//! it, and not only by the one that met it (coordinated omission).

use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;

use crate::clock::now_ns;
use crate::error::BenchError;
use crate::http::{Answer, Connection};

/// A load.
#[derive(Clone, Debug)]
pub struct Load<'a> {
    /// `host:port` of the front door.
    pub address: &'a str,
    /// Path of the requests.
    pub path: &'a str,
    /// Body of the requests.
    pub body: &'a [u8],
    /// Requests a second.
    pub rate_per_s: u32,
    /// How many requests.
    pub count: usize,
    /// Requests under way at once, at most: one a connection.
    pub connections: usize,
}

/// An answered request.
#[derive(Clone, Debug)]
pub struct Answered {
    /// When it was due (shared clock, ns).
    pub due_ns: u64,
    /// When its answer was there.
    pub arrived_ns: u64,
    /// Its answer.
    pub answer: Answer,
}

struct Line {
    connection: Connection,
    due_ns: Option<u64>,
}

/// Sends a whole load and gives every answer, in order of arrival.
///
/// # Errors
/// If the front door cannot be reached, closes, or is silent for a long time.
pub fn run(load: &Load<'_>) -> Result<Vec<Answered>, BenchError> {
    let open = || Connection::open(load.address);
    let lines: Result<Vec<Line>, BenchError> = (0..load.connections)
        .map(|_| {
            Ok(Line {
                connection: open()?,
                due_ns: None,
            })
        })
        .collect();
    let mut lines = lines?;
    let gap_ns = 1_000_000_000 / u64::from(load.rate_per_s.max(1));
    let start_ns = now_ns() + gap_ns;
    let mut sent = 0;
    let mut answered = Vec::with_capacity(load.count);
    while answered.len() < load.count {
        let mut due_ns = start_ns + sent as u64 * gap_ns;
        while sent < load.count && due_ns <= now_ns() {
            let Some(line) = lines.iter_mut().find(|line| line.due_ns.is_none()) else {
                break;
            };
            line.connection.send(load.path, &[], load.body)?;
            line.due_ns = Some(due_ns);
            sent += 1;
            due_ns = start_ns + sent as u64 * gap_ns;
        }
        let idle_line = sent < load.count && lines.iter().any(|line| line.due_ns.is_none());
        wait(&lines, idle_line.then_some(due_ns))?;
        collect(&mut lines, &mut answered)?;
    }
    Ok(answered)
}

/// Sleeps until an answer arrives or the next request is due.
fn wait(lines: &[Line], due_ns: Option<u64>) -> Result<(), BenchError> {
    let timeout_ns = due_ns.map_or(1_000_000_000, |due_ns| due_ns.saturating_sub(now_ns()));
    let timeout = Duration::from_nanos(timeout_ns);
    let timeout = Timespec::try_from(timeout).expect("below a minute");
    let mut fds: Vec<PollFd<'_>> = lines
        .iter()
        .filter(|line| line.due_ns.is_some())
        .map(|line| PollFd::from_borrowed_fd(line.connection.as_fd(), PollFlags::IN))
        .collect();
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(BenchError::os("poll", error.into())),
    }
}

fn collect(lines: &mut [Line], answered: &mut Vec<Answered>) -> Result<(), BenchError> {
    for line in lines.iter_mut() {
        let Some(due_ns) = line.due_ns else { continue };
        if !readable(&line.connection)? {
            continue;
        }
        line.connection.read_more()?;
        if let Some(answer) = line.connection.take_answer()? {
            answered.push(Answered {
                due_ns,
                arrived_ns: now_ns(),
                answer,
            });
            line.due_ns = None;
        }
    }
    Ok(())
}

fn readable(connection: &Connection) -> Result<bool, BenchError> {
    let mut fds = [PollFd::from_borrowed_fd(connection.as_fd(), PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    match poll(&mut fds, Some(&now)) {
        Ok(count) => Ok(count > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(BenchError::os("poll", error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    /// Answers one connection's requests; the tenth waits.
    fn stalling_server(stall: Duration) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut requests = 0;
            let mut bytes = [0; 4096];
            while let Ok(1..) = stream.read(&mut bytes) {
                requests += 1;
                if requests == 10 {
                    std::thread::sleep(stall);
                }
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                    .unwrap();
            }
        });
        address
    }

    #[test]
    fn a_stall_is_seen_by_every_request_that_was_due_in_it() {
        let address = stalling_server(Duration::from_millis(100));
        let load = Load {
            address: &address,
            path: "/",
            body: b"",
            rate_per_s: 1000,
            count: 200,
            connections: 1,
        };
        let answered = run(&load).unwrap();
        assert_eq!(answered.len(), 200);
        let late = answered
            .iter()
            .filter(|a| a.arrived_ns - a.due_ns > 20_000_000)
            .count();
        // 100 requests fell due while the one connection was stalled; 80 of them for 20 ms.
        assert!(late >= 70, "{late} requests saw the stall");
        assert!(
            answered
                .windows(2)
                .all(|pair| pair[1].due_ns == pair[0].due_ns + 1_000_000)
        );
    }
}

//! What /proc tells about other processes.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process};

use super::PATIENCE;

pub fn pid_of(pid: i32) -> Pid {
    Pid::from_raw(pid).unwrap()
}

pub fn children(pid: i32) -> Vec<i32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

/// Whether a process runs, as opposed to gone or waiting to be reaped.
pub fn is_alive(pid: i32) -> bool {
    !matches!(state(pid), None | Some('Z' | 'X'))
}

fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(") ").next()?.chars().next()
}

pub fn wait_until_stopped(pid: i32) {
    let end = Instant::now() + PATIENCE;
    while !matches!(state(pid), Some('T' | 'Z') | None) {
        assert!(Instant::now() < end, "process {pid} does not stop");
        std::thread::yield_now();
    }
}

/// An orphan of a killed worker comes to the test, which reaps it.
pub fn wait_until_gone(pid: i32) {
    let end = Instant::now() + PATIENCE;
    while is_alive(pid) {
        assert!(Instant::now() < end, "process {pid} does not end");
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = rustix::process::waitpid(Some(pid_of(pid)), WaitOptions::NOHANG);
}

/// The `sleep` processes of a length that nobody else on the machine asks for; killed at the end
/// of a test that fails.
pub struct Sleepers {
    pub length: String,
}

impl Sleepers {
    pub fn new(prefix: u32) -> Sleepers {
        Sleepers {
            length: format!("{prefix}{}", 7000 + std::process::id()),
        }
    }

    pub fn alive(&self) -> Vec<i32> {
        let wanted = format!("sleep\0{}\0", self.length);
        let processes = fs::read_dir("/proc").unwrap();
        processes
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|pid| {
                let line = fs::read_to_string(format!("/proc/{pid}/cmdline"));
                line.is_ok_and(|line| line == wanted) && is_alive(*pid)
            })
            .collect()
    }
}

impl Drop for Sleepers {
    fn drop(&mut self) {
        for pid in self.alive() {
            let _ = kill_process(pid_of(pid), Signal::KILL);
        }
    }
}

//! What a worker writes: the last of it kept for the status, all of it passed on.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, open, openat};

use super::events::{Events, Watch};
use super::log_file::{self, LogFile};
use super::supervisor::Source;
use crate::LogLimits;

/// How much of a worker's output is kept.
const TAIL_BYTES: usize = 8 << 10;
/// Read at one go; the rest waits for its turn, so that a chatty worker does not hold up init.
const READ_BYTES: usize = 64 << 10;

/// How what is written to is opened: a write never waits.
const APPENDED: OFlags = OFlags::WRONLY
    .union(OFlags::APPEND)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

/// Where output goes. Writing never blocks init: what the reader does not take is dropped.
#[derive(Debug)]
pub(super) enum Sink {
    /// As it comes.
    Raw(OwnedFd),
    /// In lines, limited.
    Lines(RefCell<LogFile>),
}

impl Sink {
    /// The agent's standard error, as it came with its claim.
    pub(super) fn of_agent(fd: OwnedFd) -> Sink {
        // Its flags are shared with the agent, so it is opened anew to be non-blocking.
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let own = open(path, APPENDED, Mode::empty());
        Sink::Raw(own.unwrap_or(fd))
    }

    /// A log file, appended to.
    pub(super) fn file(path: &Path, limits: Option<LogLimits>) -> io::Result<Sink> {
        let Some(limits) = limits else {
            let (directory, name) = log_file::apart(path)?;
            let flags = APPENDED | OFlags::CREATE;
            let file = openat(directory, name, flags, Mode::RUSR | Mode::WUSR)?;
            return Ok(Sink::Raw(file));
        };
        Ok(Sink::Lines(RefCell::new(LogFile::new(path, limits)?)))
    }

    pub(super) fn write(&self, bytes: &[u8]) {
        match self {
            Sink::Raw(fd) => write_raw(fd, bytes),
            Sink::Lines(file) => file.borrow_mut().write(bytes),
        }
    }
}

fn write_raw(fd: &OwnedFd, mut bytes: &[u8]) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    while !bytes.is_empty() {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut ask = [PollFd::new(fd, PollFlags::OUT)];
        let writable =
            poll(&mut ask, Some(&now)).is_ok() && ask[0].revents().contains(PollFlags::OUT);
        if !writable {
            return;
        }
        // A pipe that is writable takes this much without blocking, whoever opened it.
        let some = &bytes[..bytes.len().min(4096)];
        match rustix::io::write(fd, some) {
            Ok(written) => bytes = &bytes[written..],
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

/// Where a worker's output comes from.
#[derive(Debug)]
struct Pipe {
    fd: OwnedFd,
    watch: Option<Watch>,
}

/// The output of one worker's current process.
#[derive(Debug, Default)]
pub(super) struct Output {
    pipe: Option<Pipe>,
    tail: VecDeque<u8>,
    /// Not passed on yet: the last start failed, and the same complaint is not repeated.
    held_back: bool,
    /// Some of it came while no agent was there to read it.
    unseen: bool,
    /// What the last failed start wrote, if somebody saw it.
    last_complaint: Vec<u8>,
}

impl Output {
    /// Begins with a new process, whose output comes through `pipe` (non-blocking).
    pub(super) fn begin(&mut self, pipe: OwnedFd, hold_back: bool) {
        let (fd, watch) = (pipe, None);
        self.pipe = Some(Pipe { fd, watch });
        self.tail.clear();
        self.held_back = hold_back;
        self.unseen = false;
    }

    /// Has it told when something was written, as `source`'s.
    pub(super) fn watch(&mut self, events: &Events, source: Source) -> io::Result<()> {
        if let Some(pipe) = &mut self.pipe {
            pipe.watch = Some(events.watch(&pipe.fd, source)?);
        }
        Ok(())
    }

    /// Takes what has been written; `false` once nobody can write any more.
    pub(super) fn read(&mut self, sink: Option<&Sink>) -> bool {
        let Some(pipe) = &self.pipe else { return false };
        let mut bytes = vec![0; READ_BYTES];
        match rustix::io::retry_on_intr(|| rustix::io::read(&pipe.fd, &mut bytes)) {
            Ok(0) => {
                self.pipe = None;
                false
            }
            Ok(read) => {
                self.take(&bytes[..read], sink);
                true
            }
            Err(_) => true,
        }
    }

    /// The worker works: what it wrote so far is passed on, and all that follows.
    pub(super) fn release(&mut self, sink: Option<&Sink>) {
        if std::mem::take(&mut self.held_back) {
            self.pass_on(sink, &self.tail_bytes());
        }
    }

    /// The process is gone: passes on what was held back unless it repeats the last complaint,
    /// and returns the tail.
    pub(super) fn end(&mut self, sink: Option<&Sink>) -> String {
        while self.pipe.is_some() {
            let before = self.tail.len();
            let open = self.read(sink);
            if open && self.tail.len() == before {
                // Empty, though somebody outside the family may still hold it.
                self.pipe = None;
            }
        }
        let tail = self.tail_bytes();
        let complaint = without_digits(&tail);
        if std::mem::take(&mut self.held_back) && complaint != self.last_complaint {
            self.pass_on(sink, &tail);
        }
        self.last_complaint = if self.unseen { Vec::new() } else { complaint };
        String::from_utf8_lossy(&log_file::without_marks(&tail)).into_owned()
    }

    fn take(&mut self, bytes: &[u8], sink: Option<&Sink>) {
        self.tail.extend(bytes);
        let surplus = self.tail.len().saturating_sub(TAIL_BYTES);
        self.tail.drain(..surplus);
        if !self.held_back {
            self.pass_on(sink, bytes);
        }
    }

    fn pass_on(&mut self, sink: Option<&Sink>, bytes: &[u8]) {
        match sink {
            Some(sink) => sink.write(bytes),
            None => self.unseen |= !bytes.is_empty(),
        }
    }

    fn tail_bytes(&self) -> Vec<u8> {
        self.tail.iter().copied().collect()
    }
}

/// Process ids, times and addresses differ from one failure to the next; the complaint does not.
fn without_digits(bytes: &[u8]) -> Vec<u8> {
    bytes
        .iter()
        .copied()
        .filter(|byte| !byte.is_ascii_digit())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    fn write_once(output: &mut Output, sink: Option<&Sink>, held_back: bool, text: &str) -> String {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        output.begin(reader, held_back);
        fs::File::from(writer).write_all(text.as_bytes()).unwrap();
        output.end(sink)
    }

    #[test]
    fn a_repeated_complaint_is_passed_on_once_and_a_new_one_is_passed_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let sink = Sink::file(&path, None).unwrap();
        let mut output = Output::default();
        write_once(&mut output, Some(&sink), false, "pid 7: no module\n");
        write_once(&mut output, Some(&sink), true, "pid 8: no module\n");
        assert_eq!(
            write_once(&mut output, Some(&sink), true, "syntax\n"),
            "syntax\n"
        );
        assert_eq!(
            fs::read_to_string(path).unwrap(),
            "pid 7: no module\nsyntax\n"
        );
    }

    #[test]
    fn a_complaint_that_nobody_saw_is_passed_on_when_it_comes_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let sink = Sink::file(&path, None).unwrap();
        let mut output = Output::default();
        write_once(&mut output, None, false, "no module\n");
        write_once(&mut output, Some(&sink), true, "no module\n");
        write_once(&mut output, Some(&sink), true, "no module\n");
        assert_eq!(fs::read_to_string(path).unwrap(), "no module\n");
    }

    #[test]
    fn only_the_last_8_kib_are_kept_and_a_full_pipe_blocks_nobody() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let sink = Sink::Raw(writer);
        let mut output = Output::default();
        for _ in 0..100 {
            output.take(&[b'a'; 4096], Some(&sink));
        }
        output.take(b"end", Some(&sink));
        let tail = output.tail_bytes();
        assert_eq!(
            (tail.len(), &tail[TAIL_BYTES - 3..]),
            (TAIL_BYTES, b"end".as_slice())
        );
        drop(reader);
    }
}

//! A worker's output in a file: a line each with its time and the message it belongs to, bounded in
//! bytes a second and in files.
//!
//! `UNIX_MS MESSAGE TEXT`, where MESSAGE is 32 hexadecimal digits or `-`. A grain marks a line with
//! its message by beginning it with [`MARK`], the id and a space; the bytes are a grain's, so a
//! mark is believed only in that form, and says nothing about anybody else's messages.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, fstat, open, openat, renameat, statat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::LogLimits;

/// ASCII's record separator: no text begins with it.
const MARK: u8 = 0x1e;
/// Hexadecimal digits of a message id.
const ID_BYTES: usize = 32;
/// A mark, the id and the space behind it.
const MARK_BYTES: usize = 1 + ID_BYTES + 1;
/// The longest line; a longer one is cut into several.
const LINE_BYTES_MAX: usize = 8 << 10;

/// One worker's log file.
#[derive(Debug)]
pub(super) struct LogFile {
    directory: OwnedFd,
    name: String,
    limits: LogLimits,
    file: Option<File>,
    /// The beginning of a line whose end has not come.
    partial: Vec<u8>,
    /// Bytes that may be written now.
    allowance: u64,
    refilled: Instant,
    dropped: u64,
}

impl LogFile {
    /// Opened by the first write, so that a disk that is full now may have room then. Its directory
    /// is opened now: files are made there also when the root cannot be written any more.
    ///
    /// # Errors
    /// The system's, if the directory is not there.
    pub(super) fn new(path: &Path, limits: LogLimits) -> io::Result<LogFile> {
        let (directory, name) = apart(path)?;
        Ok(LogFile {
            directory,
            name,
            limits,
            file: None,
            partial: Vec::new(),
            allowance: limits.file_bytes,
            refilled: Instant::now(),
            dropped: 0,
        })
    }

    /// Takes some output. What cannot be kept is counted, and said once there is room.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.refill();
        let mut out = Vec::new();
        let now = unix_ms();
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.partial.extend_from_slice(piece);
            while self.partial.len() > LINE_BYTES_MAX {
                let rest = self.partial.split_off(LINE_BYTES_MAX);
                let line = std::mem::replace(&mut self.partial, rest);
                self.line(now, &line, &mut out);
            }
            if self.partial.ends_with(b"\n") {
                let line = std::mem::take(&mut self.partial);
                self.line(now, &line[..line.len() - 1], &mut out);
            }
        }
        if let Err(lost) = self.append(&out) {
            self.dropped += lost;
        }
    }

    fn line(&mut self, now: u64, line: &[u8], out: &mut Vec<u8>) {
        let (id, text) = split_mark(line);
        let cost = text.len() as u64 + 64;
        if cost > self.allowance {
            self.dropped += text.len() as u64;
            return;
        }
        self.allowance -= cost;
        if self.dropped > 0 {
            let dropped = std::mem::take(&mut self.dropped);
            let words = format!("{now} - [sandpipe: {dropped} bytes of output were dropped]\n");
            out.extend_from_slice(words.as_bytes());
        }
        out.extend_from_slice(format!("{now} ").as_bytes());
        out.extend_from_slice(id.unwrap_or(b"-"));
        out.push(b' ');
        out.extend_from_slice(text);
        out.push(b'\n');
    }

    fn refill(&mut self) {
        let elapsed = self.refilled.elapsed();
        let more = elapsed.as_secs_f64() * self.limits.bytes_per_s as f64;
        // Rarely enough that small steps do not all round to nothing.
        if more >= 1024.0 {
            self.refilled += elapsed;
            self.allowance = (self.allowance + more as u64).min(self.limits.file_bytes);
        }
    }

    /// Appends whole lines.
    ///
    /// # Errors
    /// How many bytes were not written.
    fn append(&mut self, lines: &[u8]) -> Result<(), u64> {
        if lines.is_empty() {
            return Ok(());
        }
        let written = self
            .open(lines.len() as u64)
            .and_then(|mut file| file.write_all(lines));
        written.map_err(|_| {
            self.file = None;
            lines.len() as u64
        })
    }

    /// The current file, with room for `more` bytes. The sandbox of the version before or after
    /// may write to the same file: what counts is what is there.
    fn open(&mut self, more: u64) -> io::Result<&File> {
        let here = statat(&self.directory, &self.name, AtFlags::empty()).ok();
        let same = |file: &File| {
            let own = fstat(file).ok();
            own.zip(here)
                .is_some_and(|(own, here)| own.st_ino == here.st_ino && own.st_dev == here.st_dev)
        };
        if !self.file.as_ref().is_some_and(same) {
            self.file = None;
        }
        let bytes = here.map_or(0, |here| u64::try_from(here.st_size).unwrap_or(0));
        if bytes > 0 && bytes + more > self.limits.file_bytes {
            self.file = None;
            self.rotate()?;
        }
        let file = match self.file.take() {
            Some(file) => file,
            None => {
                let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC;
                let mode = Mode::RUSR | Mode::WUSR;
                File::from(openat(&self.directory, &self.name, flags, mode)?)
            }
        };
        Ok(self.file.insert(file))
    }

    /// `grain.log` becomes `grain.log.1`, that `grain.log.2`, and the oldest goes. A death in
    /// between loses the oldest at the most.
    fn rotate(&self) -> io::Result<()> {
        let directory = &self.directory;
        let old = |number: u32| match number {
            0 => self.name.clone(),
            number => format!("{}.{number}", self.name),
        };
        if self.limits.files <= 1 {
            return Ok(unlinkat(directory, &self.name, AtFlags::empty())?);
        }
        for number in (0..self.limits.files - 1).rev() {
            match renameat(directory, old(number), directory, old(number + 1)) {
                Err(error) if error != Errno::NOENT => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The directory of a path as a mount of its own, in nobody's tree, and the name in it. It stays
/// writable when init makes the root read-only, a file that is open there does not hinder that, and
/// no grain sees it. Who may not mount has a root that stays as it is.
///
/// # Errors
/// The system's, if the directory is not there.
pub(super) fn apart(path: &Path) -> io::Result<(OwnedFd, String)> {
    let name = path.file_name().and_then(|name| name.to_str());
    let (Some(directory), Some(name)) = (path.parent(), name) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let plain = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = open_tree(CWD, directory, flags);
    let opened = opened.or_else(|_| open(directory, plain, Mode::empty()))?;
    Ok((opened, name.to_owned()))
}

/// The id that a line is marked with, and the text.
fn split_mark(line: &[u8]) -> (Option<&[u8]>, &[u8]) {
    let id = line.get(1..1 + ID_BYTES);
    let marked = line.first() == Some(&MARK) && line.get(MARK_BYTES - 1) == Some(&b' ');
    match id {
        Some(id) if marked && id.iter().all(u8::is_ascii_hexdigit) => {
            (Some(id), &line[MARK_BYTES..])
        }
        _ => (None, line),
    }
}

/// Output as it is shown where there is no column for a message.
pub(super) fn without_marks(bytes: &[u8]) -> Vec<u8> {
    let lines = bytes.split_inclusive(|&byte| byte == b'\n');
    lines.flat_map(|line| split_mark(line).1).copied().collect()
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    const LIMITS: LogLimits = LogLimits {
        file_bytes: 4096,
        files: 3,
        bytes_per_s: 0,
    };

    fn scene() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("g.log");
        (directory, path)
    }

    /// Lines without their times.
    fn lines(path: &Path) -> Vec<String> {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines()
            .map(|line| line.split_once(' ').unwrap().1.to_owned())
            .collect()
    }

    #[test]
    fn a_line_has_its_time_and_its_message_whatever_the_pieces_it_comes_in() {
        let (_directory, path) = scene();
        let mut file = LogFile::new(&path, LIMITS).unwrap();
        let before = unix_ms();
        let id = "0123456789abcdef0123456789ABCDEF";
        file.write(format!("plain\n\u{1e}{id} mar").as_bytes());
        file.write(b"ked\nhalf");
        assert_eq!(lines(&path), ["- plain", &format!("{id} marked")]);
        let text = fs::read_to_string(&path).unwrap();
        let time: u64 = text.split(' ').next().unwrap().parse().unwrap();
        assert!((before..=unix_ms()).contains(&time));
    }

    #[test]
    fn what_only_looks_like_a_mark_is_text() {
        let (_directory, path) = scene();
        let mut file = LogFile::new(&path, LIMITS).unwrap();
        let id = "g123456789abcdef0123456789abcdef";
        file.write(format!("\u{1e}{id} x\n\u{1e}short\n\u{1e}\n\n").as_bytes());
        let expected = [
            format!("- \u{1e}{id} x"),
            "- \u{1e}short".into(),
            "- \u{1e}".into(),
        ];
        assert_eq!(lines(&path)[..3], expected);
        assert_eq!(lines(&path)[3], "- ");
    }

    #[test]
    fn files_are_rotated_and_the_oldest_goes() {
        let (directory, path) = scene();
        let limits = LogLimits {
            bytes_per_s: u64::MAX >> 1,
            ..LIMITS
        };
        let mut file = LogFile::new(&path, limits).unwrap();
        for number in 0..500 {
            file.write(format!("{number:>100}\n").as_bytes());
            std::thread::sleep(std::time::Duration::from_micros(10)); // refills
        }
        let names: Vec<_> = fs::read_dir(directory.path()).unwrap().flatten().collect();
        assert_eq!(names.len(), 3);
        assert!(
            names
                .iter()
                .all(|file| file.metadata().unwrap().len() <= 4096)
        );
        let kept: Vec<String> = ["g.log.2", "g.log.1", "g.log"]
            .iter()
            .flat_map(|name| lines(&directory.path().join(name)))
            .collect();
        assert!(kept.last().unwrap().ends_with(" 499"));
        assert!(kept.len() > 60 && kept.len() < 120, "{}", kept.len());
        let numbers: Vec<u32> = kept
            .iter()
            .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
            .collect();
        assert!(
            numbers.windows(2).all(|pair| pair[1] == pair[0] + 1),
            "{numbers:?}"
        );
    }

    #[test]
    fn beyond_the_rate_output_is_dropped_and_counted() {
        let (_directory, path) = scene();
        let mut file = LogFile::new(&path, LIMITS).unwrap();
        for _ in 0..1000 {
            file.write(&[b'x'; 1000]);
            file.write(b"\n");
        }
        let before = lines(&path).len();
        assert!((3..=4).contains(&before), "{before}");
        file.allowance = 4096;
        file.write(b"again\n");
        let kept = lines(&path);
        let dropped = (1000 - before) * 1000;
        let words = format!("- [sandpipe: {dropped} bytes of output were dropped]");
        assert!(kept.contains(&words), "{kept:?}");
        assert_eq!(kept.last().unwrap(), "- again");
    }

    #[test]
    fn a_line_without_an_end_takes_no_memory_and_two_writers_share_one_file() {
        let (_directory, path) = scene();
        let limits = LogLimits {
            file_bytes: 1 << 20,
            ..LIMITS
        };
        let mut file = LogFile::new(&path, limits).unwrap();
        for _ in 0..100 {
            file.write(&[b'x'; 5000]);
            assert!(file.partial.len() <= LINE_BYTES_MAX);
        }
        let mut other = LogFile::new(&path, limits).unwrap();
        other.write(b"other\n");
        other.rotate().unwrap();
        file.write(b"\nown\n");
        other.write(b"both\n");
        let last = lines(&path);
        assert_eq!(last[last.len() - 2..], ["- own", "- both"]);
    }
}

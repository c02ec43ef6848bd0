//! Opening a log: every frame is checked, a torn end is cut, damage is named.

use std::collections::VecDeque;
use std::io;

use super::frame::{self, Frame, HeaderError, Kind, SEGMENT_HEADER_BYTES};
use super::log::{Log, Segment, segment_name};
use super::report::{Cut, OpenError, OpenReport};
use super::storage::{Storage, StorageFile};
use crate::fold::Fold;

impl<S: Storage> Log<S> {
    /// Opens the log in `storage`. Reads all of it.
    pub(super) fn open(storage: S, segment_bytes: u64) -> Result<(Log<S>, OpenReport), OpenError> {
        let mut log = Log {
            storage,
            segment_bytes,
            segments: VecDeque::new(),
            active: None,
            next: 0,
            fold: Fold::new(),
        };
        let mut report = OpenReport::default();
        let firsts = log.segment_numbers()?;
        if let Some(&first) = firsts.first() {
            log.next = first;
        }
        for (index, &first) in firsts.iter().enumerate() {
            log.load(first, firsts.get(index + 1).copied(), &mut report)?;
        }
        report.segments = log.segments.len();
        report.unfinished = log.fold.live_count();
        Ok((log, report))
    }

    /// Reads the segment `first`; `below` is the first record of its successor. A successor means
    /// that all up to there was durable, and that what follows is a failed attempt to write it.
    fn load(
        &mut self,
        first: u64,
        below: Option<u64>,
        report: &mut OpenReport,
    ) -> Result<(), OpenError> {
        let name = segment_name(first);
        let bytes = self.read(&name).map_err(|source| self.io(&name, source))?;
        match frame::read_segment_header(&bytes) {
            Ok(found) if found == first && first == self.next => {}
            Ok(found) => {
                let reason = format!(
                    "the segment begins with record {found}, record {} was expected",
                    self.next
                );
                return Err(self.corrupt(first, 0, reason));
            }
            Err(HeaderError::Version(found)) => {
                let file = self.path(first);
                return Err(OpenError::Version { file, found });
            }
            Err(HeaderError::Damaged) if below.is_none() && is_unborn(&bytes) => {
                return self.remove_unborn(first, bytes.len() as u64, report);
            }
            Err(HeaderError::Damaged) => {
                return Err(self.corrupt(first, 0, "its header is damaged".to_owned()));
            }
        }
        self.segments.push_back(Segment {
            first,
            bytes: SEGMENT_HEADER_BYTES as u64,
            live: 0,
        });
        let before = self.next;
        let end = self.take_all(&bytes, first, below)?;
        self.segments.back_mut().expect("just pushed").bytes = end as u64;
        report.records += self.next - before;
        match below {
            Some(below) if self.next < below => {
                let reason = format!("record {} is damaged or missing", self.next);
                Err(self.corrupt(first, end as u64, reason))
            }
            Some(_) => Ok(()),
            None => self.cut_tail(first, &bytes, end, report),
        }
    }

    /// Takes the frames of a segment up to the first that is not valid; returns where it begins.
    fn take_all(
        &mut self,
        bytes: &[u8],
        first: u64,
        below: Option<u64>,
    ) -> Result<usize, OpenError> {
        let mut at = SEGMENT_HEADER_BYTES;
        while below != Some(self.next) {
            let Some(frame) = Frame::read(&bytes[at..]) else {
                break;
            };
            if frame.sequence != self.next {
                break;
            }
            if frame.kind == Kind::Record {
                let offset = at as u64;
                self.take(offset, &frame)
                    .map_err(|source| OpenError::Record {
                        file: self.path(first),
                        offset,
                        source,
                    })?;
            }
            at += frame.bytes();
        }
        Ok(at)
    }

    /// The last segment: what follows its intact part is a torn group, unless a later frame says
    /// that it had been durable.
    fn cut_tail(
        &mut self,
        first: u64,
        bytes: &[u8],
        end: usize,
        report: &mut OpenReport,
    ) -> Result<(), OpenError> {
        let durable = frame::highest_durable_below(&bytes[end..]).unwrap_or(0);
        if durable > self.next {
            let reason = format!("record {} is damaged, {durable} were durable", self.next);
            return Err(self.corrupt(first, end as u64, reason));
        }
        let name = segment_name(first);
        let mut file = self
            .storage
            .open(&name)
            .map_err(|source| self.io(&name, source))?;
        if end < bytes.len() {
            file.truncate(end as u64)
                .map_err(|source| self.io(&name, source))?;
            report.cut = Some(Cut {
                file: self.path(first),
                offset: end as u64,
                bytes: (bytes.len() - end) as u64,
            });
        }
        // The process that wrote the end may have died before it was synced: from now on it
        // counts, so it must last.
        file.sync().map_err(|source| self.io(&name, source))
    }

    /// The last segment has no valid header: its maker died before anything could be in it.
    fn remove_unborn(
        &mut self,
        first: u64,
        bytes: u64,
        report: &mut OpenReport,
    ) -> Result<(), OpenError> {
        let name = segment_name(first);
        let removed = self
            .storage
            .remove(&name)
            .and_then(|()| self.storage.sync_dir());
        removed.map_err(|source| self.io(&name, source))?;
        report.cut = Some(Cut {
            file: self.path(first),
            offset: 0,
            bytes,
        });
        Ok(())
    }

    fn segment_numbers(&self) -> Result<Vec<u64>, OpenError> {
        let names = self.storage.list().map_err(|source| self.io("", source))?;
        let mut firsts: Vec<u64> = names
            .iter()
            .filter_map(|name| name.strip_suffix(".log")?.parse().ok())
            .filter(|&first| names.contains(&segment_name(first)))
            .collect();
        firsts.sort_unstable();
        Ok(firsts)
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let file = self.storage.open(name)?;
        let length = usize::try_from(file.len()?).map_err(io::Error::other)?;
        let mut bytes = vec![0; length];
        file.read_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    fn io(&self, name: &str, source: io::Error) -> OpenError {
        let path = self.storage.path(name);
        OpenError::Io { path, source }
    }

    fn corrupt(&self, first: u64, offset: u64, reason: String) -> OpenError {
        OpenError::Corrupt {
            file: self.path(first),
            offset,
            reason,
        }
    }
}

/// A segment's header is durable before its first group is written, so one without a header holds
/// no group that anyone was told about.
fn is_unborn(bytes: &[u8]) -> bool {
    frame::highest_durable_below(bytes).is_none()
}

//! The segmented log: groups of records are appended and synced, finished prefixes are deleted.

use std::collections::VecDeque;
use std::io;

use super::frame::{self, Frame, Kind, SEGMENT_HEADER_BYTES, SYNCED_BYTES};
use super::storage::{Storage, StorageFile};
use crate::bus::{Mark, ReplayError, Replayed};
use crate::codec::{DecodeError, Head};
use crate::fold::Fold;
use crate::record::Record;

/// The log of one directory. Not for threads: one writer owns it.
#[derive(Debug)]
pub(super) struct Log<S: Storage> {
    pub(super) storage: S,
    pub(super) segment_bytes: u64,
    /// Oldest first, without a gap in their sequence numbers.
    pub(super) segments: VecDeque<Segment>,
    /// The file behind the last segment, if it can be written further.
    pub(super) active: Option<S::File>,
    /// The sequence number of the next record.
    pub(super) next: u64,
    pub(super) fold: Fold<Location>,
}

/// One file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    /// The sequence number of its first record; names the file.
    pub(super) first: u64,
    /// Its length, as far as it is intact.
    pub(super) bytes: u64,
    /// Records in it that are the newest of an unfinished message.
    pub(super) live: u64,
}

/// Where a record's body lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Location {
    segment: u64,
    offset: u64,
    bytes: usize,
}

/// Encoded records that are written and synced together.
#[derive(Debug)]
pub(super) struct Group {
    /// Room for the synced frame, then record frames.
    bytes: Vec<u8>,
    records: u64,
}

/// A last segment with nothing unfinished in it is kept up to this length.
const SPENT_KEPT_BYTES: u64 = 1 << 20;

/// The buffer that a group keeps when it is emptied; a burst's is given back.
const GROUP_KEPT_BYTES: usize = 4 << 20;

impl Group {
    pub(super) fn new() -> Group {
        Group {
            bytes: vec![0; SYNCED_BYTES],
            records: 0,
        }
    }

    /// Adds a record; `sequence` must follow that of the record before.
    pub(super) fn push(&mut self, sequence: u64, record: &Record) {
        frame::put_record(&mut self.bytes, sequence, |out| record.encode(out));
        self.records += 1;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records == 0
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn clear(&mut self) {
        self.bytes.truncate(SYNCED_BYTES);
        self.bytes.shrink_to(GROUP_KEPT_BYTES);
        self.records = 0;
    }
}

impl<S: Storage> Log<S> {
    /// Makes `group`, which begins with the sequence number `next`, durable. After an error
    /// nothing of it counts, and the same group must be tried again: what was half written, or
    /// written and not synced, is left behind, and the next attempt goes into a new file (after a
    /// failed sync the kernel may have dropped the pages, so the old file proves nothing).
    pub(super) fn write(&mut self, group: &mut Group) -> io::Result<()> {
        debug_assert!(!group.is_empty());
        let full = self
            .segments
            .back()
            .is_some_and(|last| last.bytes >= self.segment_bytes);
        if full {
            self.active = None;
        }
        let mut file = match self.active.take() {
            Some(file) => file,
            None => self.start_segment()?,
        };
        group.bytes[..SYNCED_BYTES].copy_from_slice(&frame::synced(self.next, self.next));
        if let Err(error) = file.append(&group.bytes).and_then(|()| file.sync()) {
            // Gives the space back, and spares the next opening a look at it; it may well fail.
            let _ = file.truncate(self.segments.back().map_or(0, |last| last.bytes));
            return Err(error);
        }
        self.active = Some(file);
        self.absorb(group);
        Ok(())
    }

    /// The length of all segments together.
    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Deletes the segments at the front that hold nothing unfinished. The last one, too, is given
    /// back, behind a new one: who takes nothing more because the log is too long would wait for
    /// ever else.
    pub(super) fn retain(&mut self, now_unix_ms: u64) -> io::Result<()> {
        let segments = &mut self.segments;
        self.fold
            .expire(now_unix_ms, |location| forget(segments, *location));
        let spent = |last: &Segment| last.live == 0 && last.bytes > SPENT_KEPT_BYTES;
        if self.segments.back().is_some_and(spent) {
            self.active = None;
            self.active = Some(self.start_segment()?);
        }
        while self.segments.len() > 1 && self.segments[0].live == 0 {
            self.storage.remove(&segment_name(self.segments[0].first))?;
            self.segments.pop_front();
            // One by one: were a later removal durable before an earlier one, a crash would leave
            // a hole, and a hole reads as damage.
            self.storage.sync_dir()?;
        }
        Ok(())
    }

    /// Notes at the end that all is durable, so that later damage cannot pass for a torn end.
    pub(super) fn seal(&mut self) -> io::Result<()> {
        if let Some(mut file) = self.active.take() {
            file.append(&frame::synced(self.next, self.next))?;
            file.sync()?;
        }
        Ok(())
    }

    /// Reads what [`crate::GlobalBus::replay`] hands out.
    pub(super) fn replay(
        &self,
        app: &str,
        now_unix_ms: u64,
        visitor: &mut dyn FnMut(Record),
    ) -> Result<Replayed, ReplayError> {
        let mut found = Replayed {
            fenced: self.fold.fenced(app),
            ..Replayed::default()
        };
        let mut open: Option<(u64, S::File)> = None;
        let mut buffer = Vec::new();
        for live in self.fold.unfinished(app, now_unix_ms) {
            let at = live.location;
            let failed = |reason: String| ReplayError::Unreadable {
                place: format!("{}:{}", self.path(at.segment).display(), at.offset),
                reason,
            };
            let file = match &open {
                Some((segment, file)) if *segment == at.segment => file,
                _ => {
                    let file = self.storage.open(&segment_name(at.segment));
                    &open
                        .insert((at.segment, file.map_err(|e| failed(e.to_string()))?))
                        .1
                }
            };
            buffer.resize(at.bytes, 0);
            file.read_at(&mut buffer, at.offset)
                .map_err(|e| failed(e.to_string()))?;
            // Intact when it was opened or written; the disk may have changed its mind since.
            let frame = Frame::read(&buffer).ok_or_else(|| failed("damaged".to_owned()))?;
            let record = Record::decode(frame.body).map_err(|e| failed(e.to_string()))?;
            let count = if live.is_result {
                &mut found.results
            } else {
                &mut found.messages
            };
            *count += 1;
            visitor(record);
        }
        Ok(found)
    }

    pub(super) fn marks(&self, app: &str) -> Vec<Mark> {
        self.fold.marks(app)
    }

    pub(super) fn path(&self, segment: u64) -> std::path::PathBuf {
        self.storage.path(&segment_name(segment))
    }

    /// Takes the record in `body`, number `next`, whose frame lies at `offset` of the last segment.
    pub(super) fn take(&mut self, offset: u64, frame: &Frame<'_>) -> Result<(), DecodeError> {
        let head = Head::peek(frame.body)?;
        let segments = &mut self.segments;
        let last = segments.back().expect("a record lies in a segment").first;
        let location = Location {
            segment: last,
            offset,
            bytes: frame.bytes(),
        };
        let displaced = |location| forget(segments, location);
        if self.fold.apply(&head, frame.sequence, location, displaced) {
            self.segments.back_mut().expect("as above").live += 1;
        }
        self.next = frame.sequence + 1;
        Ok(())
    }

    /// Makes a new, durable, empty segment for the record `next`.
    fn start_segment(&mut self) -> io::Result<S::File> {
        // An attempt that left nothing intact is overwritten: the name is the same.
        while self
            .segments
            .back()
            .is_some_and(|last| last.first == self.next)
        {
            self.segments.pop_back();
        }
        let mut file = self.storage.create(&segment_name(self.next))?;
        file.append(&frame::segment_header(self.next))?;
        file.sync()?;
        self.storage.sync_dir()?;
        self.segments.push_back(Segment {
            first: self.next,
            bytes: SEGMENT_HEADER_BYTES as u64,
            live: 0,
        });
        Ok(file)
    }

    /// Takes the records of a group that has become durable.
    fn absorb(&mut self, group: &Group) {
        let start = self.segments.back().expect("just written").bytes;
        let mut at = 0;
        while let Some(frame) = Frame::read_trusted(&group.bytes[at..]) {
            if frame.kind == Kind::Record {
                let offset = start + at as u64;
                self.take(offset, &frame).expect("encoded by this process");
            }
            at += frame.bytes();
        }
        debug_assert_eq!(at, group.bytes.len());
        self.segments.back_mut().expect("as above").bytes += at as u64;
    }
}

/// The file of the segment that begins with record `first`.
pub(super) fn segment_name(first: u64) -> String {
    format!("{first:020}.log")
}

/// One record of the segment counts no longer.
fn forget(segments: &mut VecDeque<Segment>, location: Location) {
    let found = segments.binary_search_by_key(&location.segment, |segment| segment.first);
    let segment = &mut segments[found.expect("a segment with a live record is kept")];
    segment.live -= 1;
}

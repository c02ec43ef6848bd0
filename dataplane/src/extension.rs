//! Extensions of a family's payload pool: where their chunks lie, and who may loan from them.
//!
//! An extension repeats the pool's classes in a memory file of its own, which every process maps
//! behind the family's segment from the beginning: an untouched file costs no memory. Its
//! descriptors lie in the segment with all others, so recovery and audit know no difference. The
//! guardian *opens* an extension when the pool is exhausted, by one word in the family's header;
//! once nobody holds a chunk of it, it *closes* it and *renews* it: an empty file takes its place,
//! and the old one's memory goes back as soon as nobody maps it any more.

use core::mem::{offset_of, size_of};

use sandpipe_abi::layout::{EXTENSIONS_MAX, FamilyHeader, PAGE};

use crate::bus::Bus;
use crate::chunk::{Holder, Loan, Pool};
use crate::claim::Delivery;
use crate::family_layout::{ChunkRange, FamilyLayout};
use crate::memory::Memory;
use crate::payload::PayloadError;
use crate::sync::{AtomicU64, Ordering, full_fence};
use crate::topology::{ChunkClass, FamilyIndex, Topology};

/// The word of one extension in its family's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExtensionWord {
    /// Which file it is: the first has 1, each that takes its place one more.
    pub(crate) generation: u64,
    /// Whether chunks may be loaned from it.
    pub(crate) open: bool,
}

impl ExtensionWord {
    pub(crate) fn from_word(word: u64) -> ExtensionWord {
        ExtensionWord {
            generation: word >> 8,
            open: word & 1 != 0,
        }
    }

    pub(crate) fn to_word(self) -> u64 {
        self.generation << 8 | u64::from(self.open)
    }

    /// Reads the word of an extension. Relaxed: a reader compares it with what it maps itself, and
    /// a loan looks twice, with a fence in between.
    pub(crate) fn load(segment: &impl Memory, extension: usize) -> ExtensionWord {
        ExtensionWord::from_word(word_of(segment, extension).load(Ordering::Relaxed))
    }

    pub(crate) fn store(self, segment: &impl Memory, extension: usize) {
        word_of(segment, extension).store(self.to_word(), Ordering::Relaxed);
    }
}

fn word_of(segment: &impl Memory, extension: usize) -> &AtomicU64 {
    segment.word(offset_of!(FamilyHeader, extension) + extension * size_of::<u64>())
}

/// Bytes of one extension: each class from a page's beginning, as in the segment.
pub(crate) fn extension_bytes(classes: &[ChunkClass]) -> usize {
    let bytes = |class: &ChunkClass| class.bytes as usize * class.count as usize;
    classes
        .iter()
        .fold(0, |end, class| (end + bytes(class)).next_multiple_of(PAGE))
}

/// How many extensions a pool can have under a limit for all pools.
pub(crate) fn extension_count(growth_bytes: u64, extension_bytes: usize) -> usize {
    let fit = growth_bytes.checked_div(extension_bytes as u64);
    fit.map_or(0, |fit| fit.min(EXTENSIONS_MAX as u64) as usize)
}

impl Topology {
    /// The same, whose pools may grow: by at most `growth_bytes` in all families together, one
    /// extension as large as the family's pool at a time, at most [`EXTENSIONS_MAX`] a family.
    ///
    /// [`EXTENSIONS_MAX`]: sandpipe_abi::layout::EXTENSIONS_MAX
    #[must_use]
    pub fn with_growth(mut self, growth_bytes: u64) -> Topology {
        self.growth_bytes = growth_bytes;
        self
    }

    /// By how many bytes all pools together may grow; 0: not at all.
    #[must_use]
    pub fn growth_bytes(&self) -> u64 {
        self.growth_bytes
    }
}

impl FamilyLayout {
    /// Chunks of all classes, those of the extensions included.
    #[must_use]
    pub fn chunk_count(&self) -> u32 {
        self.segment_chunks() * (1 + self.extensions as u32)
    }

    /// Chunks of all classes in the segment, and in each extension.
    pub(crate) fn segment_chunks(&self) -> u32 {
        self.chunks.iter().map(|range| range.count).sum()
    }

    /// Bytes of the segment and all its extensions, as they are mapped one behind the other.
    #[must_use]
    pub fn span(&self) -> usize {
        self.bytes + self.extensions * self.extension_bytes
    }

    /// Offset of an extension, from the segment's beginning.
    #[must_use]
    pub fn extension_at(&self, extension: usize) -> usize {
        self.bytes + extension * self.extension_bytes
    }

    /// The chunks of one class in an extension.
    fn extended_range(&self, extension: usize, class: usize) -> ChunkRange {
        let range = self.chunks[class];
        ChunkRange {
            first: range.first + (1 + extension as u32) * self.segment_chunks(),
            data_at: self.extension_at(extension) + (range.data_at - self.control_bytes),
            ..range
        }
    }

    /// Indices of an extension's chunks.
    pub(crate) fn extended_chunks(&self, extension: usize) -> core::ops::Range<u32> {
        let count = self.segment_chunks();
        let first = (1 + extension as u32) * count;
        first..first + count
    }

    /// Which extension a chunk is of; offset and size of its data. `None` if none has it.
    #[must_use]
    pub fn extended_data(&self, chunk: u32) -> Option<(usize, usize, u64)> {
        let extension = chunk.checked_div(self.segment_chunks())?.checked_sub(1)? as usize;
        if extension >= self.extensions {
            return None;
        }
        (0..self.chunks.len()).find_map(|class| {
            let range = self.extended_range(extension, class);
            let index = chunk.checked_sub(range.first)?;
            let at = range.data_at + index as usize * range.bytes as usize;
            (index < range.count).then_some((extension, at, range.bytes))
        })
    }
}

impl<M: Memory> Pool<M> {
    /// Takes a chunk of an open extension, after the segment had none. If the caller dies inside,
    /// recovery of its slot frees the chunk.
    #[cold]
    pub(crate) fn loan_extended(&self, len: u64, holders: &[Holder<M>]) -> Option<Loan> {
        let layout = self.layout();
        (0..layout.extensions).find_map(|extension| {
            let seen = self.open_extension(extension)?;
            let classes = (0..layout.chunks.len()).map(|c| layout.extended_range(extension, c));
            for range in classes.filter(|range| range.bytes >= len) {
                let found = self.take_any(&range, 0).or_else(|| {
                    self.reclaim(&range, holders);
                    self.take_any(&range, 0)
                });
                let Some(index) = found else { continue };
                let chunk = range.first + index;
                // SYNC(extension): the chunk is taken before the second look at the word; the
                // guardian closes the word before it looks at the chunks. One of them sees the
                // other, so that nobody loans from a file that goes.
                full_fence();
                if self.open_extension(extension) != Some(seen) {
                    self.give_back(chunk);
                    return None;
                }
                return Some(Loan {
                    chunk,
                    data_at: range.data_at + index as usize * range.bytes as usize,
                    len: len as u32,
                });
            }
            None
        })
    }

    /// The word of an extension if chunks may be loaned from the file that this process maps.
    fn open_extension(&self, extension: usize) -> Option<ExtensionWord> {
        let word = ExtensionWord::load(self.memory(), extension);
        (word.open && word.generation == self.memory().generation(extension)).then_some(word)
    }

    /// Closes an extension unless somebody has a chunk of it; true if it is closed. Only the
    /// guardian does it, and again after a death inside.
    pub(crate) fn close(&self, extension: usize, generation: u64, holders: &[Holder<M>]) -> bool {
        let store = |open| ExtensionWord { generation, open }.store(self.memory(), extension);
        store(false);
        // SYNC(extension): see the loan.
        full_fence();
        let is_idle = self.is_idle(extension, holders);
        if !is_idle {
            store(true);
        }
        is_idle
    }

    /// Whether nobody has a chunk of an extension.
    pub(crate) fn is_idle(&self, extension: usize, holders: &[Holder<M>]) -> bool {
        let chunks = self.layout().extended_chunks(extension);
        self.in_use_of(chunks, holders) == (0, 0)
    }
}

impl<M: Memory> Bus<M> {
    /// Bytes of `family`'s payload pool with the extensions that are open now, and how many those
    /// are; what is not mapped has none. A few loads, no system call.
    #[must_use]
    pub fn pool_size(&self, family: FamilyIndex) -> (u64, u64) {
        let layout = self.layout_of(family);
        let Some(segment) = self.segment(family) else {
            return (0, 0);
        };
        let is_open = |&extension: &usize| ExtensionWord::load(segment, extension).open;
        let open = (0..layout.extensions).filter(is_open).count() as u64;
        ((1 + open) * layout.extension_bytes as u64, open)
    }

    /// Where a payload lies that the publisher's segment does not hold: in an extension, or
    /// nowhere.
    #[cold]
    pub(crate) fn locate_extended<'a>(
        &self,
        delivery: &Delivery,
        segment: &'a M,
    ) -> Result<(&'a M, usize), PayloadError> {
        let (family, len) = (delivery.source, delivery.message.len);
        let chunk = delivery.message.body.chunk().unwrap_or(u32::MAX);
        if let Some((extension, at, bytes)) = self.layout_of(family).extended_data(chunk)
            && u64::from(len) <= bytes
        {
            let generation = ExtensionWord::load(segment, extension).generation;
            if generation == segment.generation(extension) {
                return Ok((segment, at));
            }
            if self.is_stale() {
                return Err(PayloadError::Outdated(family.0));
            }
        }
        self.count_refused(delivery);
        Err(PayloadError::BadReference {
            family: family.0,
            chunk,
            len,
        })
    }
}

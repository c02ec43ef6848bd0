//! Shared memory as the ring core sees it: an array of 64-bit words.
//!
//! The core never forms a reference to anything but atomic words, so bytes that another process
//! writes at the same time are never undefined behaviour, only wrong values, which are checked.

use crate::sync::{AtomicU64, Ordering};

/// A run of words that one process may write and others read. Offsets are bytes, 8-aligned.
pub trait Memory: Clone {
    /// A run of words from a byte offset, its place checked once.
    ///
    /// # Panics
    /// If the words do not all lie inside the memory or are not aligned: the offset did not come
    /// from a checked [`crate::Topology`].
    fn words(&self, offset: usize, count: usize) -> &[AtomicU64];

    /// The word at a byte offset.
    ///
    /// # Panics
    /// As [`Memory::words`].
    #[inline(always)]
    fn word(&self, offset: usize) -> &AtomicU64 {
        &self.words(offset, 1)[0]
    }

    /// A run of `N` words.
    ///
    /// # Panics
    /// As [`Memory::words`].
    #[inline(always)]
    fn array<const N: usize>(&self, offset: usize) -> &[AtomicU64; N] {
        self.words(offset, N)
            .try_into()
            .expect("as many words as asked for")
    }

    /// Which file of a pool's extension this process maps here, as the extension's word counts
    /// them.
    fn generation(&self, _extension: usize) -> u64 {
        0
    }

    /// Bytes of the memory.
    fn len(&self) -> usize;

    /// Whether the memory has no words at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A message or payload at `offset` is read (in a loom model: nobody may write it meanwhile).
    #[inline(always)]
    fn note_read(&self, _offset: usize) {}

    /// A message or payload at `offset` is written (in a loom model: nobody may use it meanwhile).
    #[inline(always)]
    fn note_write(&self, _offset: usize) {}

    /// Copies `bytes.len()` bytes from `offset` out, word by word.
    #[inline]
    fn copy_out(&self, offset: usize, bytes: &mut [u8]) {
        self.note_read(offset);
        let (whole, rest) = bytes.as_chunks_mut::<8>();
        let words = self.words(offset, whole.len());
        for (bytes, word) in whole.iter_mut().zip(words) {
            *bytes = word.load(Ordering::Relaxed).to_le_bytes();
        }
        if !rest.is_empty() {
            let word = self.word(offset + whole.len() * 8).load(Ordering::Relaxed);
            rest.copy_from_slice(&word.to_le_bytes()[..rest.len()]);
        }
    }

    /// Copies `bytes` to `offset`, word by word; the rest of the last word becomes zero.
    #[inline]
    fn copy_in(&self, offset: usize, bytes: &[u8]) {
        self.note_write(offset);
        let (whole, rest) = bytes.as_chunks::<8>();
        for (bytes, word) in whole.iter().zip(self.words(offset, whole.len())) {
            word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        }
        if !rest.is_empty() {
            let mut word = [0; 8];
            word[..rest.len()].copy_from_slice(rest);
            self.word(offset + whole.len() * 8)
                .store(u64::from_le_bytes(word), Ordering::Relaxed);
        }
    }
}

/// Words on the heap: what loom, Miri and unit tests run the ring core on.
#[derive(Clone, Debug)]
pub struct HeapMemory {
    words: std::sync::Arc<Vec<AtomicU64>>,
    /// One a line: loom's models order no read after a later write, so what must not overlap in
    /// time is watched by these.
    #[cfg(loom)]
    lines: std::sync::Arc<Vec<loom::cell::UnsafeCell<()>>>,
    gap: core::ops::Range<usize>,
    len: usize,
}

/// Bytes of a family header that a loom model leaves out: nothing uses them, and each word costs.
const MODEL_GAP: core::ops::Range<usize> = if cfg!(loom) { 192..4096 } else { 0..0 };

impl HeapMemory {
    /// `len` zeroed bytes (rounded up to a word).
    #[must_use]
    pub fn new(len: usize) -> HeapMemory {
        let len = len.next_multiple_of(8);
        // The hint page has no header.
        let gap = if len > MODEL_GAP.end { MODEL_GAP } else { 0..0 };
        let words = (0..(len - gap.len()) / 8).map(|_| AtomicU64::new(0));
        HeapMemory {
            words: std::sync::Arc::new(words.collect()),
            #[cfg(loom)]
            lines: {
                let lines =
                    (0..(len - gap.len()).div_ceil(64)).map(|_| loom::cell::UnsafeCell::new(()));
                std::sync::Arc::new(lines.collect())
            },
            gap,
            len,
        }
    }
}

impl HeapMemory {
    fn without_gap(&self, offset: usize) -> usize {
        let behind = offset >= self.gap.end;
        offset - if behind { self.gap.len() } else { 0 }
    }
}

impl Memory for HeapMemory {
    #[inline]
    fn words(&self, offset: usize, count: usize) -> &[AtomicU64] {
        assert!(
            offset.is_multiple_of(8),
            "word offset {offset} is not a multiple of 8"
        );
        &self.words[self.without_gap(offset) / 8..][..count]
    }

    #[cfg(loom)]
    fn note_read(&self, offset: usize) {
        self.lines[self.without_gap(offset) / 64].with(|_| ());
    }

    #[cfg(loom)]
    fn note_write(&self, offset: usize) {
        self.lines[self.without_gap(offset) / 64].with_mut(|_| ());
    }

    fn len(&self) -> usize {
        self.len
    }
}

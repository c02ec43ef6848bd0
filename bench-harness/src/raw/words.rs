//! Words that processes share.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use shared_memory::{Shmem, ShmemConf, ShmemError};

use crate::error::BenchError;

/// Words that a process shares with the children it forks.
///
/// Word `i` lies on its own pair of cache lines, so that two words never share one (the adjacent
/// line is fetched along by many CPUs). The pages are populated: a first touch costs microseconds
/// and would be measured instead of the hand-over.
pub struct SharedWords {
    base: NonNull<u8>,
    stride_bytes: usize,
    count: usize,
    _pages: Pages,
}

/// What keeps the memory mapped.
enum Pages {
    Mapped { base: NonNull<u8>, len_bytes: usize },
    Named { _segment: Shmem },
}

impl SharedWords {
    /// Maps `count` words, all zero, each on its own 128 bytes.
    ///
    /// # Errors
    /// The kernel's answer when the memory cannot be mapped.
    pub fn new(count: usize) -> Result<SharedWords, BenchError> {
        SharedWords::with_stride(count, 128)
    }

    /// Maps `count` words side by side, for results that nobody polls.
    ///
    /// # Errors
    /// The kernel's answer when the memory cannot be mapped.
    pub fn packed(count: usize) -> Result<SharedWords, BenchError> {
        SharedWords::with_stride(count, 8)
    }

    /// Maps `count` words side by side in an anonymous file of memory (memfd).
    ///
    /// # Errors
    /// The kernel's answer when the memory cannot be made or mapped.
    pub fn in_memfd(count: usize) -> Result<SharedWords, BenchError> {
        let len_bytes = bytes(count, 8);
        let fd = sandpipe::segment::create("sandpipe-bench", len_bytes)
            .map_err(|e| BenchError::os("memfd_create", e))?;
        SharedWords::map(count, 8, libc::MAP_SHARED, fd.as_raw_fd())
    }

    /// Makes `count` words side by side in a named segment (`/dev/shm`), as the crate
    /// `shared_memory` does it; the name is gone when this is dropped.
    ///
    /// # Errors
    /// If the segment cannot be made.
    pub fn in_named_segment(count: usize) -> Result<SharedWords, BenchError> {
        let refused = |e: ShmemError| BenchError::os("shared_memory", io::Error::other(e));
        let len_bytes = bytes(count, 8);
        let segment = ShmemConf::new().size(len_bytes).create().map_err(refused)?;
        let base = NonNull::new(segment.as_ptr()).expect("a segment is mapped somewhere");
        // A first touch would be measured instead of the hand-over.
        for at in (0..len_bytes).step_by(4096) {
            // SAFETY: inside the segment, which is mapped writable and nobody else's yet.
            unsafe { base.add(at).write_volatile(0) };
        }
        Ok(SharedWords {
            base,
            stride_bytes: 8,
            count,
            _pages: Pages::Named { _segment: segment },
        })
    }

    fn with_stride(count: usize, stride_bytes: usize) -> Result<SharedWords, BenchError> {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        SharedWords::map(count, stride_bytes, flags, -1)
    }

    fn map(
        count: usize,
        stride_bytes: usize,
        flags: libc::c_int,
        fd: RawFd,
    ) -> Result<SharedWords, BenchError> {
        let len_bytes = bytes(count, stride_bytes);
        // SAFETY: a fresh mapping at an address that the kernel chooses overlaps nothing of ours.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                flags | libc::MAP_POPULATE,
                fd,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            let source = io::Error::last_os_error();
            let what = format!("cannot map {len_bytes} shared bytes");
            return Err(BenchError::os(what, source));
        }
        let base = NonNull::new(base.cast()).expect("mmap without MAP_FIXED never returns page 0");
        Ok(SharedWords {
            base,
            stride_bytes,
            count,
            _pages: Pages::Mapped { base, len_bytes },
        })
    }

    /// The 64-bit word `index`.
    ///
    /// # Panics
    /// If there is no such word.
    #[must_use]
    pub fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.count, "word {index} of {}", self.count);
        // SAFETY: inside the mapping (index < count, checked above), 8-byte aligned (the base is a
        // page, the stride a multiple of 8), alive as long as `self`; only atomics touch it.
        unsafe {
            self.base
                .add(index * self.stride_bytes)
                .cast::<AtomicU64>()
                .as_ref()
        }
    }

    /// The futex word `index`: the low half of the 64-bit word. Use an index for one kind only.
    ///
    /// # Panics
    /// If there is no such word.
    #[must_use]
    pub fn futex(&self, index: usize) -> &AtomicU32 {
        assert!(index < self.count, "word {index} of {}", self.count);
        // SAFETY: as in `word`; 4 bytes at an 8-byte boundary.
        unsafe {
            self.base
                .add(index * self.stride_bytes)
                .cast::<AtomicU32>()
                .as_ref()
        }
    }
}

impl fmt::Debug for SharedWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} shared words", self.count)
    }
}

fn bytes(count: usize, stride_bytes: usize) -> usize {
    (count * stride_bytes).next_multiple_of(4096)
}

impl Drop for Pages {
    fn drop(&mut self) {
        if let Pages::Mapped { base, len_bytes } = self {
            // SAFETY: exactly the mapping made in `map`; references into it cannot outlive its
            // `SharedWords`.
            unsafe { libc::munmap(base.as_ptr().cast(), *len_bytes) };
        }
    }
}

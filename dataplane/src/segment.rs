//! A memfd that one family writes: made, mapped, sealed, passed on.
#![allow(unsafe_code, reason = "mapping shared memory")]

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use sandpipe_abi::layout::EXTENSIONS_MAX;

use crate::chunk::Loan;
use crate::extension::ExtensionWord;
use crate::family_layout::FamilyLayout;
use crate::memory::Memory;

/// From the beginning: nobody cuts the file, so that nobody's access to a mapping ends in SIGBUS.
const SIZE_SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

/// The seals of a family segment in use: nobody maps it writable again, cuts it or punches a hole.
const SEALS: SealFlags = SIZE_SEALS
    .union(SealFlags::FUTURE_WRITE)
    .union(SealFlags::SEAL);

/// Why a descriptor that another process sent is no segment.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SegmentError {
    /// It is no memory file: a pipe, a directory, a socket.
    #[error("the descriptor is no memory file that can be sealed")]
    NotMemory,
    /// Somebody could cut it, or write it who should not.
    #[error("it lacks seals: has {has}, needs {needs}")]
    Unsealed {
        /// The seals that it has.
        has: String,
        /// Those that it must have.
        needs: String,
    },
    /// It is shorter than the topology says.
    #[error("it has {bytes} bytes, the topology {needs}")]
    Short {
        /// Its length.
        bytes: u64,
        /// The length that it must have.
        needs: usize,
    },
    /// Its first words are not those of the segment that was announced.
    #[error("its header is not that of family {0} in this layout")]
    Header(u16),
    /// It cannot be mapped.
    #[error("it cannot be mapped: {0}")]
    Io(#[from] io::Error),
}

/// Makes an anonymous shared-memory file of `bytes` zeroed bytes whose size is fixed from now on;
/// nothing appears in /dev/shm.
///
/// # Errors
/// The system's, e.g. too many open files.
pub fn create(name: &str, bytes: usize) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL)
        // Kernels before 6.3 do not know NOEXEC_SEAL.
        .or_else(|_| rustix::fs::memfd_create(name, flags))?;
    rustix::fs::ftruncate(&fd, bytes as u64)?;
    rustix::fs::fcntl_add_seals(&fd, SIZE_SEALS)?;
    Ok(fd)
}

/// Forbids every new writable mapping of a segment, for ever. Existing ones go on.
///
/// # Errors
/// The system's; in particular if the file was sealed before.
pub fn seal(fd: impl AsFd) -> io::Result<()> {
    Ok(rustix::fs::fcntl_add_seals(fd, SEALS)?)
}

/// Fixes the size of a file and its seals for ever: what every process may write, the hint page.
///
/// # Errors
/// The system's.
pub fn seal_size(fd: impl AsFd) -> io::Result<()> {
    Ok(rustix::fs::fcntl_add_seals(
        fd,
        SIZE_SEALS | SealFlags::SEAL,
    )?)
}

/// Checks that a peer's segment can neither shrink under this process nor be written by others.
///
/// # Errors
/// [`SegmentError`] names what is missing.
pub fn check_sealed(fd: impl AsFd, bytes: usize) -> Result<(), SegmentError> {
    check(fd, bytes, SEALS)
}

/// Checks that a file which this process is to write cannot shrink under it.
///
/// # Errors
/// [`SegmentError`] names what is missing.
pub fn check_size(fd: impl AsFd, bytes: usize) -> Result<(), SegmentError> {
    check(fd, bytes, SIZE_SEALS)
}

fn check(fd: impl AsFd, bytes: usize, needs: SealFlags) -> Result<(), SegmentError> {
    // Only memory files know of seals.
    let has = rustix::fs::fcntl_get_seals(&fd).map_err(|_| SegmentError::NotMemory)?;
    if !has.contains(needs) {
        let (has, needs) = (format!("{has:?}"), format!("{needs:?}"));
        return Err(SegmentError::Unsealed { has, needs });
    }
    // By way of its path, as the standard library asks: an agent's filter knows one such call.
    let own = rustix::fs::statat(&fd, c"", rustix::fs::AtFlags::EMPTY_PATH);
    let size = own.map_err(io::Error::from)?.st_size;
    let size = u64::try_from(size).unwrap_or(0);
    if size < bytes as u64 {
        return Err(SegmentError::Short {
            bytes: size,
            needs: bytes,
        });
    }
    Ok(())
}

/// A mapped segment. Unmapped when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
    /// Whole words in `len`.
    words: usize,
    writable: bool,
    region: Arc<Region>,
}

#[derive(Debug)]
struct Region {
    base: NonNull<u8>,
    len: usize,
    /// Which files of the pool's extensions are mapped behind the segment.
    generations: [AtomicU64; EXTENSIONS_MAX],
}

// SAFETY: a mapping is plain shared memory; every access through `Memory` is one atomic word.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}
// SAFETY: the region is only unmapped, once, by whoever drops it last.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the region was mapped with this base and length and nobody refers to it any
        // more, since every `Mapping` holds the `Arc`.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

impl Mapping {
    /// Maps the first `len` bytes of a file; `populate` of them are faulted in at once, so that no
    /// later access to them can fail.
    ///
    /// # Errors
    /// The system's; a sealed segment cannot be mapped writable; where there is no memory for the
    /// pages that are faulted in, this says so instead of a SIGBUS later.
    pub fn new(fd: impl AsFd, len: usize, writable: bool, populate: usize) -> io::Result<Mapping> {
        let write = if writable {
            ProtFlags::WRITE
        } else {
            ProtFlags::empty()
        };
        // SAFETY: a fresh shared mapping at an address of the kernel's choice.
        let base = unsafe {
            rustix::mm::mmap(
                core::ptr::null_mut(),
                len,
                ProtFlags::READ | write,
                MapFlags::SHARED,
                fd,
                0,
            )?
        };
        let mapping = Mapping::of_region(base.cast(), len, writable)?;
        mapping.populate(populate)?;
        Ok(mapping)
    }

    /// Maps a family's segment and the files of its pool's extensions one behind the other; the
    /// control words are faulted in.
    ///
    /// # Errors
    /// As [`Mapping::new`].
    pub fn of_family(
        fd: impl AsFd,
        extensions: &[impl AsFd],
        layout: &FamilyLayout,
        writable: bool,
    ) -> io::Result<Mapping> {
        if layout.extensions == 0 {
            return Mapping::new(fd, layout.bytes, writable, layout.control_bytes);
        }
        // SAFETY: a fresh mapping at an address of the kernel's choice: room for what follows.
        let base = unsafe {
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
            let none = core::ptr::null_mut();
            rustix::mm::mmap_anonymous(none, layout.span(), ProtFlags::empty(), flags)?
        };
        let mapping = Mapping::of_region(base.cast(), layout.span(), writable)?;
        mapping.place(0, layout.bytes, fd)?;
        for (extension, fd) in extensions.iter().enumerate() {
            let generation = ExtensionWord::load(&mapping, extension).generation;
            mapping.renew(layout, extension, fd, generation)?;
        }
        mapping.populate(layout.control_bytes)?;
        Ok(mapping)
    }

    /// Maps another file in the place of an extension, also for the clones of this mapping.
    ///
    /// # Errors
    /// The system's; zeros of this process's own may be mapped there then.
    pub(crate) fn renew(
        &self,
        layout: &FamilyLayout,
        extension: usize,
        fd: impl AsFd,
        generation: u64,
    ) -> io::Result<()> {
        self.place(layout.extension_at(extension), layout.extension_bytes, fd)?;
        self.set_generation(extension, generation);
        Ok(())
    }

    /// Notes which file is mapped as an extension.
    pub(crate) fn set_generation(&self, extension: usize, generation: u64) {
        // Relaxed: it is this process's own, and its user has been told by a message.
        self.region.generations[extension].store(generation, Ordering::Relaxed);
    }

    /// Maps a file over a part of the mapping.
    fn place(&self, at: usize, len: usize, fd: impl AsFd) -> io::Result<()> {
        assert!(at + len <= self.len, "outside the mapping");
        let write = if self.writable {
            ProtFlags::WRITE
        } else {
            ProtFlags::empty()
        };
        // SAFETY: the range is this mapping's own and stays mapped all the time, so that every
        // reference into it stays good: all are to atomic words, or to a loan, and of a file that
        // is replaced nothing is on loan.
        unsafe {
            let to = self.base.as_ptr().add(at).cast();
            let protection = ProtFlags::READ | write;
            let fixed = MapFlags::FIXED;
            let placed = rustix::mm::mmap(to, len, protection, MapFlags::SHARED | fixed, fd, 0);
            if let Err(error) = placed {
                // The kernel may have taken away what was there: zeros instead of a hole.
                let private = MapFlags::PRIVATE | MapFlags::NORESERVE | fixed;
                let _ = rustix::mm::mmap_anonymous(to, len, protection, private);
                return Err(error.into());
            }
        }
        Ok(())
    }

    fn of_region(base: *mut u8, len: usize, writable: bool) -> io::Result<Mapping> {
        let base = NonNull::new(base).ok_or(io::ErrorKind::InvalidData)?;
        let region = Arc::new(Region {
            base,
            len,
            generations: Default::default(),
        });
        Ok(Mapping {
            base,
            len,
            words: len / 8,
            writable,
            region,
        })
    }

    /// Faults the first bytes in.
    fn populate(&self, populate: usize) -> io::Result<()> {
        let advice = if self.writable {
            Advice::LinuxPopulateWrite
        } else {
            Advice::LinuxPopulateRead
        };
        match self.advise(populate.min(self.len), advice) {
            // Kernels before 5.14 do not know the advice: pages come with their first use.
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(Errno::FAULT) => Err(io::Error::new(
                io::ErrorKind::OutOfMemory,
                "no memory for the pages of a segment",
            )),
            Err(error) => Err(error.into()),
        }
    }

    /// Keeps the mapping out of forked children: the guardian's workers, an instance's own
    /// children.
    pub fn do_not_fork(&self) {
        // Refused only for a range that is not mapped.
        let _ = self.advise(self.len, Advice::LinuxDontFork);
    }

    /// Whether this process may write.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// The bytes of a loan, to be written in place.
    ///
    /// # Panics
    /// If the loan is not of this segment.
    #[must_use]
    pub fn loan_bytes<'a>(&'a self, loan: &'a mut Loan) -> &'a mut [u8] {
        assert!(
            self.writable && loan.data_at + loan.len as usize <= self.len,
            "a foreign loan"
        );
        // SAFETY: the range lies inside the mapping and is writable. A chunk on loan belongs to
        // this process alone: its state word names this slot, no consumer has its address before
        // the commit, and `loan` is borrowed exclusively for as long as the slice lives.
        unsafe {
            core::slice::from_raw_parts_mut(self.base.as_ptr().add(loan.data_at), loan.len as usize)
        }
    }

    /// A borrowed view of `len` bytes at `at`, for families that trust each other: another process
    /// may write the bytes, and then this is not what Rust promises of a slice. Copy out
    /// ([`crate::Bus::payload`]) wherever the publisher is not trusted.
    ///
    /// # Safety
    /// Nobody writes the bytes while the slice lives: the publisher follows the protocol, and the
    /// message is not acknowledged before the slice is gone.
    ///
    /// # Panics
    /// If the range is not inside the mapping.
    #[must_use]
    pub unsafe fn view(&self, at: usize, len: usize) -> &[u8] {
        assert!(
            at.checked_add(len).is_some_and(|end| end <= self.len),
            "outside the mapping"
        );
        // SAFETY: inside the mapping, readable; not written meanwhile by the caller's promise.
        unsafe { core::slice::from_raw_parts(self.base.as_ptr().add(at), len) }
    }

    fn advise(&self, len: usize, advice: Advice) -> Result<(), Errno> {
        if len == 0 {
            return Ok(());
        }
        // SAFETY: the range is this mapping's own; these advices change no contents.
        unsafe { rustix::mm::madvise(self.base.as_ptr().cast(), len, advice) }
    }
}

/// The index of the word at an offset. That of a misaligned offset is beyond every mapping, since
/// its low bits become the highest: one comparison checks both.
#[inline(always)]
fn word_index(offset: usize) -> usize {
    offset.rotate_right(3)
}

#[cold]
#[inline(never)]
fn outside(offset: usize, count: usize) -> ! {
    panic!("no {count} words at {offset}");
}

impl Memory for Mapping {
    #[inline(always)]
    fn words(&self, offset: usize, count: usize) -> &[AtomicU64] {
        let first = word_index(offset);
        if first > self.words || count > self.words - first {
            outside(offset, count);
        }
        // SAFETY: in bounds and aligned (a mapping starts on a page). The file cannot shrink: it
        // is sealed, or its only other writer is this process's guardian. The kernel and other
        // processes access the words atomically.
        unsafe { core::slice::from_raw_parts(self.base.cast().add(first).as_ptr(), count) }
    }

    #[inline(always)]
    fn word(&self, offset: usize) -> &AtomicU64 {
        let index = word_index(offset);
        if index >= self.words {
            outside(offset, 1);
        }
        // SAFETY: as above, for one word.
        unsafe { self.base.cast::<AtomicU64>().add(index).as_ref() }
    }

    fn len(&self) -> usize {
        self.len
    }

    fn generation(&self, extension: usize) -> u64 {
        self.region.generations[extension].load(Ordering::Relaxed)
    }
}

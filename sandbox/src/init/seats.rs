//! The file in which the workers share the instances of an application: init makes it, and reads
//! what they say of it. It believes nothing of that beyond showing it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use sandpipe::FamilyIndex;

use crate::{KernelLimit, KernelLimitKind};

/// A family's words: instances that it has, and tries that were refused.
const WORDS_BYTES: u64 = 16;

pub(super) struct Seats {
    limit: u64,
    families: u16,
    file: OwnedFd,
}

impl Seats {
    pub(super) fn make(limit: u64, workers: usize) -> io::Result<Seats> {
        let file = memfd_create(c"sandpipe-seats", MemfdFlags::CLOEXEC)?;
        let families = u16::try_from(workers + 1).expect("checked with the topology");
        ftruncate(&file, u64::from(families) * WORDS_BYTES)?;
        Ok(Seats {
            limit,
            families,
            file,
        })
    }

    /// For a worker.
    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// A worker is gone, and its instances: what it has refused stays.
    pub(super) fn left(&self, family: FamilyIndex) {
        let at = u64::from(family.0) * WORDS_BYTES;
        let _ = rustix::io::pwrite(&self.file, &[0; 8], at);
    }

    pub(super) fn look(&self) -> KernelLimit {
        let words = |family: u16| {
            let mut words = [0; WORDS_BYTES as usize];
            let at = u64::from(family) * WORDS_BYTES;
            rustix::io::pread(&self.file, &mut words, at).ok()?;
            let (taken, refused) = words.split_at(8);
            let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
            Some((number(taken), number(refused)))
        };
        let all: Vec<(u64, u64)> = (1..self.families).filter_map(words).collect();
        let sum = |of: fn(&(u64, u64)) -> u64| all.iter().map(of).fold(0, u64::saturating_add);
        KernelLimit {
            kind: KernelLimitKind::Instances,
            limit: self.limit,
            now: Some(sum(|words| words.0)),
            hits: sum(|words| words.1),
        }
    }
}

//! How many instances the grains of one application may have together.
//!
//! Each worker may have one instance, so that every grain goes on whatever the others do. The rest
//! are places in a file that all workers of the application share: who has the lock of a byte has
//! the place. The kernel gives the locks of a dead worker back, and children do not inherit them.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::process;

/// How long a worker waits before it tries again: nobody tells it of a place that is free.
pub(crate) const RETRY: Duration = Duration::from_millis(10);

/// Where a family's two words stand: places taken, and tries that were refused.
const WORDS_BYTES: u64 = 16;

/// The places of one worker.
#[derive(Debug, Default)]
pub(crate) struct Seats {
    shared: Option<Shared>,
    /// Instances, the one that each worker may have included.
    taken: u64,
}

#[derive(Debug)]
struct Shared {
    file: OwnedFd,
    family: u16,
    /// How many there are beside one for each worker.
    places: u32,
    /// The places that this worker has locked.
    locked: Vec<u32>,
    refused: u64,
}

impl Seats {
    /// Takes the file over that init has left, if there is a limit.
    ///
    /// # Errors
    /// The system's: the file is not there.
    pub(crate) fn open(family: u16, places: Option<u32>) -> io::Result<Seats> {
        let Some(places) = places else {
            return Ok(Seats::default());
        };
        let file = process::inherited(crate::config::SEATS_FD)?;
        let mut words = [0; WORDS_BYTES as usize];
        // A worker before this one has counted; a file that is too short has counted nothing.
        let _ = rustix::io::pread(&file, &mut words, u64::from(family) * WORDS_BYTES);
        let [_, _, _, _, _, _, _, _, refused @ ..] = words;
        Ok(Seats {
            shared: Some(Shared {
                file,
                family,
                places,
                locked: Vec::new(),
                refused: u64::from_le_bytes(refused),
            }),
            taken: 0,
        })
    }

    /// Whether there is a limit for all grains together.
    pub(crate) fn are_limited(&self) -> bool {
        self.shared.is_some()
    }

    /// Takes a place for one more instance; false if all are taken. A system call or two beyond
    /// the first. If the caller dies, its places are free.
    pub(crate) fn take(&mut self) -> bool {
        let Some(shared) = &mut self.shared else {
            return true;
        };
        if self.taken > 0 {
            let mut others = (0..shared.places).filter(|place| !shared.locked.contains(place));
            let found = others.find(|&place| process::lock_byte(&shared.file, place, true));
            match found {
                Some(place) => shared.locked.push(place),
                None => {
                    shared.refused += 1;
                    shared.tell(self.taken);
                    return false;
                }
            }
        }
        self.taken += 1;
        shared.tell(self.taken);
        true
    }

    /// Gives the place of one instance back.
    pub(crate) fn give_back(&mut self) {
        let Some(shared) = &mut self.shared else {
            return;
        };
        self.taken = self.taken.saturating_sub(1);
        if let Some(place) = shared.locked.pop() {
            process::lock_byte(&shared.file, place, false);
        }
        shared.tell(self.taken);
    }

    /// In an instance: it needs none.
    pub(crate) fn close(&mut self) {
        self.shared = None;
    }
}

impl Shared {
    /// For who looks at the limit; nobody relies on it.
    fn tell(&self, taken: u64) {
        let mut words = [0; WORDS_BYTES as usize];
        words[..8].copy_from_slice(&taken.to_le_bytes());
        words[8..].copy_from_slice(&self.refused.to_le_bytes());
        let _ = rustix::io::pwrite(&self.file, &words, u64::from(self.family) * WORDS_BYTES);
    }
}

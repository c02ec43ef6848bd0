//! A disk in memory that fails where a test says, and that loses on a crash what was not synced.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use super::storage::{Storage, StorageFile};

/// What happens at one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// This operation fails; a write leaves half of its bytes, a sync forgets them (the kernel
    /// marks pages clean whose write-back has failed).
    Io,
    /// This one and the next two fail for want of space, a write after half of its bytes.
    DiskFull,
    /// The machine dies in the middle of this operation.
    Crash,
}

/// The disk; clones are handles of the same one.
#[derive(Clone, Debug, Default)]
pub(super) struct SimDisk(Arc<Mutex<Disk>>);

#[derive(Debug, Default)]
struct Disk {
    files: BTreeMap<String, Content>,
    /// The directory as it is on the platter.
    durable_names: BTreeMap<String, Content>,
    operations: u64,
    fault: Option<(u64, Fault)>,
    full_for: u64,
    crashed: bool,
}

/// A file; shared, since its directory entry and its content become durable apart.
type Content = Arc<Mutex<File>>;

#[derive(Debug, Default)]
struct File {
    bytes: Vec<u8>,
    /// The content on the platter; what differs may or may not have got there.
    durable: Vec<u8>,
    /// What a failed sync has forgotten; no later sync brings it to the platter.
    forgotten: Vec<Range<usize>>,
}

/// An operation that failed.
struct Failure {
    error: io::Error,
    /// `None` if the machine was dead already; else some of the effect is there.
    fault: Option<Fault>,
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> io::Error {
        failure.error
    }
}

impl SimDisk {
    /// Fails at operation number `at`, counted from now.
    pub(super) fn plan(&self, at: u64, fault: Fault) {
        let mut disk = self.lock();
        disk.operations = 0;
        disk.fault = Some((at, fault));
    }

    pub(super) fn operations(&self) -> u64 {
        self.lock().operations
    }

    pub(super) fn has_crashed(&self) -> bool {
        self.lock().crashed
    }

    /// The disk after only the process has died: nothing of what it wrote is lost, yet.
    pub(super) fn revive(&self) {
        let mut disk = self.lock();
        (disk.crashed, disk.fault) = (false, None);
    }

    /// The disk after a reboot: of what was not synced a part is there, which one `seed` says.
    pub(super) fn reboot(&self, seed: u64) -> SimDisk {
        let mut random = Random(seed);
        let old = self.lock();
        // Operations on names keep their order on a journaling file system: either none of those
        // since the last sync, or all.
        let names = if random.below(2) == 0 {
            &old.files
        } else {
            &old.durable_names
        };
        let files: BTreeMap<String, Content> = names
            .iter()
            .map(|(name, content)| {
                let bytes = content.lock().unwrap().after_power_loss(&mut random);
                let durable = bytes.clone();
                (
                    name.clone(),
                    Arc::new(Mutex::new(File {
                        bytes,
                        durable,
                        forgotten: Vec::new(),
                    })),
                )
            })
            .collect();
        let disk = Disk {
            durable_names: files.clone(),
            files,
            ..Disk::default()
        };
        SimDisk(Arc::new(Mutex::new(disk)))
    }

    /// Changes the bytes of a file, as a failing disk does.
    pub(super) fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let disk = self.lock();
        let mut file = disk.files[name].lock().unwrap();
        change(&mut file.bytes);
        file.durable = file.bytes.clone();
        file.forgotten.clear();
    }

    pub(super) fn length(&self, name: &str) -> usize {
        self.lock().files[name].lock().unwrap().bytes.len()
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.lock().files.keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap()
    }

    /// Counts an operation and lets it fail if that is the plan.
    fn step(&self) -> Result<(), Failure> {
        let failed = |error, fault| Err(Failure { error, fault });
        let mut disk = self.lock();
        if disk.crashed {
            return failed(io::Error::other("the machine is dead"), None);
        }
        let number = disk.operations;
        disk.operations += 1;
        let mut fault = disk
            .fault
            .filter(|(at, _)| *at == number)
            .map(|(_, fault)| fault);
        if disk.full_for > 0 {
            disk.full_for -= 1;
            fault = Some(Fault::DiskFull);
        } else if fault == Some(Fault::DiskFull) {
            disk.full_for = 2;
        }
        disk.crashed = fault == Some(Fault::Crash);
        match fault {
            None => Ok(()),
            Some(Fault::Io) => failed(io::Error::from_raw_os_error(5), fault),
            Some(Fault::DiskFull) => failed(io::ErrorKind::StorageFull.into(), fault),
            Some(Fault::Crash) => failed(io::Error::other("the machine is dead"), fault),
        }
    }
}

impl File {
    /// How far the platter has the same bytes.
    fn same(&self) -> usize {
        self.bytes
            .iter()
            .zip(&self.durable)
            .take_while(|(a, b)| a == b)
            .count()
    }

    fn after_power_loss(&self, random: &mut Random) -> Vec<u8> {
        let same = self.same();
        match random.below(4) {
            0 => self.durable.clone(),
            1 => self.bytes.clone(),
            // A part of the new bytes.
            2 => {
                let more = self.bytes.len() - same;
                self.bytes[..same + random.below(more + 1)].to_vec()
            }
            // All of the length, but a hole where a page did not get there.
            _ => {
                let mut bytes = self.bytes.clone();
                let from = same + random.below(bytes.len() - same + 1);
                let to = (from + 1 + random.below(64)).min(bytes.len());
                bytes[from..to].fill(0);
                bytes
            }
        }
    }
}

impl Storage for SimDisk {
    type File = SimFile;

    fn list(&self) -> io::Result<Vec<String>> {
        self.step()?;
        Ok(self.names())
    }

    fn create(&self, name: &str) -> io::Result<SimFile> {
        self.step()?;
        let mut disk = self.lock();
        let content = disk.files.entry(name.to_owned()).or_default();
        let mut file = content.lock().unwrap();
        file.bytes.clear();
        file.forgotten.clear();
        drop(file);
        Ok(SimFile {
            disk: self.clone(),
            content: Arc::clone(content),
        })
    }

    fn open(&self, name: &str) -> io::Result<SimFile> {
        self.step()?;
        let disk = self.lock();
        let content = disk.files.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(SimFile {
            disk: self.clone(),
            content: Arc::clone(content),
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.step()?;
        self.lock()
            .files
            .remove(name)
            .ok_or(io::ErrorKind::NotFound)?;
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.step()?;
        let mut disk = self.lock();
        disk.durable_names = disk.files.clone();
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("/sim").join(name)
    }
}

/// An open file.
#[derive(Debug)]
pub(super) struct SimFile {
    disk: SimDisk,
    content: Content,
}

impl StorageFile for SimFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let step = self.disk.step();
        let written = match &step {
            Ok(()) => bytes.len(),
            Err(failure) if failure.fault.is_some() => bytes.len() / 2,
            Err(_) => 0,
        };
        self.content
            .lock()
            .unwrap()
            .bytes
            .extend_from_slice(&bytes[..written]);
        Ok(step?)
    }

    fn sync(&mut self) -> io::Result<()> {
        let step = self.disk.step();
        let mut file = self.content.lock().unwrap();
        match &step {
            Ok(()) => {
                file.durable = file.bytes.clone();
                for hole in file.forgotten.clone() {
                    file.durable[hole].fill(0);
                }
            }
            Err(failure) if failure.fault != Some(Fault::Crash) => {
                let unsynced = file.same()..file.bytes.len();
                file.forgotten.push(unsynced);
            }
            Err(_) => {}
        }
        Ok(step?)
    }

    fn len(&self) -> io::Result<u64> {
        self.disk.step()?;
        Ok(self.content.lock().unwrap().bytes.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.disk.step()?;
        let file = self.content.lock().unwrap();
        let from = usize::try_from(offset).unwrap();
        let bytes = file.bytes.get(from..from + buffer.len());
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn truncate(&mut self, bytes: u64) -> io::Result<()> {
        self.disk.step()?;
        let end = usize::try_from(bytes).unwrap();
        let mut file = self.content.lock().unwrap();
        file.bytes.truncate(end);
        file.forgotten
            .iter_mut()
            .for_each(|hole| hole.end = hole.end.min(end));
        file.forgotten.retain(|hole| !hole.is_empty());
        Ok(())
    }
}

/// A small generator of numbers, the same for the same seed (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % end as u64).unwrap()
    }
}

//! What the agent hands to init: descriptors at fixed numbers, the rest as JSON in a memfd.

use std::fs::File;
use std::io;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{OwnedFd, RawFd};

use serde::{Deserialize, Serialize};

use crate::{IsolationItem, SandboxSpec};

/// The bound socket; init calls `listen`, so that its peers see init as the other end.
pub(crate) const SOCKET: RawFd = 3;
/// The locked file: the lock lives as long as init holds this descriptor.
pub(crate) const LOCK: RawFd = 4;
/// The memfd that holds [`Boot`].
pub(crate) const BOOT: RawFd = 5;
/// The pipe on which init says that it is ready, or why it cannot be.
pub(crate) const READY: RawFd = 6;
/// The first of the cgroup directories, in the order of [`Boot::cgroups`].
pub(crate) const CGROUPS: RawFd = 7;

/// What init writes into the ready pipe when it listens. Anything else is its last words.
pub(crate) const READY_WORD: &str = "ready";

/// Everything that init needs to know.
#[derive(Serialize, Deserialize)]
pub(crate) struct Boot {
    pub(crate) spec: SandboxSpec,
    pub(crate) spec_hash: u64,
    /// Which namespaces init was born in (`CLONE_NEW*`).
    pub(crate) namespaces: u64,
    /// The v1 controllers and `v2`, one inherited directory each.
    pub(crate) cgroups: Vec<String>,
    /// What the agent's part of the work turned on, and what was refused.
    pub(crate) isolation: Vec<IsolationItem>,
}

impl Boot {
    pub(crate) fn to_memfd(&self) -> io::Result<OwnedFd> {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let fd = rustix::fs::memfd_create(c"sandpipe-boot", flags)?;
        let mut file = File::from(fd);
        file.write_all(&serde_json::to_vec(self)?)?;
        file.seek(SeekFrom::Start(0))?;
        Ok(file.into())
    }

    pub(crate) fn from_memfd(fd: OwnedFd) -> io::Result<Boot> {
        let mut bytes = Vec::new();
        File::from(fd).read_to_end(&mut bytes)?;
        Ok(serde_json::from_slice(&bytes)?)
    }
}

/// A hash of the spec (FNV-1a): tells an adopting agent whether the sandbox is what it would make.
pub(crate) fn spec_hash(spec: &SandboxSpec) -> u64 {
    let bytes = serde_json::to_vec(spec).expect("a spec holds only strings and numbers");
    fnv1a(&bytes)
}

pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

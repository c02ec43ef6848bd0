//! The attach handshake: how a process gets its own segment and its peers', and how two versions
//! refuse each other.
//!
//! One SEQPACKET message a step. Participant: `Hello`, guardian: `Refused` or `Own` (descriptors:
//! own segment, hint page); participant maps, `Mapped`; the guardian seals the segment, `Peers`
//! (a descriptor for each), and again `Peers` whenever a family is made anew; participant:
//! `Attached` after each.

use core::mem::offset_of;
use core::sync::atomic::Ordering;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use sandpipe_abi::layout::{FamilyHeader, LAYOUT_VERSION, MAGIC, PAGE, layout_hash};

use crate::bus::Bus;
use crate::memory::Memory;
use crate::segment::{self, Mapping, SegmentError};
use crate::socket;
use crate::topology::{FamilyIndex, Topology, TopologyError};
use crate::wish::Wish;

/// The environment variable in which whoever starts a participant may say when: nanoseconds of
/// `CLOCK_MONOTONIC`.
pub const STARTED_VARIABLE: &str = "SANDPIPE_STARTED_NS";

/// Why a process could not attach, or lost its guardian.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// Two versions of the shared layout met.
    #[error(
        "layout mismatch: the guardian speaks version {guardian_version} (hash \
         {guardian_hash:016x}), this process version {version} (hash {hash:016x}); use binaries \
         of one Sandpipe release. The guardian says: {reason}"
    )]
    Refused {
        /// The guardian's layout version.
        guardian_version: u32,
        /// The guardian's layout hash.
        guardian_hash: u64,
        /// This process's layout version.
        version: u32,
        /// This process's layout hash.
        hash: u64,
        /// Why, in the guardian's words.
        reason: String,
    },
    /// The guardian closed the socket: the sandbox ended, or a newer participant took over.
    #[error("the guardian closed the connection")]
    Closed,
    /// No answer in time.
    #[error("the guardian did not answer within {0:?}")]
    TimedOut(Duration),
    /// A message that the protocol does not know here.
    #[error("the guardian sent an unexpected message: {0}")]
    Unexpected(String),
    /// A descriptor that the guardian sent is not what it must be.
    #[error("the segment of family {family}: {error}")]
    Segment {
        /// Whose segment it should be; the hint page counts as the own family's.
        family: u16,
        /// What is wrong with it.
        error: SegmentError,
    },
    /// The topology did not make sense.
    #[error("the guardian's topology: {0}")]
    Topology(#[from] TopologyError),
    /// The system's.
    #[error("attach: {0}")]
    Io(#[from] io::Error),
}

/// A message of the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttachMessage {
    /// Participant: who I am and what I speak.
    Hello {
        /// Layout version.
        version: u32,
        /// Layout hash.
        hash: u64,
        /// The family that it wants to be.
        family: FamilyIndex,
    },
    /// Guardian: no.
    Refused {
        /// Layout version.
        version: u32,
        /// Layout hash.
        hash: u64,
        /// Why.
        reason: String,
    },
    /// Guardian: your segment (first descriptor) and the hint page (second).
    Own {
        /// The family.
        family: FamilyIndex,
        /// Its incarnation.
        epoch: u64,
        /// [`Topology::encode`].
        topology: Vec<u8>,
    },
    /// Participant: mapped; seal it.
    Mapped,
    /// Guardian: these families' segments, a descriptor each.
    Peers(Vec<(FamilyIndex, u64)>),
    /// Participant: the peers are mapped.
    Attached,
    /// Participant: my pool is exhausted.
    Grow,
    /// Guardian: map these files, a descriptor each, as your pool's extensions: index and
    /// generation.
    Renew(Vec<(u16, u64)>),
}

impl AttachMessage {
    /// The message as bytes; the first byte tells which.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            AttachMessage::Hello {
                version,
                hash,
                family,
            } => {
                bytes.push(1);
                bytes.extend(version.to_le_bytes());
                bytes.extend(hash.to_le_bytes());
                bytes.extend(family.0.to_le_bytes());
            }
            AttachMessage::Refused {
                version,
                hash,
                reason,
            } => {
                bytes.push(2);
                bytes.extend(version.to_le_bytes());
                bytes.extend(hash.to_le_bytes());
                bytes.extend(reason.as_bytes());
            }
            AttachMessage::Own {
                family,
                epoch,
                topology,
            } => {
                bytes.push(3);
                bytes.extend(family.0.to_le_bytes());
                bytes.extend(epoch.to_le_bytes());
                bytes.extend(topology);
            }
            AttachMessage::Mapped => bytes.push(4),
            AttachMessage::Peers(peers) => {
                bytes.push(5);
                for (family, epoch) in peers {
                    bytes.extend(family.0.to_le_bytes());
                    bytes.extend(epoch.to_le_bytes());
                }
            }
            AttachMessage::Attached => bytes.push(6),
            AttachMessage::Grow => bytes.push(7),
            AttachMessage::Renew(files) => {
                bytes.push(8);
                for (index, generation) in files {
                    bytes.extend(index.to_le_bytes());
                    bytes.extend(generation.to_le_bytes());
                }
            }
        }
        bytes
    }

    /// Parses a message of another process; `None` if it is none.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<AttachMessage> {
        let (tag, mut rest) = bytes.split_first()?;
        let rest = &mut rest;
        Some(match tag {
            1 => {
                let message = AttachMessage::Hello {
                    version: u32::from_le_bytes(take(rest)?),
                    hash: u64::from_le_bytes(take(rest)?),
                    family: FamilyIndex(u16::from_le_bytes(take(rest)?)),
                };
                rest.is_empty().then_some(message)?
            }
            2 => AttachMessage::Refused {
                version: u32::from_le_bytes(take(rest)?),
                hash: u64::from_le_bytes(take(rest)?),
                reason: String::from_utf8_lossy(rest).into_owned(),
            },
            3 => AttachMessage::Own {
                family: FamilyIndex(u16::from_le_bytes(take(rest)?)),
                epoch: u64::from_le_bytes(take(rest)?),
                topology: rest.to_vec(),
            },
            4 if rest.is_empty() => AttachMessage::Mapped,
            5 => {
                let mut peers = Vec::new();
                while !rest.is_empty() {
                    let family = FamilyIndex(u16::from_le_bytes(take(rest)?));
                    peers.push((family, u64::from_le_bytes(take(rest)?)));
                }
                AttachMessage::Peers(peers)
            }
            6 if rest.is_empty() => AttachMessage::Attached,
            7 if rest.is_empty() => AttachMessage::Grow,
            8 => {
                let mut files = Vec::new();
                while !rest.is_empty() {
                    let index = u16::from_le_bytes(take(rest)?);
                    files.push((index, u64::from_le_bytes(take(rest)?)));
                }
                AttachMessage::Renew(files)
            }
            _ => return None,
        })
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*head)
}

/// An attached process's line to its guardian.
#[derive(Debug)]
pub struct Participant {
    socket: OwnedFd,
    pub(crate) wish: Wish,
}

impl Participant {
    /// Attaches as `family` over a connected SEQPACKET socket and maps the segments of all peers
    /// that exist. Blocks up to `timeout`. If the caller dies inside, the guardian sees the socket
    /// close and makes the segment anew for the next.
    ///
    /// # Errors
    /// [`AttachError`]; a version mismatch names both sides.
    pub fn attach(
        socket: OwnedFd,
        family: FamilyIndex,
        timeout: Duration,
    ) -> Result<(Participant, Bus<Mapping>), AttachError> {
        let deadline = Instant::now() + timeout;
        let (version, hash) = (LAYOUT_VERSION, layout_hash());
        let wish = Wish::default();
        let mut participant = Participant { socket, wish };
        participant.send(&AttachMessage::Hello {
            version,
            hash,
            family,
        })?;
        let (message, fds) = participant.next_message(deadline, timeout)?;
        let topology = match message {
            AttachMessage::Own {
                family: given,
                topology,
                ..
            } if given == family => topology,
            AttachMessage::Refused {
                version: guardian_version,
                hash: guardian_hash,
                reason,
            } => {
                return Err(AttachError::Refused {
                    guardian_version,
                    guardian_hash,
                    version,
                    hash,
                    reason,
                });
            }
            other => return Err(AttachError::Unexpected(format!("{other:?}"))),
        };
        let topology = Topology::decode(&topology)?;
        if family.index() >= topology.families().len() {
            return Err(AttachError::Unexpected(format!(
                "a topology without family {}",
                family.0
            )));
        }
        let layout = topology.layout(family);
        let (own, hints, extensions) = match fds.as_slice() {
            [own, hints, rest @ ..] if rest.len() == layout.extensions => (own, hints, rest),
            _ => {
                let what = format!("{} descriptors with the own segment", fds.len());
                return Err(AttachError::Unexpected(what));
            }
        };
        let wrong = |error| AttachError::segment(family, error);
        // A file that could shrink would end this process by SIGBUS.
        segment::check_size(own, layout.bytes).map_err(wrong)?;
        segment::check_size(hints, PAGE).map_err(wrong)?;
        for file in extensions {
            segment::check_size(file, layout.extension_bytes).map_err(wrong)?;
        }
        let own = Mapping::of_family(own, extensions, &layout, true)?;
        check_header(&own, family, layout.bytes).map_err(wrong)?;
        let hints = Mapping::new(hints, PAGE, true, PAGE)?;
        let mut bus = Bus::new(topology, family, own, hints);
        participant.send(&AttachMessage::Mapped)?;
        let (message, fds) = participant.next_message(deadline, timeout)?;
        participant.wish = Wish::from_now_on(&bus);
        participant.map_peers(&mut bus, message, fds)?;
        Ok((participant, bus))
    }

    /// The socket, readable when [`Participant::update`] has something to do.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Maps the segments of peers that were made anew since the last call, and files that take the
    /// places of own extensions; true if there were any.
    /// Does not block.
    ///
    /// # Errors
    /// [`AttachError::Closed`] if the guardian is gone.
    pub fn update(&mut self, bus: &mut Bus<Mapping>) -> Result<bool, AttachError> {
        let mut changed = false;
        loop {
            match socket::receive(&self.socket, false) {
                Ok((bytes, _)) if bytes.is_empty() => return Err(AttachError::Closed),
                Ok((bytes, fds)) => {
                    match parse(&bytes)? {
                        AttachMessage::Renew(files) => self.map_renewed(bus, &files, &fds)?,
                        message => self.map_peers(bus, message, fds)?,
                    }
                    changed = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(changed),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(AttachError::Closed);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn map_peers(
        &mut self,
        bus: &mut Bus<Mapping>,
        message: AttachMessage,
        fds: Vec<OwnedFd>,
    ) -> Result<(), AttachError> {
        let AttachMessage::Peers(peers) = message else {
            return Err(AttachError::Unexpected(format!("{message:?}")));
        };
        let mut fds = fds.as_slice();
        for (family, _) in peers {
            let own_or_unknown =
                family == bus.family() || family.index() >= bus.topology().families().len();
            let layout = bus
                .topology()
                .layout(if own_or_unknown { bus.family() } else { family });
            let Some((files, rest)) = fds.split_at_checked(1 + layout.extensions) else {
                let what = format!("too few descriptors for family {}", family.0);
                return Err(AttachError::Unexpected(what));
            };
            fds = rest;
            if own_or_unknown {
                continue;
            }
            let wrong = |error| AttachError::segment(family, error);
            segment::check_sealed(&files[0], layout.bytes).map_err(wrong)?;
            for file in &files[1..] {
                segment::check_sealed(file, layout.extension_bytes).map_err(wrong)?;
            }
            let mapped = Mapping::of_family(&files[0], &files[1..], &layout, false);
            bus.set_peer(family, mapped.map_err(|error| wrong(error.into()))?);
        }
        self.send(&AttachMessage::Attached)
    }

    pub(crate) fn send(&self, message: &AttachMessage) -> Result<(), AttachError> {
        match socket::send(&self.socket, &message.encode(), &[]) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(AttachError::Closed),
            result => Ok(result?),
        }
    }

    fn next_message(
        &self,
        deadline: Instant,
        timeout: Duration,
    ) -> Result<(AttachMessage, Vec<OwnedFd>), AttachError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(AttachError::TimedOut(timeout));
            }
            if socket::wait_readable(&self.socket, left)? {
                break;
            }
        }
        let (bytes, fds) = socket::receive(&self.socket, true)?;
        if bytes.is_empty() {
            return Err(AttachError::Closed);
        }
        Ok((parse(&bytes)?, fds))
    }
}

impl AttachError {
    pub(crate) fn segment(family: FamilyIndex, error: SegmentError) -> AttachError {
        let family = family.0;
        AttachError::Segment { family, error }
    }
}

/// Whether a segment says that it is this family's, in this layout: what a guardian of another
/// version, or a mixed-up descriptor, would not.
fn check_header(own: &Mapping, family: FamilyIndex, bytes: usize) -> Result<(), SegmentError> {
    let word = |at: usize| own.word(at).load(Ordering::Relaxed);
    let expected = [
        (offset_of!(FamilyHeader, magic), MAGIC),
        (offset_of!(FamilyHeader, version), u64::from(LAYOUT_VERSION)),
        (offset_of!(FamilyHeader, hash), layout_hash()),
        (offset_of!(FamilyHeader, family), u64::from(family.0)),
        (offset_of!(FamilyHeader, length), bytes as u64),
    ];
    let right = expected.iter().all(|&(at, value)| word(at) == value);
    right.then_some(()).ok_or(SegmentError::Header(family.0))
}

fn parse(bytes: &[u8]) -> Result<AttachMessage, AttachError> {
    AttachMessage::decode(bytes).ok_or_else(|| {
        AttachError::Unexpected(format!("{} bytes that are no message", bytes.len()))
    })
}

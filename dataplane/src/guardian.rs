//! The guardian's side of the segments: make, seal, repair, copy.
//!
//! Driven by the sandbox's init, which owns the processes and the sockets. After a family's death
//! its segment is repaired and copied byte for byte into a new memfd, since a sealed one cannot be
//! mapped writable again: every position, head and in-flight entry stays valid, so peers may
//! switch to the copy at any moment without losing or repeating a message.

use core::mem::offset_of;
use core::sync::atomic::Ordering;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use sandpipe_abi::layout::{
    ChunkDescriptor, FamilyHeader, HintBlock, LAYOUT_VERSION, MAGIC, PAGE, layout_hash,
};

use crate::attach::AttachMessage;
use crate::bus::Bus;
use crate::growth::{Extensions, RETIRE_AFTER};
use crate::memory::Memory;
use crate::recover::{Repair, recover_family};
use crate::segment::{self, Mapping};
use crate::topology::{FamilyIndex, Topology};

/// Keeps the segments of one sandbox. If it dies, the sandbox dies with it.
#[derive(Debug)]
pub struct Guardian {
    pub(crate) topology: Topology,
    hints: OwnedFd,
    hints_mapping: Mapping,
    pub(crate) families: Vec<Option<Family>>,
    pub(crate) retire_after: Duration,
    /// When the pools were looked at last.
    pub(crate) looked: Instant,
}

#[derive(Debug)]
pub(crate) struct Family {
    fd: OwnedFd,
    pub(crate) mapping: Mapping,
    epoch: u64,
    stage: Stage,
    pub(crate) extensions: Extensions,
}

/// How far a family is in its handshake. Each message is due once; one that is not is refused, so
/// that a storm of them costs the others nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nobody has asked for the segment yet.
    Made,
    /// It was handed out to be mapped.
    Given,
    /// Mapped, sealed, known to the others.
    Sealed,
}

impl Family {
    pub(crate) fn is_sealed(&self) -> bool {
        self.stage == Stage::Sealed
    }
}

/// What the sandbox's init does about a participant's message.
#[derive(Debug)]
pub enum Reaction<'g> {
    /// Send these bytes and descriptors to the participant.
    Reply(Vec<u8>, Vec<BorrowedFd<'g>>),
    /// Send these bytes, then close: the participant cannot take part.
    Refuse(Vec<u8>),
    /// The family's segment is sealed: send [`Guardian::peers_message`] to it, and
    /// [`Guardian::update_message`] about it to those whom [`Guardian::others`] names.
    Sealed,
    /// The participant has mapped what it was sent last. Once it has answered every message,
    /// call [`Guardian::settled`].
    Attached,
    /// Nothing is to be sent.
    Done,
    /// No message of the handshake, or one that is not due: close the connection.
    Unknown,
}

impl Guardian {
    /// Makes the hint page; families come with [`Guardian::make_family`].
    ///
    /// # Errors
    /// The system's.
    pub fn new(topology: Topology) -> io::Result<Guardian> {
        let hints = segment::create("sandpipe-hints", PAGE)?;
        // Everybody gets it writable: nobody may cut it under the others, nor seal it against them.
        segment::seal_size(&hints)?;
        let hints_mapping = Mapping::new(&hints, PAGE, true, PAGE)?;
        hints_mapping.do_not_fork();
        let families = topology.families().iter().map(|_| None).collect();
        const { assert!(size_of::<HintBlock>() * sandpipe_abi::layout::FAMILIES_MAX <= PAGE) };
        Ok(Guardian {
            topology,
            hints,
            hints_mapping,
            families,
            retire_after: RETIRE_AFTER,
            looked: Instant::now(),
        })
    }

    /// Who is in the sandbox.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Makes the segment of a family's next incarnation: zeroed the first time, afterwards a copy
    /// of the repaired predecessor. Until it is sealed only the family gets the descriptor.
    ///
    /// Call [`Guardian::repair_family`] before it whenever the family has lived.
    ///
    /// # Errors
    /// The system's; the predecessor is kept then.
    pub fn make_family(&mut self, family: FamilyIndex) -> io::Result<()> {
        let layout = self.topology.layout(family);
        let fd = segment::create("sandpipe-family", layout.bytes)?;
        let before = self.families[family.index()].as_ref();
        let extensions = Extensions::make(&layout, before.map(|before| &before.extensions))?;
        let files: Vec<_> = extensions.fds().collect();
        let mapping = Mapping::of_family(&fd, &files, &layout, true)?;
        mapping.do_not_fork();
        let epoch = before.map_or(1, |before| before.epoch + 1);
        if let Some(before) = before {
            copy_segment(&before.mapping, &mapping, &self.topology, family);
        }
        write_header(&mapping, family, epoch, layout.bytes);
        extensions.write_words(&mapping);
        for (index, generation) in extensions.generations().enumerate() {
            mapping.set_generation(index, generation);
        }
        let bus = Bus::new(
            self.topology.clone(),
            family,
            mapping.clone(),
            self.hints_mapping.clone(),
        );
        crate::lease::clear(&bus);
        self.families[family.index()] = Some(Family {
            fd,
            mapping,
            epoch,
            stage: Stage::Made,
            extensions,
        });
        Ok(())
    }

    /// Repairs a family's segment. Every process of the family is gone (waitid has said so): the
    /// caller made sure of it, since a living one would write on.
    pub fn repair_family(&mut self, family: FamilyIndex) -> Repair {
        let Some(bus) = self.view(family) else {
            return Repair::default();
        };
        let repair = recover_family(&bus);
        bus.ring_after_recovery();
        // The dead map nothing.
        self.settled(family);
        repair
    }

    /// The bus as `family` would see it; `None` before its first segment is made.
    #[must_use]
    pub fn view(&self, family: FamilyIndex) -> Option<Bus<Mapping>> {
        let own = self.families[family.index()].as_ref()?.mapping.clone();
        let mut bus = Bus::new(
            self.topology.clone(),
            family,
            own,
            self.hints_mapping.clone(),
        );
        for (index, peer) in self.families.iter().enumerate() {
            if let (Some(peer), true) = (peer, index != family.index()) {
                bus.set_peer(FamilyIndex(index as u16), peer.mapping.clone());
            }
        }
        Some(bus)
    }

    /// What to do about a message of the process that is, or wants to be, `family`.
    ///
    /// # Errors
    /// The system's, if the segment cannot be sealed.
    pub fn handle(&mut self, family: FamilyIndex, message: &[u8]) -> io::Result<Reaction<'_>> {
        match AttachMessage::decode(message) {
            Some(AttachMessage::Hello {
                version,
                hash,
                family: wanted,
            }) => Ok(self.hello(family, version, hash, wanted)),
            Some(AttachMessage::Mapped) => {
                let Some(made) = &mut self.families[family.index()] else {
                    return Ok(Reaction::Unknown);
                };
                if made.stage == Stage::Sealed {
                    return self.renewed(family);
                }
                if made.stage != Stage::Given {
                    return Ok(Reaction::Unknown);
                }
                segment::seal(&made.fd)?;
                made.extensions.seal()?;
                made.stage = Stage::Sealed;
                Ok(Reaction::Sealed)
            }
            Some(AttachMessage::Attached) => Ok(Reaction::Attached),
            Some(AttachMessage::Grow) => Ok(self.asked(family)),
            _ => Ok(Reaction::Unknown),
        }
    }

    fn hello(
        &mut self,
        family: FamilyIndex,
        version: u32,
        hash: u64,
        wanted: FamilyIndex,
    ) -> Reaction<'_> {
        let refuse = |reason: &str| {
            let refused = AttachMessage::Refused {
                version: LAYOUT_VERSION,
                hash: layout_hash(),
                reason: reason.to_string(),
            };
            Reaction::Refuse(refused.encode())
        };
        if version != LAYOUT_VERSION {
            return refuse(&format!(
                "you speak layout version {version}, not {LAYOUT_VERSION}"
            ));
        }
        if hash != layout_hash() {
            return refuse("the same layout version, but built with other sizes");
        }
        if wanted != family {
            return refuse(&format!(
                "this socket is for family {}, not {}",
                family.0, wanted.0
            ));
        }
        let Some(made) = &mut self.families[family.index()] else {
            return refuse("the family has no segment yet");
        };
        if made.stage != Stage::Made {
            return refuse("the family's segment is in use");
        }
        made.stage = Stage::Given;
        let topology = self.topology.encode();
        let own = AttachMessage::Own {
            family,
            epoch: made.epoch,
            topology,
        };
        let files = [made.fd.as_fd(), self.hints.as_fd()].into_iter();
        Reaction::Reply(own.encode(), files.chain(made.extensions.fds()).collect())
    }

    /// The first `Peers` message of a participant: every sealed segment but its own, and the files
    /// of its pool's extensions behind each.
    #[must_use]
    pub fn peers_message(&self, family: FamilyIndex) -> (Vec<u8>, Vec<BorrowedFd<'_>>) {
        self.message_about(|index| index != family.index())
    }

    /// The `Peers` message that tells the others of a family's new segment.
    #[must_use]
    pub fn update_message(&self, family: FamilyIndex) -> (Vec<u8>, Vec<BorrowedFd<'_>>) {
        self.message_about(|index| index == family.index())
    }

    fn message_about(&self, wanted: impl Fn(usize) -> bool) -> (Vec<u8>, Vec<BorrowedFd<'_>>) {
        let sealed = self
            .families
            .iter()
            .enumerate()
            .filter_map(|(index, family)| {
                let family = family
                    .as_ref()
                    .filter(|family| family.is_sealed() && wanted(index))?;
                Some((FamilyIndex(index as u16), family))
            });
        let (mut peers, mut fds) = (Vec::new(), Vec::new());
        for (index, family) in sealed {
            peers.push((index, family.epoch));
            fds.push(family.fd.as_fd());
            fds.extend(family.extensions.fds());
        }
        (AttachMessage::Peers(peers).encode(), fds)
    }

    /// Whom to tell of a family's new segment: every other family that is past its own handshake.
    /// One that is still in it must not be told: it expects its own segment first, and gets all
    /// peers at the end.
    pub fn others(&self, family: FamilyIndex) -> impl Iterator<Item = FamilyIndex> {
        let sealed = move |&(index, other): &(usize, &Option<Family>)| {
            index != family.index() && other.as_ref().is_some_and(Family::is_sealed)
        };
        let families = self.families.iter().enumerate().filter(sealed);
        families.map(|(index, _)| FamilyIndex(index as u16))
    }

    /// Wakes everybody who is parked on any bell: after a restart, so that idle instances see it.
    pub fn ring_everybody(&self) {
        for family in 0..self.families.len() {
            let queue = FamilyIndex(family as u16);
            crate::bell::Bell::new(self.hints_mapping.clone(), queue).ring_all();
        }
    }
}

fn write_header(mapping: &Mapping, family: FamilyIndex, epoch: u64, bytes: usize) {
    let put = |at: usize, value: u64| mapping.word(at).store(value, Ordering::Relaxed);
    put(offset_of!(FamilyHeader, version), u64::from(LAYOUT_VERSION));
    put(offset_of!(FamilyHeader, hash), layout_hash());
    put(offset_of!(FamilyHeader, family), u64::from(family.0));
    put(offset_of!(FamilyHeader, epoch), epoch);
    put(offset_of!(FamilyHeader, length), bytes as u64);
    put(offset_of!(FamilyHeader, magic), MAGIC);
}

/// Copies everything that means something: the control words, and the chunks that are in use.
/// Zero words are skipped, so that untouched pages stay unallocated.
fn copy_segment(from: &Mapping, to: &Mapping, topology: &Topology, family: FamilyIndex) {
    let copy = |at: usize, len: usize| {
        for at in (at..at + len).step_by(8) {
            let word = from.word(at).load(Ordering::Relaxed);
            if word != 0 {
                to.word(at).store(word, Ordering::Relaxed);
            }
        }
    };
    let layout = topology.layout(family);
    copy(0, layout.control_bytes);
    for chunk in 0..layout.chunk_count() {
        let descriptor = layout.descriptor_at(chunk);
        let word = |field: usize| from.word(descriptor + field).load(Ordering::Relaxed);
        let in_use = word(offset_of!(ChunkDescriptor, state)) & 0xff != 0;
        let extended = || {
            let (_, at, bytes) = layout.extended_data(chunk)?;
            Some((at, bytes))
        };
        let data = layout.chunk_data(chunk).or_else(extended);
        if let (true, Some((at, bytes))) = (in_use, data) {
            let len = word(offset_of!(ChunkDescriptor, len)).min(bytes);
            copy(at, (len as usize).next_multiple_of(8));
        }
    }
}

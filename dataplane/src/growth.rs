//! The guardian's side of a pool's extensions: who gets one, and when it goes back.
//!
//! A family asks once; the answer is an open word in its header, at once or as soon as the limit of
//! the application allows it. Going back takes the way of a segment that is made anew: the family
//! maps the empty file, the guardian seals it and tells the others, whose older processes retire.
//! Until everybody who may be sent a chunk of it has said that he maps it, it stays closed.

use core::mem::offset_of;
use core::sync::atomic::Ordering;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use sandpipe_abi::layout::FamilyHeader;

use crate::attach::AttachMessage;
use crate::chunk::Pool;
use crate::extension::ExtensionWord;
use crate::family_layout::FamilyLayout;
use crate::guardian::{Family, Guardian, Reaction};
use crate::memory::Memory;
use crate::segment::{self, Mapping};
use crate::topology::{FamilyIndex, SlotIndex};

/// How long nobody has a chunk of an extension before it goes back, unless the guardian is told
/// otherwise.
pub const RETIRE_AFTER: Duration = Duration::from_secs(10);

/// Looks at an open extension while that time passes.
const LOOKS: u32 = 10;

/// The extensions of one family.
#[derive(Debug)]
pub(crate) struct Extensions {
    files: Vec<Extension>,
    /// Bytes of each.
    bytes: u64,
    /// The family has asked for one and has no answer yet.
    wanted: bool,
    /// Loans that were refused to it when it was looked at last.
    refused: u64,
    answers: u64,
    /// How often one was opened for it.
    grants: u64,
}

#[derive(Debug)]
struct Extension {
    fd: OwnedFd,
    generation: u64,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Everybody maps the empty file.
    Closed,
    /// In use, or idle since then.
    Open { idle_since: Option<Instant> },
    /// The next file is there; whether the family was sent it.
    Renewing { next: OwnedFd, sent: bool },
    /// The system had no memory to map the next file: never opened again in this incarnation.
    Lost,
    /// The file is new; these families have not said yet that they map it.
    Told(Vec<FamilyIndex>),
}

impl Extensions {
    /// The files of a family's next incarnation. What was open stays so, since a copy of what it
    /// holds goes with it.
    pub(crate) fn make(
        layout: &FamilyLayout,
        before: Option<&Extensions>,
    ) -> io::Result<Extensions> {
        let make = |index: usize| {
            let before = before.map(|before| &before.files[index]);
            let is_open = before.is_some_and(Extension::is_open);
            Ok(Extension {
                fd: segment::create("sandpipe-extension", layout.extension_bytes)?,
                generation: before.map_or(1, |before| before.generation),
                stage: if is_open {
                    Stage::Open { idle_since: None }
                } else {
                    Stage::Closed
                },
            })
        };
        Ok(Extensions {
            files: (0..layout.extensions)
                .map(make)
                .collect::<io::Result<_>>()?,
            bytes: layout.extension_bytes as u64,
            wanted: false,
            refused: 0,
            answers: before.map_or(0, |before| before.answers),
            grants: before.map_or(0, |before| before.grants),
        })
    }

    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.files.iter().map(|file| file.fd.as_fd())
    }

    pub(crate) fn generations(&self) -> impl Iterator<Item = u64> {
        self.files.iter().map(|file| file.generation)
    }

    pub(crate) fn seal(&self) -> io::Result<()> {
        self.files
            .iter()
            .try_for_each(|file| segment::seal(&file.fd))
    }

    /// Writes what only the guardian says, whatever the family has left there.
    pub(crate) fn write_words(&self, mapping: &Mapping) {
        for (index, file) in self.files.iter().enumerate() {
            let word = ExtensionWord {
                generation: file.generation,
                open: file.is_open(),
            };
            word.store(mapping, index);
        }
        let put = |at: usize, value: u64| mapping.word(at).store(value, Ordering::Relaxed);
        put(offset_of!(FamilyHeader, grants), self.grants);
        // Last: who sees the answer may ask again.
        put(offset_of!(FamilyHeader, answers), self.answers);
    }

    /// The wish has come to its end.
    fn answer(&mut self) {
        self.wanted = false;
        self.answers += 1;
    }

    /// Bytes of those whose memory may still hold something: they count against the limit.
    fn in_use_bytes(&self) -> u64 {
        let in_use = |file: &&Extension| !matches!(file.stage, Stage::Closed);
        self.files.iter().filter(in_use).count() as u64 * self.bytes
    }

    /// Nobody waits any longer for a family's word.
    fn forget(&mut self, family: FamilyIndex) {
        for file in &mut self.files {
            if let Stage::Told(waiting) = &mut file.stage {
                waiting.retain(|&other| other != family);
                if waiting.is_empty() {
                    file.stage = Stage::Closed;
                }
            }
        }
    }

    /// Indices of those that are being renewed and have, or have not, been sent.
    fn renewing(&self, wanted: bool) -> impl Iterator<Item = (usize, &Extension, &OwnedFd)> {
        let files = self.files.iter().enumerate();
        files.filter_map(move |(index, file)| match &file.stage {
            Stage::Renewing { next, sent } if *sent == wanted => Some((index, file, next)),
            _ => None,
        })
    }
}

impl Extension {
    fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open { .. })
    }
}

impl Guardian {
    /// How long nobody has a chunk of an extension before it goes back: [`RETIRE_AFTER`] unless
    /// this is called.
    pub fn retire_after(&mut self, time: Duration) {
        self.retire_after = time;
    }

    /// Whether every extension is closed, empty and mapped by everybody: nothing that the pools
    /// have grown by is left.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.grown_bytes() == 0
    }

    /// A family's pool is exhausted. It may ask again once it was answered.
    pub(crate) fn asked(&mut self, family: FamilyIndex) -> Reaction<'_> {
        match self.families[family.index()].as_mut() {
            Some(asking) if asking.is_sealed() && !asking.extensions.wanted => {
                asking.extensions.wanted = true;
                self.open_wanted();
                Reaction::Done
            }
            _ => Reaction::Unknown,
        }
    }

    /// Bytes that count against the limit.
    fn grown_bytes(&self) -> u64 {
        let families = self.families.iter().flatten();
        families
            .map(|family| family.extensions.in_use_bytes())
            .sum()
    }

    /// Opens an extension for each family that wants one, as long as the limit allows it.
    fn open_wanted(&mut self) {
        let mut grown = self.grown_bytes();
        for family in self.families.iter_mut().flatten() {
            let extensions = &mut family.extensions;
            let bytes = extensions.bytes;
            if !extensions.wanted || grown + bytes > self.topology.growth_bytes() {
                continue;
            }
            let is_closed = |file: &&mut Extension| matches!(file.stage, Stage::Closed);
            if let Some(file) = extensions.files.iter_mut().find(is_closed) {
                file.stage = Stage::Open { idle_since: None };
                grown += bytes;
                extensions.grants += 1;
                extensions.answer();
                extensions.write_words(&family.mapping);
            }
        }
    }

    /// Drops the wishes of families that were refused no loan since the last call: what they could
    /// not get, they do not need any more.
    fn drop_old_wishes(&mut self) {
        for index in 0..self.families.len() {
            let bus = self.view(FamilyIndex(index as u16));
            let (Some(bus), Some(family)) = (bus, &mut self.families[index]) else {
                continue;
            };
            let refused = bus.refused_loans();
            let extensions = &mut family.extensions;
            let before = core::mem::replace(&mut extensions.refused, refused);
            if extensions.wanted && before == refused {
                extensions.answer();
                extensions.write_words(&family.mapping);
            }
        }
    }

    /// Closes extensions of which nobody has had a chunk for long enough, and makes the files that
    /// take their places ([`Guardian::renewal`]). Reads the descriptors of open extensions, when
    /// [`Guardian::next_look`] says so; with none open it does nothing.
    pub fn look_after_pools(&mut self, now: Instant) {
        if self.next_look().is_none_or(|then| now < then) {
            return;
        }
        self.looked = now;
        for index in 0..self.families.len() {
            self.close_idle(FamilyIndex(index as u16), now);
        }
        self.drop_old_wishes();
    }

    /// When [`Guardian::look_after_pools`] is due; `None` while no extension is open.
    #[must_use]
    pub fn next_look(&self) -> Option<Instant> {
        let mut files = self.families.iter().flatten();
        let any = files.any(|family| family.extensions.files.iter().any(Extension::is_open));
        any.then(|| self.looked + self.retire_after / LOOKS)
    }

    fn close_idle(&mut self, family: FamilyIndex, now: Instant) {
        let open = |family: &Family| {
            let files = family.extensions.files.iter();
            files.map(Extension::is_open).collect::<Vec<_>>()
        };
        let open = self.families[family.index()].as_ref().map(open);
        let open = open.unwrap_or_default();
        if !open.contains(&true) {
            return;
        }
        let Some(bus) = self.view(family) else {
            return;
        };
        let layout = self.topology.layout(family);
        let pool = Pool::new(
            bus.own_memory().clone(),
            bus.layouts(),
            family,
            SlotIndex(0),
        );
        let holders = bus.holders();
        let Some(owner) = self.families[family.index()].as_mut() else {
            return;
        };
        for (index, file) in owner.extensions.files.iter_mut().enumerate() {
            let Stage::Open { idle_since } = &mut file.stage else {
                continue;
            };
            if !pool.is_idle(index, &holders) {
                *idle_since = None;
                continue;
            }
            let since = *idle_since.get_or_insert(now);
            if now - since < self.retire_after {
                continue;
            }
            // Without a descriptor for the next file it stays as it is.
            let Ok(next) = segment::create("sandpipe-extension", layout.extension_bytes) else {
                continue;
            };
            if !pool.close(index, file.generation, &holders) {
                continue;
            }
            // Before anybody else has it, who could seal it against the guardian.
            let renewed = owner
                .mapping
                .renew(&layout, index, &next, file.generation + 1);
            file.stage = match renewed {
                Ok(()) => Stage::Renewing { next, sent: false },
                Err(_) => Stage::Lost,
            };
        }
    }

    /// Whom to send [`Guardian::renewal`].
    pub fn renewals(&self) -> impl Iterator<Item = FamilyIndex> {
        let due = |&(_, family): &(usize, &Option<Family>)| {
            let family = family.as_ref().filter(|family| family.is_sealed());
            family.is_some_and(|family| {
                // One after the other: its answer must be about this message.
                let extensions = &family.extensions;
                extensions.renewing(true).next().is_none()
                    && extensions.renewing(false).next().is_some()
            })
        };
        let families = self.families.iter().enumerate().filter(due);
        families.map(|(index, _)| FamilyIndex(index as u16))
    }

    /// The message with the files that take the places of closed extensions of a family, for
    /// itself; empty if none do.
    #[must_use]
    pub fn renewal(&self, family: FamilyIndex) -> (Vec<u8>, Vec<BorrowedFd<'_>>) {
        let extensions = self.families[family.index()].iter();
        let renewing = extensions.flat_map(|family| family.extensions.renewing(false));
        let (files, fds) = renewing
            .map(|(index, file, next)| ((index as u16, file.generation + 1), next.as_fd()))
            .unzip();
        (AttachMessage::Renew(files).encode(), fds)
    }

    /// The family was sent its [`Guardian::renewal`].
    pub fn renewal_sent(&mut self, family: FamilyIndex) {
        let Some(family) = &mut self.families[family.index()] else {
            return;
        };
        for file in &mut family.extensions.files {
            if let Stage::Renewing { sent, .. } = &mut file.stage {
                *sent = true;
            }
        }
    }

    /// The family maps the files that it was sent: they are sealed, and the old ones let go.
    /// An error leaves everything as it was; the family cannot go on.
    pub(crate) fn renewed(&mut self, family: FamilyIndex) -> io::Result<Reaction<'_>> {
        let targets = &self.topology.family(family).targets;
        let readers = targets.iter().map(|target| target.queue).chain([family]);
        let is_sealed = |other: &FamilyIndex| {
            let other = self.families[other.index()].as_ref();
            other.is_some_and(|other| other.is_sealed())
        };
        let readers: Vec<_> = readers.filter(is_sealed).collect();
        let Some(owner) = &mut self.families[family.index()] else {
            return Ok(Reaction::Unknown);
        };
        let sent = owner.extensions.renewing(true);
        let any = sent
            .map(|(_, _, next)| segment::seal(next))
            .collect::<io::Result<Vec<()>>>()?;
        for file in &mut owner.extensions.files {
            if !matches!(file.stage, Stage::Renewing { sent: true, .. }) {
                continue;
            }
            let told = Stage::Told(readers.clone());
            if let Stage::Renewing { next, .. } = std::mem::replace(&mut file.stage, told) {
                file.fd = next;
                file.generation += 1;
            }
        }
        owner.extensions.write_words(&owner.mapping);
        Ok(if any.is_empty() {
            Reaction::Unknown
        } else {
            Reaction::Sealed
        })
    }

    /// A participant maps everything that it was sent so far: what it may be sent a chunk of can be
    /// opened again.
    pub fn settled(&mut self, family: FamilyIndex) {
        for other in self.families.iter_mut().flatten() {
            other.extensions.forget(family);
        }
        self.open_wanted();
    }
}

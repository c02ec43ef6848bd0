//! The participant's side of a pool's extensions: asks for one, maps those that are renewed.

use core::mem::offset_of;
use core::sync::atomic::Ordering;
use std::os::fd::OwnedFd;

use sandpipe_abi::layout::FamilyHeader;

use crate::attach::{AttachError, AttachMessage, Participant};
use crate::bus::Bus;
use crate::memory::Memory;
use crate::segment::{self, Mapping};

/// What a participant has asked for.
#[derive(Debug, Default)]
pub(crate) struct Wish {
    /// Loans refused in the whole family, as far as an extension was asked for or given for them.
    refused: u64,
    /// The guardian's answers when it asked, until there are more.
    asked_at: Option<u64>,
}

impl Wish {
    /// Of what earlier processes of the family were refused, nothing is asked for.
    pub(crate) fn from_now_on(bus: &Bus<Mapping>) -> Wish {
        Wish {
            refused: bus.refused_loans(),
            asked_at: None,
        }
    }
}

impl Participant {
    /// Asks the guardian for an extension of the family's pool if a loan was refused since the last
    /// one was given, and the topology lets pools grow. Never twice for one: until the guardian has
    /// opened it, or given the wish up because nobody needed it any more, there is nothing to do. A
    /// load a slot, seldom a system call; does not block. If the caller dies inside, its successor
    /// asks.
    ///
    /// # Errors
    /// [`AttachError::Closed`] if the guardian is gone.
    pub fn ask_to_grow(&mut self, bus: &Bus<Mapping>) -> Result<(), AttachError> {
        if bus.own_layout().extensions == 0 {
            return Ok(());
        }
        let refused = bus.refused_loans();
        let answers = bus.own_memory().word(offset_of!(FamilyHeader, answers));
        let answers = answers.load(Ordering::Relaxed);
        match self.wish.asked_at {
            Some(then) if then == answers => return Ok(()),
            // What was refused until now, the new extension may have cured.
            Some(_) => self.wish.asked_at = None,
            None if refused != self.wish.refused => {
                self.send(&AttachMessage::Grow)?;
                self.wish.asked_at = Some(answers);
            }
            None => {}
        }
        self.wish.refused = refused;
        Ok(())
    }

    /// Maps the files that take the places of own extensions.
    pub(crate) fn map_renewed(
        &self,
        bus: &Bus<Mapping>,
        files: &[(u16, u64)],
        fds: &[OwnedFd],
    ) -> Result<(), AttachError> {
        let (family, layout) = (bus.family(), bus.own_layout());
        let known = |&(index, _): &(u16, u64)| usize::from(index) < layout.extensions;
        if files.len() != fds.len() || !files.iter().all(known) {
            let what = format!("{} descriptors for extensions {files:?}", fds.len());
            return Err(AttachError::Unexpected(what));
        }
        let wrong = |error| AttachError::segment(family, error);
        for (&(index, generation), fd) in files.iter().zip(fds) {
            segment::check_size(fd, layout.extension_bytes).map_err(wrong)?;
            let own = bus.own_memory();
            own.renew(layout, usize::from(index), fd, generation)?;
        }
        self.send(&AttachMessage::Mapped)
    }
}

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use sandpipe::{FamilyIndex, Guardian, Reaction};

use super::events::{Events, Watch};
use super::supervisor::Source;
use crate::wire;

/// The guardian's line to one process that takes part in the data plane.
#[derive(Debug)]
pub(super) struct Participant {
    pub(super) family: FamilyIndex,
    socket: OwnedFd,
    watch: Option<Watch>,
    /// It has its own segment and is told about the others'.
    member: bool,
    /// A message did not fit into its socket: it is told everything again later.
    behind: bool,
    /// Messages about peers that it has not answered yet. An answer that is not due ends it, or a
    /// storm of them would keep init from everybody else.
    owed: u32,
}

/// What a participant's messages led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    Nothing,
    /// Its segment is sealed: the others must hear of it.
    Joined,
    /// It has mapped all that it was sent.
    Attached,
    /// It hung up or broke the protocol.
    Gone,
}

impl Participant {
    /// Makes a line; the second half goes to the process.
    pub(super) fn pair(family: FamilyIndex) -> io::Result<(Participant, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC;
        let (socket, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        // Only this half: the process at the other end waits for its answers.
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok((
            Participant {
                family,
                socket,
                watch: None,
                member: false,
                behind: false,
                owed: 0,
            },
            other,
        ))
    }

    /// Has its messages told as `source`'s, as long as it lives.
    pub(super) fn watch(&mut self, events: &Events, source: Source) -> io::Result<()> {
        self.watch = Some(events.watch(&self.socket, source)?);
        Ok(())
    }

    /// Handles the next message, if there is one. Never blocks.
    pub(super) fn serve(&mut self, guardian: &mut Guardian) -> Progress {
        let message = match wire::receive(self.socket.as_fd()) {
            Ok(Some((message, _fds))) => message,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Progress::Nothing,
            Ok(None) | Err(_) => return Progress::Gone,
        };
        match guardian.handle(self.family, &message) {
            Ok(Reaction::Reply(bytes, fds)) => {
                match wire::send(self.socket.as_fd(), &bytes, &fds) {
                    Ok(()) => Progress::Nothing,
                    Err(_) => Progress::Gone,
                }
            }
            Ok(Reaction::Done) => Progress::Nothing,
            Ok(Reaction::Refuse(bytes)) => {
                let _ = wire::send(self.socket.as_fd(), &bytes, &[]);
                Progress::Gone
            }
            Ok(Reaction::Sealed) => {
                self.member = true;
                self.tell_all(guardian);
                Progress::Joined
            }
            Ok(Reaction::Attached) if self.owed > 0 => {
                self.owed -= 1;
                if self.owed == 0 && !self.behind {
                    guardian.settled(self.family);
                }
                Progress::Attached
            }
            Ok(Reaction::Attached | Reaction::Unknown) | Err(_) => Progress::Gone,
        }
    }

    /// Tells about another family's new segment, if it is a member already.
    pub(super) fn tell_about(&mut self, guardian: &Guardian, family: FamilyIndex) {
        if self.member && family != self.family {
            let (bytes, fds) = guardian.update_message(family);
            match wire::send(self.socket.as_fd(), &bytes, &fds) {
                Ok(()) => self.owed += 1,
                Err(_) => self.behind = true,
            }
        }
    }

    /// Tells about all segments: first, and again after one message did not get through.
    pub(super) fn tell_all(&mut self, guardian: &Guardian) {
        let (bytes, fds) = guardian.peers_message(self.family);
        self.behind = wire::send(self.socket.as_fd(), &bytes, &fds).is_err();
        self.owed += u32::from(!self.behind);
    }

    /// Sends the files that take the places of its pool's extensions; if they do not fit into its
    /// socket, they are sent another time.
    pub(super) fn send_renewal(&self, guardian: &mut Guardian) {
        let (bytes, fds) = guardian.renewal(self.family);
        if wire::send(self.socket.as_fd(), &bytes, &fds).is_ok() {
            guardian.renewal_sent(self.family);
        }
    }

    /// Whether [`Participant::tell_all`] is due.
    pub(super) fn is_behind(&self) -> bool {
        self.behind
    }
}

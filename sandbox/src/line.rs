//! An agent's line to init: a request, then its reply.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::wire::{self, Request};

/// A connection that init answers in order, each request once.
#[derive(Debug)]
pub(crate) struct Line {
    socket: OwnedFd,
    /// Replies that have not come. One that was given up comes later, if init was stopped only: it
    /// must not pass for the reply to the next request.
    owed: u32,
}

impl Line {
    pub(crate) fn new(socket: OwnedFd) -> Line {
        Line { socket, owed: 0 }
    }

    /// Sends a request and returns the packet that answers it. Blocks for as long as the socket's
    /// time limit for each reply that is owed.
    ///
    /// # Errors
    /// The socket's: `WouldBlock` if the reply did not come in time, and it may be asked again;
    /// `ConnectionReset` if init has hung up.
    pub(crate) fn ask(
        &mut self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        wire::send_json(&self.socket, request, fds)?;
        self.owed += 1;
        loop {
            let received = match wire::receive(self.socket.as_fd()) {
                Ok(received) => Ok(received.ok_or(io::ErrorKind::ConnectionReset)?),
                // Cut short for want of a descriptor, it has come all the same.
                Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(error),
                Err(error) => return Err(error),
            };
            self.owed -= 1;
            if self.owed == 0 {
                return received;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::net::sockopt::{Timeout, set_socket_timeout};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;
    use crate::wire::Reply;

    #[test]
    fn a_reply_that_is_cut_short_is_owed_no_more() {
        let kind = SocketType::SEQPACKET;
        let pair = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None);
        let (ours, init) = pair.unwrap();
        set_socket_timeout(&ours, Timeout::Recv, Some(Duration::from_secs(20))).unwrap();
        let mut line = Line::new(ours);
        wire::send(init.as_fd(), &[b' '; wire::PACKET_BYTES_MAX + 1], &[]).unwrap();
        let error = line.ask(&Request::Status, &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        wire::send_json(&init, &Reply::Noted, &[]).unwrap();
        let reply = line.ask(&Request::Status, &[]).unwrap().0;
        assert!(String::from_utf8(reply).unwrap().contains("noted"));
    }

    #[test]
    fn a_reply_that_comes_too_late_is_not_taken_for_the_next_one() {
        let kind = SocketType::SEQPACKET;
        let pair = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None);
        let (ours, init) = pair.unwrap();
        let patience = |time| set_socket_timeout(&ours, Timeout::Recv, Some(time)).unwrap();
        patience(Duration::from_millis(1));
        let mut line = Line::new(ours.try_clone().unwrap());
        let error = line.ask(&Request::Status, &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        patience(Duration::from_secs(20));
        let late = Reply::Refused {
            reason: "late".into(),
        };
        for reply in [&late, &Reply::Noted, &Reply::ShuttingDown] {
            wire::send_json(&init, reply, &[]).unwrap();
        }
        let mut ask = || String::from_utf8(line.ask(&Request::Status, &[]).unwrap().0).unwrap();
        assert!(ask().contains("noted"));
        assert!(ask().contains("shutting_down"));
    }
}

//! The guardian's side of the handshakes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use sandpipe::{Bus, FamilyIndex, Guardian, Mapping, Participant, Reaction, socket};

use super::PATIENCE;

/// The guardian's line to one family.
pub struct Line {
    socket: OwnedFd,
    /// Messages about peers that it has not answered.
    owed: u32,
}

pub fn admit(guardian: &mut Guardian, lines: &mut [Option<Line>], family: FamilyIndex) -> OwnedFd {
    guardian.make_family(family).unwrap();
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    lines[family.index()] = Some(Line {
        socket: ours,
        owed: 0,
    });
    theirs
}

pub fn join(guardian: &mut Guardian, lines: &mut [Option<Line>]) -> (Participant, Bus<Mapping>) {
    let socket = admit(guardian, lines, FamilyIndex::AGENT);
    let thread = std::thread::spawn(move || {
        Participant::attach(socket, FamilyIndex::AGENT, PATIENCE).unwrap()
    });
    while !thread.is_finished() {
        serve(guardian, lines);
    }
    thread.join().unwrap()
}

pub fn serve(guardian: &mut Guardian, lines: &mut [Option<Line>]) {
    for index in 0..lines.len() {
        while let Some(line) = &lines[index] {
            match socket::receive(&line.socket, false) {
                Ok((bytes, _)) if !bytes.is_empty() => {
                    react(guardian, lines, FamilyIndex(index as u16), &bytes);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                _ => lines[index] = None,
            }
        }
    }
    guardian.look_after_pools(Instant::now());
    for family in guardian.renewals().collect::<Vec<_>>() {
        let (bytes, fds) = guardian.renewal(family);
        if let Some(line) = &lines[family.index()]
            && socket::send(&line.socket, &bytes, &fds).is_ok()
        {
            guardian.renewal_sent(family);
        }
    }
}

fn react(guardian: &mut Guardian, lines: &mut [Option<Line>], family: FamilyIndex, bytes: &[u8]) {
    let mut send = |to: FamilyIndex, bytes: &[u8], fds: &[BorrowedFd<'_>], owed: u32| {
        if let Some(line) = &mut lines[to.index()] {
            let sent = socket::send(line.socket.as_fd(), bytes, fds);
            line.owed += if sent.is_ok() { owed } else { 0 };
        }
    };
    match guardian.handle(family, bytes).unwrap() {
        Reaction::Reply(bytes, fds) => send(family, &bytes, &fds, 0),
        Reaction::Refuse(bytes) => send(family, &bytes, &[], 0),
        Reaction::Sealed => {
            let (bytes, fds) = guardian.peers_message(family);
            send(family, &bytes, &fds, 1);
            for other in guardian.others(family) {
                let (bytes, fds) = guardian.update_message(family);
                send(other, &bytes, &fds, 1);
            }
        }
        Reaction::Attached => {
            let line = lines[family.index()].as_mut().unwrap();
            line.owed -= 1;
            if line.owed == 0 {
                guardian.settled(family);
            }
        }
        _ => {}
    }
}

//! The guardian's side of the handshakes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use sandpipe::{Bus, FamilyIndex, Guardian, Mapping, Participant, Reaction, socket};

use super::PATIENCE;

pub fn admit(
    guardian: &mut Guardian,
    sockets: &mut [Option<OwnedFd>],
    family: FamilyIndex,
) -> OwnedFd {
    guardian.make_family(family).unwrap();
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    sockets[family.index()] = Some(ours);
    theirs
}

pub fn join(
    guardian: &mut Guardian,
    sockets: &mut [Option<OwnedFd>],
) -> (Participant, Bus<Mapping>) {
    let socket = admit(guardian, sockets, FamilyIndex::AGENT);
    let thread = std::thread::spawn(move || {
        Participant::attach(socket, FamilyIndex::AGENT, PATIENCE).unwrap()
    });
    while !thread.is_finished() {
        serve(guardian, sockets);
    }
    thread.join().unwrap()
}

pub fn serve(guardian: &mut Guardian, sockets: &mut [Option<OwnedFd>]) {
    for index in 0..sockets.len() {
        while let Some(socket) = &sockets[index] {
            match socket::receive(socket, false) {
                Ok((bytes, _)) if !bytes.is_empty() => {
                    react(guardian, sockets, FamilyIndex(index as u16), &bytes);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                _ => sockets[index] = None,
            }
        }
    }
}

fn react(guardian: &mut Guardian, sockets: &[Option<OwnedFd>], family: FamilyIndex, bytes: &[u8]) {
    let send = |to: FamilyIndex, bytes: &[u8], fds: &[BorrowedFd<'_>]| {
        if let Some(socket) = &sockets[to.index()] {
            let _ = socket::send(socket.as_fd(), bytes, fds);
        }
    };
    match guardian.handle(family, bytes).unwrap() {
        Reaction::Reply(bytes, fds) => send(family, &bytes, &fds),
        Reaction::Refuse(bytes) => send(family, &bytes, &[]),
        Reaction::Sealed => {
            let (bytes, fds) = guardian.peers_message(family);
            send(family, &bytes, &fds);
            for other in guardian.others(family) {
                let (bytes, fds) = guardian.update_message(family);
                send(other, &bytes, &fds);
            }
        }
        _ => {}
    }
}

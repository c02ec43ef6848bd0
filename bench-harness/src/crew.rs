//! Processes on one local bus, without grains: the harness forks them and is their guardian.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use sandpipe::{AttachError, Bus, FamilyIndex, Guardian, Mapping, Participant, Reaction, Topology};

use crate::clock::{PEER_SILENCE_MAX, die_with_parent, pin, spin_until};
use crate::error::BenchError;
use crate::raw::{Child, fork};

/// Largest handshake message: a topology of ten families has a kilobyte.
const HANDSHAKE_BYTES_MAX: usize = 16 << 10;

type Body<'a> = Box<dyn FnOnce(Vec<Seat>) -> Result<(), BenchError> + 'a>;

/// One process of a crew.
pub struct Member<'a> {
    families: Vec<FamilyIndex>,
    cpu: usize,
    body: Body<'a>,
}

impl<'a> Member<'a> {
    /// A process that is `family`, pinned to a CPU.
    pub fn new(
        family: FamilyIndex,
        cpu: usize,
        body: impl FnOnce(Seat) -> Result<(), BenchError> + 'a,
    ) -> Member<'a> {
        Member::of_many(&[family], cpu, |mut seats| {
            let seat = seats.pop().expect("one family has one seat");
            body(seat)
        })
    }

    /// A process that takes the places of several families, in their order.
    pub fn of_many(
        families: &[FamilyIndex],
        cpu: usize,
        body: impl FnOnce(Vec<Seat>) -> Result<(), BenchError> + 'a,
    ) -> Member<'a> {
        Member {
            families: families.to_vec(),
            cpu,
            body: Box::new(body),
        }
    }
}

/// A family's place on the bus.
#[derive(Debug)]
pub struct Seat {
    /// The bus as the family sees it, every family of the crew mapped.
    pub bus: Bus<Mapping>,
    /// Kept open: its closing would tell the guardian of a death.
    _line: Participant,
}

/// Forks every member, takes each through the handshake, and waits until all have ended well.
///
/// # Errors
/// If a process cannot be forked or attached, or ends otherwise than with success.
pub fn run(topology: Topology, members: Vec<Member<'_>>) -> Result<(), BenchError> {
    let (_guardian, children) = start(topology, members)?;
    finish(children)
}

/// Waits until every process has ended well.
///
/// # Errors
/// If one ends otherwise than with success.
pub fn finish(children: Vec<Child>) -> Result<(), BenchError> {
    for (index, child) in children.into_iter().enumerate() {
        match child.wait()? {
            Some(0) => {}
            end => {
                let name = format!("bus process {}", index + 1);
                return Err(BenchError::peer(name, format!("ended with {end:?}")));
            }
        }
    }
    Ok(())
}

/// Forks every member and takes each through the handshake; gives the guardian of their segments
/// and the processes.
///
/// # Errors
/// If a process cannot be forked or attached.
pub fn start(
    topology: Topology,
    members: Vec<Member<'_>>,
) -> Result<(Guardian, Vec<Child>), BenchError> {
    let mut guardian = Guardian::new(topology).map_err(|e| BenchError::os("guardian", e))?;
    let present: Vec<FamilyIndex> = members.iter().flat_map(|m| m.families.clone()).collect();
    for &family in &present {
        guardian
            .make_family(family)
            .map_err(|e| BenchError::os("family segment", e))?;
    }
    let mut sockets = Vec::new();
    let mut children = Vec::new();
    for member in members {
        let families = member.families.clone();
        let (ours, child) = fork_member(member, &present)?;
        children.push(child);
        for (family, socket) in families.into_iter().zip(ours) {
            sockets.push(socket);
            serve(&mut guardian, family, &sockets)?;
        }
    }
    Ok((guardian, children))
}

/// Forks one member; gives the guardian's end of each of its sockets.
fn fork_member(
    member: Member<'_>,
    present: &[FamilyIndex],
) -> Result<(Vec<OwnedFd>, Child), BenchError> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in &member.families {
        let ends = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        );
        let (our, their) = ends.map_err(|e| BenchError::os("socketpair", e.into()))?;
        ours.push(our);
        theirs.push(their);
    }
    let Member {
        families,
        cpu,
        body,
    } = member;
    let name = families.first().map_or(0, |family| family.0);
    let child = fork(move || {
        die_with_parent();
        let run = || {
            pin(cpu)?;
            let attach = |(socket, family)| Line::attach(socket, family);
            let lines: Result<Vec<Line>, BenchError> =
                theirs.into_iter().zip(families).map(attach).collect();
            let seats: Result<Vec<Seat>, BenchError> = lines?
                .into_iter()
                .map(|line| line.complete(present))
                .collect();
            body(seats?)
        };
        match run() {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("sandpipe-bench: family {name}: {error}");
                1
            }
        }
    })?;
    Ok((ours, child))
}

/// An attached family that may not know all the others yet.
struct Line {
    line: Participant,
    bus: Bus<Mapping>,
}

impl Line {
    fn attach(socket: OwnedFd, family: FamilyIndex) -> Result<Line, BenchError> {
        let attached = Participant::attach(socket, family, PEER_SILENCE_MAX);
        let (line, bus) = attached.map_err(wrong)?;
        Ok(Line { line, bus })
    }

    /// Waits until every family of `present` is mapped.
    fn complete(mut self, present: &[FamilyIndex]) -> Result<Seat, BenchError> {
        let mut updated = Ok(false);
        spin_until("the other bus processes", || {
            updated = self.line.update(&mut self.bus);
            let mapped = |family: &FamilyIndex| self.bus.segment(*family).is_some();
            updated.is_err() || present.iter().all(mapped)
        })?;
        updated.map_err(wrong)?;
        Ok(Seat {
            bus: self.bus,
            _line: self.line,
        })
    }
}

fn wrong(error: AttachError) -> BenchError {
    BenchError::peer("attach", error.to_string())
}

/// Takes one family through the handshake; those before it hear of it. The last socket is its own.
fn serve(
    guardian: &mut Guardian,
    family: FamilyIndex,
    sockets: &[OwnedFd],
) -> Result<(), BenchError> {
    let (own, others) = sockets.split_last().expect("a family has a socket");
    loop {
        let message = receive(own)?;
        let reaction = guardian.handle(family, &message);
        match reaction.map_err(|e| BenchError::os("seal", e))? {
            Reaction::Reply(bytes, fds) => send(own, &bytes, &fds)?,
            Reaction::Refuse(bytes) => {
                send(own, &bytes, &[])?;
                return Err(BenchError::peer("the guardian", "refused its own fork"));
            }
            Reaction::Sealed => {
                let (bytes, fds) = guardian.peers_message(family);
                send(own, &bytes, &fds)?;
                let (bytes, fds) = guardian.update_message(family);
                for other in others {
                    send(other, &bytes, &fds)?;
                }
            }
            Reaction::Attached => return Ok(()),
            Reaction::Done | Reaction::Unknown => {
                let detail = "sent no handshake message";
                return Err(BenchError::peer("a bus process", detail));
            }
        }
    }
}

fn receive(socket: &OwnedFd) -> Result<Vec<u8>, BenchError> {
    let mut bytes = vec![0; HANDSHAKE_BYTES_MAX];
    let mut no_fds = RecvAncillaryBuffer::default();
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let message = recvmsg(socket, &mut parts, &mut no_fds, RecvFlags::empty())
        .map_err(|e| BenchError::os("handshake", e.into()))?;
    if message.bytes == 0 {
        let detail = "ended before it was attached";
        return Err(BenchError::peer("a bus process", detail));
    }
    bytes.truncate(message.bytes);
    Ok(bytes)
}

fn send(socket: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), BenchError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(32))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let parts = [IoSlice::new(bytes)];
    sendmsg(socket, &parts, &mut control, SendFlags::empty())
        .map(|_| ())
        .map_err(|e| BenchError::os("handshake", e.into()))
}

//! Two processes on one local bus, without grains: the harness forks both and is their guardian.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use sandpipe::{
    Ack, Bus, ChunkClass, Delivery, FamilyIndex, FamilySpec, Guardian, Instance, Mapping,
    MessageHeader, MessageId, PARK_MAX, Participant, Payload, Place, Reaction, Receiver, SlotIndex,
    StageError, Target, Topology, TraceStamps,
};

use crate::clock::{PEER_SILENCE_MAX, die_with_parent, pin, spin_until};
use crate::error::BenchError;
use crate::raw::{Child, fork};

/// The family that sends first.
pub const FIRST: FamilyIndex = FamilyIndex(1);
/// The family that receives first.
pub const SECOND: FamilyIndex = FamilyIndex(2);

/// Messages that a lane holds.
const LANE_SLOTS: u32 = 1024;
/// Largest handshake message: a topology of three families has a few hundred bytes.
const HANDSHAKE_BYTES_MAX: usize = 4096;

/// Two families that publish to each other, with chunks of 1 KiB and 1 MiB. Family 0, the agent,
/// takes no part.
///
/// # Panics
/// Never: its numbers are constants within the bounds.
#[must_use]
pub fn topology() -> Topology {
    let grain = |target: FamilyIndex| FamilySpec {
        slots: 1,
        targets: vec![Target {
            queue: target,
            lane_slots: LANE_SLOTS,
        }],
        chunks: vec![
            ChunkClass {
                bytes: 1024,
                count: 64,
            },
            ChunkClass {
                bytes: 1 << 20,
                count: 4,
            },
        ],
    };
    let agent = FamilySpec {
        slots: 1,
        targets: vec![],
        chunks: vec![],
    };
    Topology::new(vec![agent, grain(SECOND), grain(FIRST)]).expect("the numbers are in bounds")
}

/// Forks a process for each family, each pinned to its CPU, and waits until both have ended well.
///
/// # Errors
/// If a process cannot be forked or attached, or ends otherwise than with success.
pub fn run(
    cpus: [usize; 2],
    first: impl FnOnce(Peer) -> Result<(), BenchError>,
    second: impl FnOnce(Peer) -> Result<(), BenchError>,
) -> Result<(), BenchError> {
    let topology = topology();
    let mut guardian = Guardian::new(topology).map_err(|e| BenchError::os("guardian", e))?;
    for family in [FIRST, SECOND] {
        guardian
            .make_family(family)
            .map_err(|e| BenchError::os("family segment", e))?;
    }
    let (one, first) = member(FIRST, SECOND, cpus[0], first)?;
    serve(&mut guardian, FIRST, &[&one])?;
    let (two, second) = member(SECOND, FIRST, cpus[1], second)?;
    serve(&mut guardian, SECOND, &[&two, &one])?;
    for (child, name) in [(first, "the first process"), (second, "the second process")] {
        match child.wait()? {
            Some(0) => {}
            end => return Err(BenchError::peer(name, format!("ended with {end:?}"))),
        }
    }
    Ok(())
}

/// Forks one family's process; gives the guardian's end of its socket.
fn member(
    me: FamilyIndex,
    other: FamilyIndex,
    cpu: usize,
    body: impl FnOnce(Peer) -> Result<(), BenchError>,
) -> Result<(OwnedFd, Child), BenchError> {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|e| BenchError::os("socketpair", e.into()))?;
    let child = fork(move || {
        die_with_parent();
        let run = || {
            pin(cpu)?;
            body(Peer::attach(theirs, me, other)?)
        };
        match run() {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("sandpipe-bench: family {}: {error}", me.0);
                1
            }
        }
    })?;
    Ok((ours, child))
}

/// Takes one family through the handshake; the others hear of it. `sockets[0]` is its own.
fn serve(
    guardian: &mut Guardian,
    family: FamilyIndex,
    sockets: &[&OwnedFd],
) -> Result<(), BenchError> {
    loop {
        let message = receive(sockets[0])?;
        let reaction = guardian.handle(family, &message);
        match reaction.map_err(|e| BenchError::os("seal", e))? {
            Reaction::Reply(bytes, fds) => send(sockets[0], &bytes, &fds)?,
            Reaction::Refuse(bytes) => {
                send(sockets[0], &bytes, &[])?;
                return Err(BenchError::peer("the guardian", "refused its own fork"));
            }
            Reaction::Sealed => {
                let (bytes, fds) = guardian.peers_message(family);
                send(sockets[0], &bytes, &fds)?;
                let (bytes, fds) = guardian.update_message(family);
                for other in &sockets[1..] {
                    send(other, &bytes, &fds)?;
                }
            }
            Reaction::Attached => return Ok(()),
            Reaction::Unknown => {
                return Err(BenchError::peer(
                    "a bus process",
                    "sent no handshake message",
                ));
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
        return Err(BenchError::peer(
            "a bus process",
            "ended before it was attached",
        ));
    }
    bytes.truncate(message.bytes);
    Ok(bytes)
}

fn send(socket: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), BenchError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::empty(),
    )
    .map(|_| ())
    .map_err(|e| BenchError::os("handshake", e.into()))
}

/// One process's end of the pair.
#[derive(Debug)]
pub struct Peer {
    bus: Bus<Mapping>,
    instance: Instance<Mapping>,
    receiver: Receiver<Mapping>,
    me: FamilyIndex,
    other: FamilyIndex,
    sent: u128,
    /// Kept open: its closing would tell the guardian of a death.
    _line: Participant,
}

impl Peer {
    fn attach(socket: OwnedFd, me: FamilyIndex, other: FamilyIndex) -> Result<Peer, BenchError> {
        let wrong = |e: sandpipe::AttachError| BenchError::peer("attach", e.to_string());
        let (mut line, mut bus) =
            Participant::attach(socket, me, PEER_SILENCE_MAX).map_err(wrong)?;
        let mut updated = Ok(false);
        spin_until("the other bus process", || {
            updated = line.update(&mut bus);
            updated.is_err() || bus.segment(other).is_some()
        })?;
        updated.map_err(wrong)?;
        Ok(Peer {
            instance: bus.instance(SlotIndex(0)),
            receiver: bus.receiver(),
            bus,
            me,
            other,
            sent: 0,
            _line: line,
        })
    }

    fn header(&mut self) -> MessageHeader {
        self.sent += 1;
        let id = MessageId(self.sent);
        MessageHeader::event(id, id, MessageId::NONE, self.other)
    }

    /// Sends at most 64 bytes and acknowledges an input in one commit.
    ///
    /// # Errors
    /// If the lane is full.
    #[inline]
    pub fn send_inline(&mut self, bytes: &[u8], ack: Ack) -> Result<(), BenchError> {
        let header = self.header();
        self.instance
            .stage(
                self.other,
                &header,
                Payload::Inline(bytes),
                TraceStamps::default(),
            )
            .map_err(not_staged)?;
        self.instance.commit(ack);
        Ok(())
    }

    /// Sends `len` bytes in a chunk, writing `head` to its beginning only, and acknowledges an
    /// input in one commit. With `head` as long as `len` the whole payload is written.
    ///
    /// # Errors
    /// If no chunk is free or the lane is full.
    #[inline]
    pub fn send_chunk(&mut self, len: usize, head: &[u8], ack: Ack) -> Result<(), BenchError> {
        let loan = self
            .instance
            .loan(len)
            .map_err(|e| BenchError::peer("the pool", e.to_string()))?;
        self.instance.write(&loan, 0, head);
        let header = self.header();
        self.instance
            .stage(
                self.other,
                &header,
                Payload::Loaned(&loan),
                TraceStamps::default(),
            )
            .map_err(not_staged)?;
        self.instance.commit(ack);
        Ok(())
    }

    /// Receives, spinning, and copies the first `bytes.len()` bytes of the payload out.
    ///
    /// # Errors
    /// If nothing comes for a long time, or a payload is not where its message says.
    #[inline]
    pub fn receive_spinning(&mut self, bytes: &mut [u8]) -> Result<(Delivery, Place), BenchError> {
        let mut received = None;
        spin_until("the sender on the local bus", || {
            received = self.receiver.receive();
            received.is_some()
        })?;
        self.copied(received, bytes)
    }

    /// Receives, parked on the queue's bell until a message is there.
    ///
    /// # Errors
    /// As [`Peer::receive_spinning`].
    pub fn receive_parked(&mut self, bytes: &mut [u8]) -> Result<(Delivery, Place), BenchError> {
        let bell = self.bus.bell(self.me);
        let parks_max = PEER_SILENCE_MAX.as_millis() / PARK_MAX.as_millis();
        for _ in 0..parks_max {
            if let received @ Some(_) = self.receiver.receive() {
                return self.copied(received, bytes);
            }
            let parking = bell.prepare();
            if self.receiver.has_message() {
                parking.cancel();
            } else {
                parking.sleep(Duration::MAX);
            }
        }
        Err(BenchError::peer("the sender on the local bus", "silent"))
    }

    #[inline]
    fn copied(
        &self,
        received: Option<(Delivery, Place)>,
        bytes: &mut [u8],
    ) -> Result<(Delivery, Place), BenchError> {
        let received = received.ok_or_else(|| BenchError::peer("the local bus", "no message"))?;
        self.bus
            .payload_of(&received.0)
            .map_err(|e| BenchError::peer("the local bus", e.to_string()))?
            .copy_to(bytes);
        Ok(received)
    }

    /// Acknowledges a message that no commit carries.
    #[inline]
    pub fn acknowledge(&mut self, place: Place) {
        self.receiver.acknowledge(place);
    }

    /// After a commit that carried a message's acknowledgement.
    #[inline]
    pub fn acknowledged(&mut self, place: Place) {
        self.receiver.acknowledged(place);
    }
}

fn not_staged(error: StageError) -> BenchError {
    BenchError::peer("the local bus", error.to_string())
}

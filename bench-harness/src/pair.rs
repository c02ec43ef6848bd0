//! Two processes on one local bus that publish to each other.

use std::time::Duration;

use sandpipe::{
    Ack, ChunkClass, Delivery, FamilyIndex, FamilySpec, Instance, Mapping, MessageHeader,
    MessageId, PARK_MAX, Payload, Place, Receiver, SlotIndex, StageError, Target, Topology,
    TraceStamps,
};

use crate::clock::{PEER_SILENCE_MAX, spin_until};
use crate::crew::{self, Member, Seat};
use crate::error::BenchError;

/// The family that sends first.
pub const FIRST: FamilyIndex = FamilyIndex(1);
/// The family that receives first.
pub const SECOND: FamilyIndex = FamilyIndex(2);

/// Messages that a lane holds.
const LANE_SLOTS: u32 = 1024;

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
/// As [`crew::run`].
pub fn run(
    cpus: [usize; 2],
    first: impl FnOnce(Peer) -> Result<(), BenchError>,
    second: impl FnOnce(Peer) -> Result<(), BenchError>,
) -> Result<(), BenchError> {
    let first = Member::new(FIRST, cpus[0], |seat| first(Peer::new(seat, FIRST, SECOND)));
    let second = Member::new(SECOND, cpus[1], |seat| {
        second(Peer::new(seat, SECOND, FIRST))
    });
    crew::run(topology(), vec![first, second])
}

/// One process's end of the pair.
#[derive(Debug)]
pub struct Peer {
    seat: Seat,
    instance: Instance<Mapping>,
    receiver: Receiver<Mapping>,
    me: FamilyIndex,
    other: FamilyIndex,
    sent: u128,
}

impl Peer {
    fn new(seat: Seat, me: FamilyIndex, other: FamilyIndex) -> Peer {
        Peer {
            instance: seat.bus.instance(SlotIndex(0)),
            receiver: seat.bus.receiver(),
            seat,
            me,
            other,
            sent: 0,
        }
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
        let bell = self.seat.bus.bell(self.me);
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
        self.seat
            .bus
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

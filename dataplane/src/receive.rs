//! Exclusive receive: one process reads a queue and handles its messages in place.
//!
//! A message stays in its lane until it is acknowledged. `cursor` moves with every acknowledgement
//! (recovery reads it), `head` only now and then (it costs the producer a cache miss). The host
//! agent reads ahead: [`Receiver::receive`] goes on while earlier messages wait for their backup.

use core::mem::offset_of;

use sandpipe_abi::layout::LaneHead;

use crate::bus::Bus;
use crate::claim::Delivery;
use crate::counters::{Count, Tally};
use crate::instance::ack_of_cursor;
use crate::lane::{LaneReader, Look};
use crate::memory::Memory;
use crate::refusal::{Refusal, Refusals, Violation};
use crate::sync::Ordering;
use crate::topology::{FamilyIndex, SlotIndex};

/// Reads every lane of one queue; held by one thread.
#[derive(Debug)]
pub struct Receiver<M> {
    own: M,
    lanes: Vec<ReceiveLane<M>>,
    next_lane: usize,
    /// Messages received since nothing was found.
    streak: u32,
    /// Whoever reads a queue alone holds slot 0.
    tally: Tally<M>,
    refusals: Refusals,
}

/// After so many messages of a lane the next one has its turn, however full this one is.
const TURN: u64 = 64;
/// So many messages in a row are a stream.
const STREAK_MIN: u32 = 4;
/// Pauses of the processor that a consumer leaves to a producer: about 1.5 us.
const REST_PAUSES: u32 = 64;

#[derive(Debug)]
struct ReceiveLane<M> {
    source: FamilyIndex,
    head_at: usize,
    reader: Option<LaneReader<M>>,
    /// Next position to hand out.
    position: u64,
    cursor: u64,
    head: u64,
}

/// Where a received message lies: needed to acknowledge it without a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the incoming lane.
    pub lane: usize,
    /// Position in the lane.
    pub position: u64,
}

impl<M: Memory> Receiver<M> {
    pub(crate) fn new(bus: &Bus<M>) -> Receiver<M> {
        let own = bus.own_memory().clone();
        let lanes = bus.own_layout().lanes.iter().map(|lane| {
            let cursor_at = lane.head_at + offset_of!(LaneHead, cursor);
            let cursor = own.word(cursor_at).load(Ordering::Relaxed);
            ReceiveLane {
                source: lane.source,
                head_at: lane.head_at,
                reader: bus.lane_reader(lane),
                position: cursor,
                cursor,
                head: own.word(lane.head_at).load(Ordering::Relaxed),
            }
        });
        let lanes = lanes.collect();
        Receiver {
            own,
            lanes,
            next_lane: 0,
            streak: 0,
            tally: bus.tally(SlotIndex(0)),
            refusals: Refusals::new(bus.topology().families().len()),
        }
    }

    /// Uses the segments that the bus maps now; positions stay as they are. Who was refused stays
    /// so: a family's new segment is a copy of its old one.
    pub fn rebind(&mut self, bus: &Bus<M>) {
        for (lane, incoming) in self.lanes.iter_mut().zip(&bus.own_layout().lanes) {
            lane.reader = match self.refusals.of(incoming.source) {
                None => bus.lane_reader(incoming),
                Some(_) => None,
            };
        }
    }

    /// Reads nothing of `family` any more: it wrote what no honest family writes. What was received
    /// of it before stays received. The rest of the lanes go on.
    #[cold]
    pub fn refuse(&mut self, family: FamilyIndex, violation: Violation) {
        self.tally.add(Count::Quarantined, 1);
        self.refusals.record(Refusal { family, violation });
        for lane in self.lanes.iter_mut().filter(|lane| lane.source == family) {
            lane.reader = None;
        }
    }

    /// Who was refused since the last call, if anybody was.
    pub fn take_refusal(&mut self) -> Option<Refusal> {
        self.refusals.take_news()
    }

    /// Who is refused, and how often something was.
    #[must_use]
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// The next message of any lane, or `None`: one load a lane, no system call, never blocks.
    ///
    /// The message stays in its lane. If the caller dies before it acknowledges, the message is
    /// received again with attempt + 1. A family whose words are no message is refused from then
    /// on ([`Receiver::take_refusal`]).
    #[inline]
    pub fn receive(&mut self) -> Option<(Delivery, Place)> {
        let mut delivery = Delivery::default();
        let place = self.receive_into(&mut delivery)?;
        Some((delivery, place))
    }

    /// [`Receiver::receive`] into the caller's own delivery, which saves the copies of its 200
    /// bytes on their way: what a loop that waits for nanoseconds calls. Without a message the
    /// delivery's contents are of no use.
    #[inline(always)]
    pub fn receive_into(&mut self, delivery: &mut Delivery) -> Option<Place> {
        match self.take_next(delivery) {
            Ok(None) => {
                self.next_lane = 0;
                self.publish_heads();
                None
            }
            Ok(place) => place,
            Err((family, violation)) => {
                self.refuse(family, violation);
                self.receive_rest(delivery)
            }
        }
    }

    /// Takes the first message from where the last one was found, or finds a family out.
    #[inline(always)]
    fn take_next(
        &mut self,
        delivery: &mut Delivery,
    ) -> Result<Option<Place>, (FamilyIndex, Violation)> {
        let lanes = self.lanes.len();
        let mut index = self.next_lane;
        for _ in 0..lanes {
            if index >= lanes {
                index = 0;
            }
            let lane = &mut self.lanes[index];
            let Some(reader) = &lane.reader else {
                index += 1;
                continue;
            };
            let position = lane.position;
            match reader.look(position) {
                Look::Visible => {}
                Look::Empty => {
                    index += 1;
                    continue;
                }
                Look::Lie(violation) => return Err((lane.source, violation)),
            }
            // Copied once; only the copy is checked and used.
            reader
                .parse(position, &mut delivery.message)
                .map_err(|violation| (lane.source, violation))?;
            lane.position += 1;
            delivery.source = lane.source;
            delivery.ack = ack_of_cursor(index, lane.head_at, position);
            delivery.attempt = count_attempt(&self.own, lane.head_at, position);
            self.streak = self.streak.wrapping_add(1);
            self.next_lane = index + usize::from(lane.position.is_multiple_of(TURN));
            return Ok(Some(Place {
                lane: index,
                position,
            }));
        }
        Ok(None)
    }

    /// [`Receiver::receive_into`] once more, after a family was found out; each family once.
    #[cold]
    fn receive_rest(&mut self, delivery: &mut Delivery) -> Option<Place> {
        self.receive_into(delivery)
    }

    /// For a consumer that spins, after it found nothing: a microsecond's rest if it has just
    /// caught up with a stream. Whoever polls the line that a producer is writing takes it away for
    /// each message; a consumer that lets the producer run ahead gets many at once. After a single
    /// message it returns at once.
    #[inline]
    pub fn back_off(&mut self) {
        if core::mem::take(&mut self.streak) >= STREAK_MIN {
            (0..REST_PAUSES).for_each(|_| core::hint::spin_loop());
        }
    }

    /// Whether a message waits: what a parker checks last.
    #[must_use]
    pub fn has_message(&self) -> bool {
        self.lanes.iter().any(|lane| {
            lane.reader
                .as_ref()
                .is_some_and(|reader| reader.look(lane.position) != Look::Empty)
        })
    }

    /// Acknowledges every message of a lane up to and including `place`, without a commit.
    /// A store; if the caller dies before it, the messages are received again.
    #[inline]
    pub fn acknowledge(&mut self, place: Place) {
        let lane = &mut self.lanes[place.lane];
        let cursor = place.position + 1;
        // Relaxed: recovery reads it after the death; the producer goes by the head.
        self.own
            .word(lane.head_at + offset_of!(LaneHead, cursor))
            .store(cursor, Ordering::Relaxed);
        self.acknowledged(place);
    }

    /// After a commit that carried the [`crate::Ack`] of `place`: lets the producer reuse the
    /// slots, an eighth of a lane at a time.
    #[inline]
    pub fn acknowledged(&mut self, place: Place) {
        let lane = &mut self.lanes[place.lane];
        lane.cursor = lane.cursor.max(place.position + 1);
        let eighth = lane
            .reader
            .as_ref()
            .map_or(1, |reader| reader.lane_slots() / 8);
        if lane.cursor - lane.head >= eighth.max(1) {
            lane.head = lane.cursor;
            // SYNC(head): Release pairs with the producer's Acquire.
            self.own
                .word(lane.head_at)
                .store(lane.head, Ordering::Release);
        }
    }

    /// Whenever there is nothing to do, the heads catch up: a held chunk must not wait for more
    /// traffic.
    #[inline]
    pub(crate) fn publish_heads(&mut self) {
        for lane in &mut self.lanes {
            if lane.head != lane.cursor {
                lane.head = lane.cursor;
                // SYNC(head): Release pairs with the producer's Acquire.
                self.own
                    .word(lane.head_at)
                    .store(lane.head, Ordering::Release);
            }
        }
    }

    /// Messages that were received and are not acknowledged yet.
    #[must_use]
    pub fn unacknowledged(&self) -> u64 {
        self.lanes
            .iter()
            .map(|lane| lane.position - lane.cursor)
            .sum()
    }
}

/// How often the message at a position was begun, this time included.
#[inline(always)]
fn count_attempt(own: &impl Memory, head_at: usize, position: u64) -> u16 {
    let started = own.word(head_at + offset_of!(LaneHead, started));
    let attempts = own.word(head_at + offset_of!(LaneHead, attempts));
    let attempt = if started.load(Ordering::Relaxed) == position + 1 {
        attempts.load(Ordering::Relaxed) + 1
    } else {
        1
    };
    attempts.store(attempt, Ordering::Relaxed);
    started.store(position + 1, Ordering::Relaxed);
    attempt.min(0xffff) as u16
}

//! How the instances of one family share its queue: claim, copy out, acknowledge.
//!
//! A claim is one exchange on the claim word of a lane position; it names the claiming slot. The
//! claimer then copies the message into an in-flight entry that it owns, and marks the claim
//! copied, then confirmed; the head follows the confirmed prefix, so the lane's slot is free long
//! before the message is acknowledged. Whoever dies in between leaves a word that names it, and
//! whoever is stopped in between has its claim taken back (`claim/blocked.rs`).

mod blocked;
mod entries;
mod refuse;

use core::mem::{offset_of, size_of};
use std::sync::Arc;

use sandpipe_abi::layout::{FamilyHeader, InFlightEntry, InstanceSlot, SlotState};

use self::blocked::Blocked;
use crate::bus::Bus;
use crate::chunk::entry_key;
use crate::claim_word::{Claim, Stage, advance_head, tentative};
use crate::counters::Tally;
use crate::family_layout::FamilyLayout;
use crate::instance::{Ack, ack_of_entry};
use crate::lane::{LaneReader, Look, claim_at};
use crate::memory::Memory;
use crate::message::{Message, MessageWords, write_words};
use crate::refusal::{Refusals, Violation};
use crate::sync::{AtomicU64, Ordering, fence_after_exchange, kill_point};
use crate::topology::{FamilyIndex, SlotIndex};

/// A message in the hands of one instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// 1 the first time it is delivered.
    pub attempt: u16,
    /// The family that published it, whose pool holds the payload.
    pub source: FamilyIndex,
    /// Hand this to [`crate::Instance::commit`].
    pub ack: Ack,
}

impl Default for Delivery {
    /// No delivery: to be received into.
    fn default() -> Delivery {
        Delivery {
            message: Message::EMPTY,
            attempt: 0,
            source: FamilyIndex::AGENT,
            ack: Ack::NOTHING,
        }
    }
}

/// The receiving side of one instance slot.
#[derive(Debug)]
pub struct Claimer<M> {
    own: M,
    /// Of every family.
    layouts: Arc<Vec<FamilyLayout>>,
    family: FamilyIndex,
    slot: SlotIndex,
    lanes: Vec<ClaimLane<M>>,
    /// Offsets of the family's entries.
    entries: Vec<usize>,
    /// The entry that this slot used last, where its next one is most likely free.
    own_entry: usize,
    /// Whether it has taken over the entry of a dead instance beside its own.
    adopted: bool,
    started_at: usize,
    next_lane: usize,
    /// The attach epoch under which this process mapped its peers.
    epoch: u64,
    tally: Tally<M>,
    refusals: Refusals,
}

#[derive(Debug)]
struct ClaimLane<M> {
    source: FamilyIndex,
    head_at: usize,
    /// `None` while the source is not mapped: it has published nothing.
    reader: Option<LaneReader<M>>,
    blocked: Blocked,
}

/// What a look at a lane finds for a claimer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// A message that nobody has claimed: its position, and what its claim word says.
    At(u64, u64),
    Nothing,
    /// Every position is claimed, and the head does not move.
    AllClaimed,
}

/// What became of a claimed message.
enum Copied {
    Delivered,
    /// It is no message, or not one for this queue.
    Unsound,
    /// This instance was stopped for so long that others have taken its claim back.
    TakenBack,
}

impl<M: Memory> Claimer<M> {
    pub(crate) fn new(bus: &Bus<M>, slot: SlotIndex) -> Claimer<M> {
        let layout = bus.own_layout();
        let state = layout.slot_at(slot) + offset_of!(InstanceSlot, state);
        let lanes = layout.lanes.iter().map(|lane| ClaimLane {
            source: lane.source,
            head_at: lane.head_at,
            reader: bus.lane_reader(lane),
            blocked: Blocked::default(),
        });
        Claimer {
            own: bus.own_memory().clone(),
            layouts: bus.layouts(),
            family: bus.family(),
            slot,
            lanes: lanes.collect(),
            entries: (0..layout.entries)
                .map(|entry| layout.entry_at(entry))
                .collect(),
            own_entry: layout.entry_at(0),
            adopted: false,
            started_at: state + offset_of!(SlotState, started_ns),
            next_lane: usize::from(slot.0),
            epoch: bus.epoch(),
            tally: bus.tally(slot),
            refusals: Refusals::new(bus.topology().families().len()),
        }
    }

    /// Takes the next message, an orphan that is due first. A few loads if there is none; never
    /// blocks, no system call. If the caller dies inside, recovery of its slot makes the message
    /// available again, unless it had the message already: then it is delivered again with
    /// attempt + 1.
    ///
    /// `now_ns` is stored as the time at which the slot started on the message. A family whose
    /// words are no message is refused by this process from then on ([`Claimer::take_refusal`]).
    pub fn claim(&mut self, now_ns: impl Fn() -> u64) -> Option<Delivery> {
        let mut delivery = Delivery::default();
        self.claim_into(now_ns, &mut delivery).then_some(delivery)
    }

    /// [`Claimer::claim`] into the caller's own delivery, see [`crate::Receiver::receive_into`];
    /// false if there is no message.
    #[inline(always)]
    pub fn claim_into(&mut self, now_ns: impl Fn() -> u64, delivery: &mut Delivery) -> bool {
        if self.adopt_orphan(&now_ns, delivery) {
            return true;
        }
        let lanes = self.lanes.len();
        for _ in 0..lanes {
            if self.next_lane >= lanes {
                self.next_lane = 0;
            }
            let lane = self.next_lane;
            self.next_lane += 1;
            match self.claim_position(lane, &now_ns) {
                Ok(Some((position, entry))) => {
                    match self.copy_out(lane, position, entry, delivery) {
                        Copied::Delivered => return true,
                        Copied::Unsound => self.refuse_message(lane, entry),
                        Copied::TakenBack => self.forget_claim(entry),
                    }
                }
                Ok(None) => {}
                Err(violation) => self.refuse(lane, violation),
            }
        }
        false
    }

    /// Whether a claim would find something: what a parker checks last. Claims nothing; may move
    /// the head for another instance.
    #[must_use]
    pub fn has_message(&self) -> bool {
        self.orphans().load(Ordering::Relaxed) & 1 != 0 || self.has_claimable()
    }

    /// The same, but of the messages of the dead only those that are due: whoever parks on this
    /// looks again when it wakes, at most [`PARK_MAX`](crate::PARK_MAX) later.
    #[must_use]
    pub fn has_due_message(&self, now_ns: impl Fn() -> u64) -> bool {
        let hinted = self.orphans().load(Ordering::Relaxed) & 1 != 0;
        (hinted && self.has_due_orphan(now_ns())) || self.has_claimable()
    }

    fn has_claimable(&self) -> bool {
        (0..self.lanes.len()).any(|lane| {
            let next = self.next_claimable(lane);
            !matches!(next, Ok(Next::Nothing | Next::AllClaimed))
        })
    }

    /// The first position of a lane that nobody has claimed and that holds a message.
    #[inline(always)]
    fn next_claimable(&self, lane: usize) -> Result<Next, Violation> {
        let ClaimLane {
            head_at,
            reader: Some(reader),
            ..
        } = &self.lanes[lane]
        else {
            return Ok(Next::Nothing);
        };
        'again: loop {
            let head = self.own.word(*head_at).load(Ordering::Relaxed);
            for position in head..head.saturating_add(reader.lane_slots()) {
                let word = self.own.word(claim_at(*head_at, reader.mask(), position));
                // Nothing is read under it, and the exchange refuses a word that has changed.
                let seen = word.load(Ordering::Relaxed);
                let claim = Claim::from_word(seen);
                if claim.position_after > position + 1 {
                    continue 'again; // the head has moved a whole lane since it was read
                }
                if claim.position_after == position + 1 && claim.slot != Claim::RETURNED {
                    continue;
                }
                match reader.look(position) {
                    Look::Visible => return Ok(Next::At(position, seen)),
                    // The head passed this position meanwhile, and its slot is in use again.
                    Look::Empty | Look::Lie(_)
                        if self.own.word(*head_at).load(Ordering::Relaxed) != head
                            || word.load(Ordering::Relaxed) != seen =>
                    {
                        continue 'again;
                    }
                    Look::Empty => return Ok(Next::Nothing),
                    Look::Lie(violation) => return Err(violation),
                }
            }
            // Whoever copied the first may have been stopped before it moved the head; nobody else
            // would look at it again.
            if advance_head(&self.own, *head_at, reader.mask()) == 0 {
                return Ok(Next::AllClaimed);
            }
        }
    }

    /// Claims a position of a lane for this slot, together with an entry to copy it into.
    #[inline(always)]
    fn claim_position(
        &mut self,
        lane: usize,
        now_ns: &impl Fn() -> u64,
    ) -> Result<Option<(u64, usize)>, Violation> {
        let (mut position, mut seen) = match self.next_claimable(lane)? {
            Next::At(position, seen) => (position, seen),
            Next::Nothing => return Ok(None),
            Next::AllClaimed => {
                self.unblock(lane, now_ns());
                return Ok(None);
            }
        };
        let Some(entry) = self.free_entry() else {
            return Ok(None);
        };
        let Some(reader) = &self.lanes[lane].reader else {
            return Ok(None);
        };
        self.own
            .word(self.started_at)
            .store(now_ns(), Ordering::Relaxed);
        let mask = reader.mask();
        loop {
            let claim = self.claim_of(position);
            let word = self
                .own
                .word(claim_at(self.lanes[lane].head_at, mask, position));
            kill_point();
            // One exchange decides between the instances of the family. It orders nothing: the
            // message was published by its stamp, and the marks publish what follows.
            let won =
                word.compare_exchange(seen, claim.to_word(), Ordering::Relaxed, Ordering::Relaxed);
            if won.is_ok() {
                return Ok(Some((position, entry)));
            }
            match self.next_claimable(lane) {
                Ok(Next::At(next, word)) => (position, seen) = (next, word),
                nothing => {
                    self.own.word(self.started_at).store(0, Ordering::Relaxed);
                    return nothing.map(|_| None);
                }
            }
        }
    }

    /// This slot's fresh claim of a position.
    #[inline(always)]
    fn claim_of(&self, position: u64) -> Claim {
        Claim {
            position_after: position + 1,
            slot: self.slot.0,
            stage: Stage::Claimed,
        }
    }

    /// Copies a claimed message into the entry and lets the lane go on.
    #[inline(always)]
    fn copy_out(
        &self,
        lane: usize,
        position: u64,
        entry: usize,
        delivery: &mut Delivery,
    ) -> Copied {
        let ClaimLane {
            source,
            head_at,
            reader,
            ..
        } = &self.lanes[lane];
        let Some(reader) = reader else {
            return Copied::Unsound;
        };
        let words = reader.read(position);
        let key = entry_key(lane, position);
        let message_at = entry + offset_of!(InFlightEntry, message);
        write_words(&self.own, message_at, &words);
        self.own
            .word(entry + offset_of!(InFlightEntry, epoch))
            .store(self.epoch, Ordering::Relaxed);
        kill_point();
        let key_word = self.own.word(entry + offset_of!(InFlightEntry, key));
        key_word.store(tentative(key), Ordering::Relaxed);
        kill_point();
        let claim = self.claim_of(position);
        let word = self.own.word(claim_at(*head_at, reader.mask(), position));
        let mark = |from: Stage, to: Stage| {
            let (from, to) = (claim.at(from).to_word(), claim.at(to).to_word());
            // SYNC(mark): Release: our reads of the slot are over and the entry holds the message,
            // before anybody confirms it or moves the head past it.
            word.compare_exchange(from, to, Ordering::Release, Ordering::Relaxed)
        };
        if mark(Stage::Claimed, Stage::Copied).is_err() {
            return Copied::TakenBack;
        }
        kill_point();
        // SYNC(key): Release: who sees the key sees the message: recovery, the next owner.
        key_word.store(key, Ordering::Release);
        kill_point();
        // If this fails another instance has confirmed it for us.
        let _ = mark(Stage::Copied, Stage::Confirmed);
        // SYNC(copied): two instances that finish copying neighbours at the same time must not
        // both miss the other's mark, or nobody moves the head over both.
        fence_after_exchange();
        kill_point();
        advance_head(&self.own, *head_at, reader.mask());
        delivery.source = *source;
        delivery.attempt = 1;
        if self.fill(delivery, entry, key, &words) {
            Copied::Delivered
        } else {
            Copied::Unsound
        }
    }

    /// Checks a message; one that is none is acknowledged on the spot, since nobody can handle it.
    #[inline(always)]
    fn fill(&self, delivery: &mut Delivery, entry: usize, key: u64, words: &MessageWords) -> bool {
        let index = (entry - self.entries[0]) / size_of::<InFlightEntry>();
        delivery.ack = ack_of_entry(index, entry, key);
        let sound =
            delivery.message.parse(words).is_ok() && delivery.message.header.queue == self.family;
        if !sound {
            self.own
                .word(delivery.ack.word_at)
                .store(0, Ordering::Release);
        }
        sound
    }

    fn orphans(&self) -> &AtomicU64 {
        self.own.word(offset_of!(FamilyHeader, orphans))
    }
}

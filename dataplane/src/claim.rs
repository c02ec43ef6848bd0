//! How the instances of one family share its queue: claim, copy out, acknowledge.
//!
//! A claim is one exchange on the claim word of a lane position; it names the claiming slot. The
//! claimer then copies the message into an in-flight entry that it owns, and marks the claim
//! copied; the head follows the copied prefix, so the lane's slot is free long before the message
//! is acknowledged, and one stopped instance does not block its producer. Whoever dies in between
//! leaves a word that names it.

use core::mem::{offset_of, size_of};

use sandpipe_abi::layout::{FamilyHeader, InFlightEntry, InstanceSlot, OWNER_ORPHAN, SlotState};

use crate::bus::Bus;
use crate::chunk::entry_key;
use crate::claim_word::{Claim, advance_head, owner_word, split_owner};
use crate::counters::{Count, Tally};
use crate::instance::{Ack, ack_of_entry};
use crate::lane::{LaneReader, Look, claim_at};
use crate::memory::Memory;
use crate::message::{Message, MessageWords, read_words, write_words};
use crate::refusal::{Refusal, Refusals, Violation};
use crate::sync::{AtomicU64, Ordering, full_fence, kill_point};
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
}

impl<M: Memory> Claimer<M> {
    pub(crate) fn new(bus: &Bus<M>, slot: SlotIndex) -> Claimer<M> {
        let layout = bus.own_layout();
        let state = layout.slot_at(slot) + offset_of!(InstanceSlot, state);
        let lanes = layout.lanes.iter().map(|lane| ClaimLane {
            source: lane.source,
            head_at: lane.head_at,
            reader: bus.lane_reader(lane),
        });
        Claimer {
            own: bus.own_memory().clone(),
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

    /// Takes the next message, an orphan first. A few loads if there is none; never blocks, no
    /// system call. If the caller dies inside, recovery of its slot makes the message available
    /// again, unless it had the message already: then it is delivered again with attempt + 1.
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
                    if self.copy_out(lane, position, entry, delivery) {
                        return true;
                    }
                    self.refuse_message(lane, entry);
                }
                Ok(None) => {}
                Err(violation) => self.refuse(lane, violation),
            }
        }
        false
    }

    /// Takes nothing of a lane's source any more; the other lanes go on.
    #[cold]
    fn refuse(&mut self, lane: usize, violation: Violation) {
        let family = self.lanes[lane].source;
        self.tally.add(Count::Quarantined, 1);
        self.refusals.record(Refusal { family, violation });
        for lane in self.lanes.iter_mut().filter(|lane| lane.source == family) {
            lane.reader = None;
        }
    }

    /// After a message that can be handled by nobody, which was acknowledged on the spot.
    #[cold]
    fn refuse_message(&mut self, lane: usize, entry: usize) {
        self.own.word(self.started_at).store(0, Ordering::Relaxed);
        let words = read_words(&self.own, entry + offset_of!(InFlightEntry, message));
        let violation = match Message::from_words(&words) {
            // A lane leads to one queue: one for another was put there by a liar.
            Ok(message) => Violation::Queue(message.header.queue.0),
            Err(violation) => violation,
        };
        self.refuse(lane, violation);
    }

    /// Who was refused since the last call, if anybody was.
    pub fn take_refusal(&mut self) -> Option<Refusal> {
        self.refusals.take_news()
    }

    /// Who is refused by this process, and how often something was.
    #[must_use]
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Whether a claim would find something: what a parker checks last. Claims nothing; may move
    /// the head for another instance.
    #[must_use]
    pub fn has_message(&self) -> bool {
        self.orphans().load(Ordering::Relaxed) & 1 != 0
            || (0..self.lanes.len()).any(|lane| self.next_claimable(lane) != Ok(None))
    }

    /// The first position of a lane that nobody has claimed and that holds a message, and what its
    /// claim word says.
    #[inline(always)]
    fn next_claimable(&self, lane: usize) -> Result<Option<(u64, u64)>, Violation> {
        let ClaimLane {
            head_at,
            reader: Some(reader),
            ..
        } = &self.lanes[lane]
        else {
            return Ok(None);
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
                    Look::Visible => return Ok(Some((position, seen))),
                    // The head passed this position meanwhile, and its slot is in use again.
                    Look::Empty | Look::Lie(_)
                        if self.own.word(*head_at).load(Ordering::Relaxed) != head
                            || word.load(Ordering::Relaxed) != seen =>
                    {
                        continue 'again;
                    }
                    Look::Empty => return Ok(None),
                    Look::Lie(violation) => return Err(violation),
                }
            }
            // Every position is claimed. Whoever copied the first may have been stopped before it
            // moved the head; nobody else would look at it again.
            if advance_head(&self.own, *head_at, reader.mask()) == 0 {
                return Ok(None);
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
        let Some((mut position, mut seen)) = self.next_claimable(lane)? else {
            return Ok(None);
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
            let claim = Claim {
                position_after: position + 1,
                slot: self.slot.0,
                copied: false,
            };
            let word = self
                .own
                .word(claim_at(self.lanes[lane].head_at, mask, position));
            kill_point();
            // One exchange decides between the instances of the family. It orders nothing: the
            // message was published by its stamp, and the mark `copied` publishes what follows.
            let won =
                word.compare_exchange(seen, claim.to_word(), Ordering::Relaxed, Ordering::Relaxed);
            if won.is_ok() {
                return Ok(Some((position, entry)));
            }
            match self.next_claimable(lane) {
                Ok(Some(next)) => (position, seen) = next,
                nothing => {
                    self.own.word(self.started_at).store(0, Ordering::Relaxed);
                    return nothing.map(|_| None);
                }
            }
        }
    }

    /// Copies a claimed message into the entry and lets the lane go on.
    #[inline(always)]
    fn copy_out(&self, lane: usize, position: u64, entry: usize, delivery: &mut Delivery) -> bool {
        let ClaimLane {
            source,
            head_at,
            reader,
        } = &self.lanes[lane];
        let Some(reader) = reader else { return false };
        let words = reader.read(position);
        let key = entry_key(lane, position);
        let message_at = entry + offset_of!(InFlightEntry, message);
        write_words(&self.own, message_at, &words);
        self.own
            .word(entry + offset_of!(InFlightEntry, epoch))
            .store(self.epoch, Ordering::Relaxed);
        kill_point();
        // SYNC(key): Release: who sees the key sees the message: recovery, the next owner.
        self.own
            .word(entry + offset_of!(InFlightEntry, key))
            .store(key, Ordering::Release);
        kill_point();
        let claim = Claim {
            position_after: position + 1,
            slot: self.slot.0,
            copied: true,
        };
        // SYNC(mark): Release: our reads of the slot are over and the entry holds the message,
        // before anybody moves the head past it.
        self.own
            .word(claim_at(*head_at, reader.mask(), position))
            .store(claim.to_word(), Ordering::Release);
        kill_point();
        // SYNC(copied): two instances that finish copying neighbours at the same time must not
        // both miss the other's mark, or nobody moves the head over both.
        full_fence();
        advance_head(&self.own, *head_at, reader.mask());
        delivery.source = *source;
        delivery.attempt = 1;
        self.fill(delivery, entry, key, &words)
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

    /// An entry of this slot that holds no message; takes a free one if the slot has none.
    #[inline(always)]
    fn free_entry(&mut self) -> Option<usize> {
        if !self.is_own_and_free(self.own_entry) {
            self.own_entry = self.find_entry()?;
        }
        Some(self.own_entry)
    }

    #[inline(always)]
    fn is_own_and_free(&self, entry: usize) -> bool {
        let (owner, _) = split_owner(self.owner(entry).load(Ordering::Relaxed));
        owner == u64::from(self.slot.0) + 1
            && self.entry_word(entry, offset_of!(InFlightEntry, key)) == 0
    }

    #[cold]
    fn find_entry(&self) -> Option<usize> {
        let mut entries = self.entries.iter().copied();
        let owned = entries.clone().find(|&at| self.is_own_and_free(at));
        owned.or_else(|| {
            entries.find(|&at| {
                let taken = owner_word(u64::from(self.slot.0) + 1, 1);
                let word = self.owner(at);
                word.load(Ordering::Relaxed) == 0
                    && word
                        .compare_exchange(0, taken, Ordering::AcqRel, Ordering::Relaxed)
                        .is_ok()
            })
        })
    }

    /// Takes over a message whose instance died.
    #[inline(always)]
    fn adopt_orphan(&mut self, now_ns: &impl Fn() -> u64, delivery: &mut Delivery) -> bool {
        self.orphans().load(Ordering::Relaxed) & 1 != 0 && self.adopt(now_ns, delivery)
    }

    #[cold]
    fn adopt(&mut self, now_ns: &impl Fn() -> u64, delivery: &mut Delivery) -> bool {
        // SYNC(orphans): Acquire pairs with the recoverer's Release: its orphan is seen below.
        let hint = self.orphans().load(Ordering::Acquire);
        let mut left = false;
        let entry = self.entries.iter().copied().find(|&at| {
            let word = self.owner(at).load(Ordering::Acquire);
            let (owner, attempt) = split_owner(word);
            if owner != OWNER_ORPHAN {
                return false;
            }
            left = true;
            let taken = owner_word(u64::from(self.slot.0) + 1, attempt);
            self.can_read(at) && {
                self.own
                    .word(self.started_at)
                    .store(now_ns(), Ordering::Relaxed);
                self.owner(at)
                    .compare_exchange(word, taken, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
            }
        });
        if !left {
            // Only after a scan that found nothing, and only if no orphan has appeared since: a
            // claimer that is stopped anywhere in here hides no orphan from the others.
            let word = self.orphans();
            let _ = word.compare_exchange(hint, hint & !1, Ordering::Relaxed, Ordering::Relaxed);
        }
        let Some(entry) = entry else { return false };
        self.adopted = true;
        let key = self.entry_word(entry, offset_of!(InFlightEntry, key));
        let message_at = entry + offset_of!(InFlightEntry, message);
        let words = read_words(&self.own, message_at);
        let (_, attempt) = split_owner(self.owner(entry).load(Ordering::Relaxed));
        let Some(lane) = self.lanes.get((key >> 48) as usize) else {
            return false;
        };
        delivery.source = lane.source;
        delivery.attempt = attempt as u16;
        self.fill(delivery, entry, key, &words)
    }

    /// Whether this process maps the publisher of an entry's message, and as newly as whoever took
    /// it: an older mapping may lack the payload.
    fn can_read(&self, entry: usize) -> bool {
        let key = self.entry_word(entry, offset_of!(InFlightEntry, key));
        let lane = self.lanes.get((key >> 48) as usize);
        lane.is_some_and(|lane| lane.reader.is_some())
            && self.entry_word(entry, offset_of!(InFlightEntry, epoch)) <= self.epoch
    }

    fn entry_word(&self, entry: usize, field: usize) -> u64 {
        self.own.word(entry + field).load(Ordering::Relaxed)
    }

    /// After the acknowledgement: the slot is idle, and an adopted entry is free for others.
    #[inline]
    pub fn finish(&mut self) {
        self.own.word(self.started_at).store(0, Ordering::Relaxed);
        if core::mem::take(&mut self.adopted) {
            self.give_back_entries();
        }
    }

    /// Keeps one entry without a message, as new, and frees the others.
    #[cold]
    fn give_back_entries(&self) {
        let mut kept = false;
        for &at in self.entries.iter().filter(|&&at| self.is_own_and_free(at)) {
            let next = if kept {
                0
            } else {
                owner_word(u64::from(self.slot.0) + 1, 1)
            };
            self.owner(at).store(next, Ordering::Release);
            kept = true;
        }
    }

    fn owner(&self, entry: usize) -> &AtomicU64 {
        self.own.word(entry + offset_of!(InFlightEntry, owner))
    }

    fn orphans(&self) -> &AtomicU64 {
        self.own.word(offset_of!(FamilyHeader, orphans))
    }
}

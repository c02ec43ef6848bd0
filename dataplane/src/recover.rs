//! Recovery of one dead instance slot: roll its commit forward, take its claims back, free its
//! loans.
//!
//! Called by the worker for its instances and by the guardian for a worker, after waitid has said
//! that the process is gone. What it then reads is exactly a prefix of the dead one's stores. Each
//! step depends on the old value, so the recoverer may itself be killed anywhere and start over.

use core::mem::offset_of;

use sandpipe_abi::MessageId;
use sandpipe_abi::layout::{
    ACK_CURSOR, ACK_ENTRY, CommitLine, FamilyHeader, ITEMS_MAX, InFlightEntry, InstanceSlot,
    LaneHead, OWNER_ORPHAN, SlotState,
};

use crate::bus::Bus;
use crate::chunk::{Pool, split_item};
use crate::claim_word::{
    Claim, Stage, advance_head, is_tentative, orphan_word, owner_word, settle, split_owner,
};
use crate::counters::add_repair;
use crate::family_layout::outgoing_lane_at;
use crate::instance::item_at;
use crate::lane::{claim_at, slot_at};
use crate::memory::Memory;
use crate::message::{Message, read_words};
use crate::sync::{Ordering, full_fence};
use crate::topology::SlotIndex;

/// What recovery found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repair {
    /// Commits of which something was still to be carried out.
    pub rolled_forward: usize,
    /// Messages that will be delivered again with attempt + 1.
    pub orphaned: usize,
    /// Claims taken back: their messages are still in their lanes.
    pub returned: usize,
    /// Loans that came back.
    pub freed_chunks: usize,
    /// Lanes left half done: a stamp, a tail or a claim was missing.
    pub lanes: usize,
}

impl core::ops::AddAssign for Repair {
    fn add_assign(&mut self, other: Repair) {
        self.rolled_forward += other.rolled_forward;
        self.orphaned += other.orphaned;
        self.returned += other.returned;
        self.freed_chunks += other.freed_chunks;
        self.lanes += other.lanes;
    }
}

/// Repairs slot `slot` of the bus's own family. The caller rings the family's bell and those of
/// its targets afterwards ([`Bus::ring_after_recovery`]).
pub fn recover_slot<M: Memory>(bus: &Bus<M>, slot: SlotIndex) -> Repair {
    recover_slot_later(bus, slot, &|_, _| 0)
}

/// The same, and the messages that it held are not delivered again before `due_ns` says, which is
/// told the message and the number of the attempt to come: nanoseconds of the claimers' clock, 0 =
/// at once. If half of the family's in-flight entries rest already, a message is due at once:
/// those that rest never take the entries that others need.
pub fn recover_slot_later<M: Memory>(
    bus: &Bus<M>,
    slot: SlotIndex,
    due_ns: &dyn Fn(MessageId, u16) -> u64,
) -> Repair {
    let slot_at = bus.own_layout().slot_at(slot);
    let mut repair = Repair::default();
    let line = slot_at + offset_of!(InstanceSlot, commit);
    let load = |at: usize| bus.own_memory().word(at).load(Ordering::Acquire);
    // SYNC(intent): the dead one stored `seq` in front of its items; waitid ordered all of it.
    // SYNC(fact), SYNC(outputs): and the commit word behind the record, the outputs in front of
    // the acknowledgement.
    let commit = load(line + offset_of!(CommitLine, commit));
    let committed = commit != 0 && load(line + offset_of!(CommitLine, seq)) == commit;
    if committed {
        roll_forward(bus, slot, slot_at, &mut repair);
    }
    let pool = Pool::new(bus.own_memory().clone(), bus.layouts(), bus.family(), slot);
    repair.freed_chunks = pool.recover(committed.then_some(commit));
    return_claims(bus, slot, &mut repair);
    repair.orphaned = orphan_entries(bus, slot, due_ns);
    // The record stays. Carried out once more, after the next holder's death, it changes nothing:
    // stamps, tails and cursors only grow, and a key names one message for good.
    // Relaxed, as all of the slot's own words: the next holder is forked by whoever recovers, and
    // nobody else reads them.
    let state = slot_at + offset_of!(InstanceSlot, state);
    bus.own_memory()
        .word(state + offset_of!(SlotState, started_ns))
        .store(0, Ordering::Relaxed);
    bus.own_memory()
        .word(state + offset_of!(SlotState, pid))
        .store(0, Ordering::Relaxed);
    add_repair(bus, &repair);
    repair
}

/// Carries out what is left of a committed record.
fn roll_forward<M: Memory>(bus: &Bus<M>, slot: SlotIndex, instance_at: usize, repair: &mut Repair) {
    let own = bus.own_memory();
    let line = instance_at + offset_of!(InstanceSlot, commit);
    let load = |at: usize| own.word(at).load(Ordering::Relaxed);
    let targets = &bus.topology().family(bus.family()).targets;
    let count = load(line + offset_of!(CommitLine, count)).min(ITEMS_MAX as u64) as usize;
    let (mut changed, mut lanes) = (false, 0_u32);
    for index in 0..count {
        let (target, position) = split_item(load(item_at(instance_at, index)));
        let Some(spec) = targets.get(target) else {
            continue;
        };
        let lane_at = outgoing_lane_at(bus.topology(), bus.family(), slot, target);
        let stamp = own.word(slot_at(lane_at, u64::from(spec.lane_slots) - 1, position));
        if stamp.load(Ordering::Relaxed) < position + 1 {
            // SYNC(stamp): Release pairs with the reader's Acquire, as the dead one's own would.
            stamp.store(position + 1, Ordering::Release);
            changed = true;
            lanes |= 1 << target;
        }
        let tail = own.word(instance_at + offset_of!(InstanceSlot, tail) + target * 8);
        if tail.load(Ordering::Relaxed) < position + 1 {
            tail.store(position + 1, Ordering::Relaxed);
            lanes |= 1 << target;
        }
    }
    let ack_at = load(line + offset_of!(CommitLine, ack_at));
    let ack_key = load(line + offset_of!(CommitLine, ack_key));
    changed |= acknowledge(bus, ack_at, ack_key);
    repair.rolled_forward += usize::from(changed);
    repair.lanes += lanes.count_ones() as usize;
}

/// The acknowledgement of a record, only while what it meant still stands there.
fn acknowledge<M: Memory>(bus: &Bus<M>, ack_at: u64, key: u64) -> bool {
    let index = (ack_at & 0xff_ffff) as usize;
    let layout = bus.own_layout();
    match ack_at & 0xff << 56 {
        ACK_ENTRY if index < layout.entries && key != 0 => {
            let at = layout.entry_at(index) + offset_of!(InFlightEntry, key);
            let word = bus.own_memory().word(at);
            let meant = word.load(Ordering::Relaxed) == key;
            if meant {
                // SYNC(key): Release pairs with the chunk owner's Acquire: the dead one's reads
                // are over.
                word.store(0, Ordering::Release);
            }
            meant
        }
        ACK_CURSOR if index < layout.lanes.len() => {
            let at = layout.lanes[index].head_at + offset_of!(LaneHead, cursor);
            let word = bus.own_memory().word(at);
            let behind = word.load(Ordering::Relaxed) < key;
            if behind {
                // Relaxed: of a receiver nobody but its successor reads the cursor.
                word.store(key, Ordering::Relaxed);
            }
            behind
        }
        _ => false,
    }
}

/// Claims of the dead slot whose message was not copied out become claimable again; the others are
/// confirmed.
fn return_claims<M: Memory>(bus: &Bus<M>, slot: SlotIndex, repair: &mut Repair) {
    let own = bus.own_memory();
    let layout = bus.own_layout();
    for (index, lane) in layout.lanes.iter().enumerate() {
        let mask = u64::from(lane.lane_slots) - 1;
        // Acquire pairs with the Release of the instance that moved the head.
        let head = own.word(lane.head_at).load(Ordering::Acquire);
        let mut mended = false;
        // A dead family may have left any head at all.
        for position in head..head.saturating_add(mask + 1) {
            let word = own.word(claim_at(lane.head_at, mask, position));
            // Acquire pairs with the Release of a mark (SYNC(mark) of the claimers).
            let claim = Claim::from_word(word.load(Ordering::Acquire));
            if claim.position_after != position + 1 || claim.slot != slot.0 {
                continue;
            }
            // A living instance may have settled it since.
            let settled = settle(own, layout, index, position, claim);
            repair.returned += usize::from(settled && claim.stage == Stage::Claimed);
            mended |= settled;
        }
        repair.lanes += usize::from(mended);
        // SYNC(copied): pairs with the instances' fence between their mark and their look.
        // SYNC(head): and with the producer's Acquire of a head that the guardian moves: the dead
        // one's reads are over.
        full_fence();
        advance_head(own, lane.head_at, mask);
    }
}

/// Messages that the dead slot held become orphans; its empty entries become free.
fn orphan_entries<M: Memory>(
    bus: &Bus<M>,
    slot: SlotIndex,
    due_ns: &dyn Fn(MessageId, u16) -> u64,
) -> usize {
    let own = bus.own_memory();
    let layout = bus.own_layout();
    let (mut orphaned, mut any) = (0, false);
    for entry in 0..layout.entries {
        let at = layout.entry_at(entry);
        let word = own.word(at + offset_of!(InFlightEntry, owner));
        // Acquire pairs with the Release of an instance that gave the entry back.
        let (owner, attempt) = split_owner(word.load(Ordering::Acquire));
        any |= owner == OWNER_ORPHAN;
        if owner != u64::from(slot.0) + 1 {
            continue;
        }
        if holds_message(own, at) {
            orphaned += 1;
            // Owner and attempt change in one store: a second recovery does not count twice.
            let next = attempt + 1;
            let words = read_words(own, at + offset_of!(InFlightEntry, message));
            let room = || resting(bus) < usize::from(layout.slots);
            let due = match Message::from_words(&words) {
                Ok(message) if room() => due_ns(message.header.id, next.min(0xffff) as u16),
                _ => 0,
            };
            // Release, here and below, pairs with the Acquire of the instance that takes it.
            word.store(orphan_word(next, due), Ordering::Release);
        } else {
            word.store(0, Ordering::Release);
        }
    }
    // Also for an older orphan: the dead one may have taken the hint and not yet the orphan.
    if any || orphaned != 0 {
        hint_at_orphans(own);
    }
    orphaned
}

/// How many messages of the family have no owner.
fn resting<M: Memory>(bus: &Bus<M>) -> usize {
    let layout = bus.own_layout();
    let entries = (0..layout.entries).map(|entry| layout.entry_at(entry));
    let owners = entries.map(|at| bus.own_memory().word(at + offset_of!(InFlightEntry, owner)));
    let orphans =
        owners.filter(|owner| split_owner(owner.load(Ordering::Relaxed)).0 == OWNER_ORPHAN);
    orphans.count()
}

/// Whether an entry holds a message, once every claim is settled: a key that is still tentative is
/// that of a copy which came too late, and is cleared.
fn holds_message(own: &impl Memory, entry_at: usize) -> bool {
    let word = own.word(entry_at + offset_of!(InFlightEntry, key));
    let key = word.load(Ordering::Relaxed);
    if is_tentative(key) {
        word.store(0, Ordering::Relaxed);
    }
    key != 0 && !is_tentative(key)
}

fn hint_at_orphans(own: &impl Memory) {
    let hint = own.word(offset_of!(FamilyHeader, orphans));
    // A new number: a claimer that scanned before does not take this hint back.
    let next = (hint.load(Ordering::Relaxed) | 1).wrapping_add(2);
    // SYNC(orphans): Release: whoever sees the hint sees the orphan.
    hint.store(next, Ordering::Release);
}

/// Entries whose owner is a slot that does not exist: a lie, and without this lost for good.
fn orphan_unowned<M: Memory>(bus: &Bus<M>) {
    let own = bus.own_memory();
    for entry in 0..bus.own_layout().entries {
        let at = bus.own_layout().entry_at(entry);
        let word = own.word(at + offset_of!(InFlightEntry, owner));
        let (owner, attempt) = split_owner(word.load(Ordering::Relaxed));
        if owner == 0 || owner == OWNER_ORPHAN {
            continue;
        }
        let holds = holds_message(own, at);
        let next = if holds {
            owner_word(OWNER_ORPHAN, attempt)
        } else {
            0
        };
        // Release pairs with the Acquire of the instance that takes it.
        word.store(next, Ordering::Release);
        if holds {
            hint_at_orphans(own);
        }
    }
}

/// Repairs every slot of the bus's own family: after its worker and all instances are gone.
pub fn recover_family<M: Memory>(bus: &Bus<M>) -> Repair {
    let mut repair = Repair::default();
    for slot in 0..bus.own_layout().slots {
        repair += recover_slot(bus, SlotIndex(slot));
    }
    orphan_unowned(bus);
    let own = bus.own_memory();
    // An exclusive receiver frees slots lazily: what it acknowledged is free now.
    for lane in &bus.own_layout().lanes {
        let cursor = own
            .word(lane.head_at + offset_of!(LaneHead, cursor))
            .load(Ordering::Relaxed);
        let head = own.word(lane.head_at);
        if head.load(Ordering::Relaxed) < cursor {
            // SYNC(head): Relaxed, since the fence of each slot's recovery stands in front of it.
            head.store(cursor, Ordering::Relaxed);
        }
    }
    repair
}

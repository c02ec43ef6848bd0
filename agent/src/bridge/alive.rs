//! Which messages live in an adopted sandbox: in a grain's queue, or in an instance's hands.
//!
//! The words belong to other families. A lie makes the application lose or repeat a message of its
//! own, nothing else. What moves while it is looked at may be missed, and is then delivered twice;
//! its effects are folded by id.

use core::mem::{offset_of, size_of};
use std::collections::HashSet;

use sandpipe::layout::{InFlightEntry, LaneHead, LaneSlot};
use sandpipe::{Bus, FamilyIndex, FamilyLayout, IncomingLane, Mapping, Memory, MessageId};
use std::sync::atomic::Ordering;

/// The ids of all messages that some grain still has to handle.
pub(super) fn alive(bus: &Bus<Mapping>) -> HashSet<MessageId> {
    let mut found = HashSet::new();
    let families = u16::try_from(bus.topology().families().len()).expect("at most 32 families");
    for family in (1..families).map(FamilyIndex) {
        let Some(consumer) = bus.segment(family) else {
            continue;
        };
        let layout = bus.topology().layout(family);
        // Queues before hands: a message moves in this direction, and is then seen twice.
        for lane in &layout.lanes {
            if let Some(source) = bus.segment(lane.source) {
                in_lane(consumer, source, lane, &mut found);
            }
        }
        in_hands(consumer, &layout, &mut found);
    }
    found
}

fn in_lane(
    consumer: &Mapping,
    source: &Mapping,
    lane: &IncomingLane,
    found: &mut HashSet<MessageId>,
) {
    let word = |at: usize| consumer.word(at).load(Ordering::Acquire);
    let head = word(lane.head_at + offset_of!(LaneHead, head));
    let first = head.max(word(lane.head_at + offset_of!(LaneHead, cursor)));
    let length = u64::from(lane.lane_slots);
    let Some(end) = head.checked_add(length) else {
        return;
    };
    for position in first..end {
        let index = usize::try_from(position & (length - 1)).expect("a lane has 65,536 slots");
        let slot = lane.slots_at + index * size_of::<LaneSlot>();
        // SYNC(stamp): Acquire pairs with the producer's Release.
        if source.word(slot).load(Ordering::Acquire) != position + 1 {
            continue;
        }
        let claim = word(lane.head_at + size_of::<LaneHead>() + index * size_of::<u64>());
        if !was_copied(claim, position) {
            found.insert(id_at(source, slot + offset_of!(LaneSlot, id)));
        }
    }
}

/// Whether a claim word says that this position's message has left the lane: position + 1 stands
/// in its high 48 bits, "copied" in its lowest.
fn was_copied(claim: u64, position: u64) -> bool {
    claim >> 16 == position + 1 && claim & 1 != 0
}

fn in_hands(consumer: &Mapping, layout: &FamilyLayout, found: &mut HashSet<MessageId>) {
    for entry in 0..layout.entries {
        let at = layout.entry_at(entry);
        // SYNC(key): Acquire pairs with the claimer's Release: the entry holds its message.
        if consumer
            .word(at + offset_of!(InFlightEntry, key))
            .load(Ordering::Acquire)
            != 0
        {
            found.insert(id_at(consumer, at + offset_of!(InFlightEntry, message)));
        }
    }
}

fn id_at(segment: &Mapping, at: usize) -> MessageId {
    let word = |at: usize| segment.word(at).load(Ordering::Relaxed);
    MessageId::from_words([word(at), word(at + size_of::<u64>())])
}

#[cfg(test)]
mod tests {
    use super::was_copied;

    #[test]
    fn a_claim_counts_for_its_position_only() {
        let claim = |position_after: u64, copied: u64| position_after << 16 | 3 << 1 | copied;
        assert!(was_copied(claim(8, 1), 7));
        assert!(
            !was_copied(claim(8, 0), 7),
            "claimed, and still in the lane"
        );
        assert!(
            !was_copied(claim(8, 1), 8),
            "an older claim of the same word"
        );
    }
}

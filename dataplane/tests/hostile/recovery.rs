//! What a dead hostile family leaves for its guardian to repair. The guardian serves the others as
//! well: it must neither end, nor hang, nor write anywhere else.

use sandpipe::layout::{ACK_CURSOR, ACK_ENTRY, CommitLine, InstanceSlot, LaneHead};
use sandpipe::{FamilyIndex, Memory};

use crate::house::{AGENT, CONSUMER, HOSTILE, House, INNOCENT, S0};
use crate::sandbox::Random;

/// Every word of the other families, as the guardian sees them.
fn others(house: &House) -> Vec<u64> {
    let guardian = &house.sandbox.guardian;
    let families = [AGENT, INNOCENT, CONSUMER].into_iter();
    let words = families.flat_map(|family: FamilyIndex| {
        let view = guardian.view(family).unwrap();
        let segment = view.segment(family).unwrap().clone();
        let load = |at| segment.word(at).load(std::sync::atomic::Ordering::SeqCst);
        (0..segment.len()).step_by(8).map(load).collect::<Vec<_>>()
    });
    words.collect()
}

fn repairs(attack: impl FnOnce(&House)) {
    let mut house = House::new();
    let before = others(&house);
    attack(&house);
    house.sandbox.guardian.repair_family(HOSTILE);
    assert!(
        others(&house) == before,
        "a repair wrote into another family's segment"
    );
    // A second time changes nothing any more: recovery ends.
    let repair = house.sandbox.guardian.repair_family(HOSTILE);
    assert_eq!(
        (repair.rolled_forward, repair.freed_chunks),
        (0, 0),
        "{repair:?}"
    );
    house.sandbox.guardian.make_family(HOSTILE).unwrap();
    house.innocents_lose_nothing();
}

#[test]
fn a_forged_commit_record_stays_within_its_familys_segment() {
    for (item, count) in [
        (u64::MAX, u64::MAX),
        (1 << 63, 16),
        (0xffff_ffff_ffff, 1 << 40),
    ] {
        repairs(|house| {
            let slot = house.agent.topology().layout(HOSTILE).slot_at(S0);
            for word in 0..size_of::<CommitLine>() / 8 + 16 {
                house.poke(slot + word * 8, item);
            }
            house.poke(slot, 7); // commit
            house.poke(slot + 8, 7); // seq: the record counts
            house.poke(slot + 16, count);
        });
    }
}

#[test]
fn a_forged_acknowledgement_in_a_commit_record_reaches_no_other_word() {
    for at in [
        ACK_ENTRY | 0xff_ffff,
        ACK_CURSOR | 0xff_ffff,
        u64::MAX,
        ACK_CURSOR,
    ] {
        repairs(|house| {
            let slot = house.agent.topology().layout(HOSTILE).slot_at(S0);
            house.poke(slot, 7);
            house.poke(slot + 8, 7);
            house.poke(slot + 24, at);
            house.poke(slot + 32, u64::MAX);
        });
    }
}

#[test]
fn forged_heads_and_claims_end_the_repair_like_others() {
    for head in [u64::MAX, u64::MAX - 3, 1 << 48, (1 << 48) - 1] {
        for claim in [0, 1, u64::MAX, 0xffff_ffff_ffff_0001] {
            repairs(|house| {
                for lane in house.agent.topology().layout(HOSTILE).lanes {
                    house.poke(lane.head_at, head);
                    house.poke(lane.head_at + 64, head);
                    let claims = lane.head_at + size_of::<LaneHead>();
                    for word in 0..lane.lane_slots as usize {
                        house.poke(claims + word * 8, claim);
                    }
                }
            });
        }
    }
}

#[test]
fn entries_owned_by_slots_that_do_not_exist_come_back() {
    repairs(|house| {
        let layout = house.agent.topology().layout(HOSTILE);
        for entry in 0..layout.entries {
            let at = layout.entry_at(entry);
            house.poke(at, if entry == 0 { 0 } else { u64::MAX });
            house.poke(at + 8, 0x7fff + entry as u64);
        }
    });
}

#[test]
fn a_segment_of_noise_is_repaired_a_hundred_times() {
    let mut random = Random(11);
    let mut house = House::new();
    for _ in 0..100 {
        let before = others(&house);
        let words = house.agent.topology().layout(HOSTILE).control_bytes / 8;
        for word in 0..words {
            let shift = random.below(64);
            house.poke(word * 8, random.below(u64::MAX) >> shift);
        }
        // A record that counts, or nothing of it would be looked at.
        let slot = house.agent.topology().layout(HOSTILE).slot_at(S0);
        house.poke(slot + 8, house.peek(slot));
        house.sandbox.guardian.repair_family(HOSTILE);
        assert!(
            others(&house) == before,
            "a repair wrote into another family's segment"
        );
        let _ = house.agent.audit(HOSTILE);
    }
    house.sandbox.guardian.make_family(HOSTILE).unwrap();
    house.innocents_lose_nothing();
}

#[test]
fn a_slot_word_forged_by_the_living_frees_nobody_elses_slot() {
    let mut house = House::new();
    let layout = house.agent.topology().layout(HOSTILE);
    let state = layout.slot_at(S0) + std::mem::offset_of!(InstanceSlot, state);
    for word in 0..8 {
        house.poke(state + word * 8, u64::MAX);
    }
    house.innocents_lose_nothing();
}

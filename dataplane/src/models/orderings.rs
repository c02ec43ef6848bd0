//! Models of one hand-over each, written so that each annotated ordering is the only thing that
//! makes it hold: `cargo xtask mutate-orderings` weakens them one at a time.
//!
//! Recovery reads what a dead process left after waitid has ordered everything; a reader that looks
//! at a living one and joins nothing is stricter, and stands for it here.
//!
//! Two habits of loom shape them: a store is only tried in another order against the last access of
//! its word, so the storing thread must not have loaded it just before; and a thread that yields is
//! never shown the old value again.

use core::mem::offset_of;

use loom::thread;
use sandpipe_abi::MessageId;
use sandpipe_abi::layout::{CommitLine, InFlightEntry, InstanceSlot, LaneHead};

use super::{GRAIN, S0, S1, in_chunk, model, pair, send};
use crate::chunk::entry_key;
use crate::claim_word::{Claim, Stage, advance_head, owner_word, tentative};
use crate::lane::claim_at;
use crate::memory::Memory;
use crate::message::{read_words, set_words};
use crate::recover::recover_slot;
use crate::sync::{Ordering, fence};
use crate::{Ack, Bus, ChunkClass, HeapMemory, MessageHeader, Payload, TraceStamps};

/// Words of a message that a model can tell from every other.
fn words(number: u64) -> [u64; 15] {
    [number; 15]
}

/// Writes three messages into a lane, as there is room.
fn write_three(agent: &Bus<HeapMemory>) {
    let mut writer = agent.lane_writer(S0, 0);
    for number in 1..=3 {
        while writer.has_room() != Ok(true) {
            thread::yield_now();
        }
        writer.stage(|slot| set_words(slot, &words(number)));
        writer.publish_next();
    }
}

#[test]
fn a_lane_hands_over_whole_messages_and_takes_back_only_slots_that_were_read() {
    model(|| {
        let (agent, grain) = pair(1, vec![]);
        let producer = thread::spawn(move || write_three(&agent));
        let lane = grain.own_layout().lanes[0];
        let reader = grain.lane_reader(&lane).unwrap();
        let mut receiver = grain.receiver();
        for position in 0..3 {
            while !reader.is_visible(position) {
                thread::yield_now();
            }
            assert_eq!(reader.read(position)[0], position + 1, "torn");
            receiver.acknowledge(crate::Place { lane: 0, position });
        }
        producer.join().unwrap();
    });
}

#[test]
fn a_lane_whose_reader_has_nothing_to_do_takes_back_only_slots_that_were_read() {
    model(|| {
        let (agent, grain) = pair(1, vec![]);
        let producer = thread::spawn(move || write_three(&agent));
        let lane = grain.own_layout().lanes[0];
        let reader = grain.lane_reader(&lane).unwrap();
        let own = grain.own_memory();
        for position in 0..3 {
            while !reader.is_visible(position) {
                thread::yield_now();
            }
            assert_eq!(reader.read(position)[0], position + 1, "torn");
            let cursor = own.word(lane.head_at + offset_of!(LaneHead, cursor));
            cursor.store(position + 1, Ordering::Relaxed);
            // A receiver made now finds its head behind its cursor, and nothing to receive.
            let mut receiver = grain.receiver();
            if position < 2 || receiver.receive().is_none() {
                receiver.publish_heads();
            }
        }
        producer.join().unwrap();
    });
}

/// Runs one commit of the grain with an output for nobody but itself, while `watch` looks.
fn while_committing(
    ack: impl Fn(&Bus<HeapMemory>) -> Ack + Sync + Send + Copy + 'static,
    watch: impl Fn(&Bus<HeapMemory>, Ack) + Sync + Send + Copy + 'static,
) {
    model(move || {
        let (agent, _) = pair(1, vec![]);
        assert!(send(&mut agent.instance(S0), 1));
        let ack = ack(&agent);
        let watched = agent.clone();
        let mut instance = agent.instance(S0);
        let committer = thread::spawn(move || {
            let id = MessageId(2);
            let header = MessageHeader::event(id, id, MessageId::NONE, GRAIN);
            let payload = Payload::Inline(&[]);
            let staged = instance.stage(GRAIN, &header, payload, TraceStamps::default());
            assert!(staged.is_ok());
            instance.commit(ack);
        });
        watch(&watched, ack);
        committer.join().unwrap();
    });
}

/// Offset of a field of the committing slot's record.
fn line(bus: &Bus<HeapMemory>, field: usize) -> usize {
    bus.own_layout().slot_at(S0) + offset_of!(InstanceSlot, commit) + field
}

#[test]
fn who_sees_an_item_of_a_new_record_sees_its_number() {
    while_committing(
        |_| Ack::NOTHING,
        |bus, _| {
            let own = bus.own_memory();
            let item = own.word(line(bus, offset_of!(CommitLine, item)));
            let new = item.load(Ordering::Relaxed) & 1 == 1; // position 1; it was position 0
            fence(Ordering::Acquire);
            let seq = own.word(line(bus, offset_of!(CommitLine, seq)));
            assert!(
                !new || seq.load(Ordering::Relaxed) == 2,
                "items of 2 under number 1"
            );
        },
    );
}

#[test]
fn who_sees_the_commit_word_sees_its_record() {
    while_committing(
        |_| Ack::NOTHING,
        |bus, _| {
            let own = bus.own_memory();
            let commit = own.word(line(bus, offset_of!(CommitLine, commit)));
            let fact = commit.load(Ordering::Acquire) == 2;
            let item = own.word(line(bus, offset_of!(CommitLine, item)));
            assert!(
                !fact || item.load(Ordering::Relaxed) & 1 == 1,
                "a fact without items"
            );
        },
    );
}

/// The acknowledgement's word has changed: then the output's stamp is there.
fn acknowledged_means_visible(at: usize, bus: &Bus<HeapMemory>, before: u64) {
    let word = bus.own_memory().word(at);
    let acknowledged = word.load(Ordering::Acquire) != before;
    let tail = bus.own_layout().slot_at(S0) + offset_of!(InstanceSlot, tail);
    let tail = bus.own_memory().word(tail).load(Ordering::Relaxed);
    assert!(
        !acknowledged || tail == 2,
        "acknowledged, and the output is not there"
    );
}

#[test]
fn who_sees_a_moved_cursor_sees_the_outputs() {
    // The agent has no incoming lane here: any free word serves as its cursor.
    let spare = |bus: &Bus<HeapMemory>| line(bus, 0) + offset_of!(InstanceSlot, more_items) + 64;
    while_committing(
        move |bus| Ack {
            at: sandpipe_abi::layout::ACK_CURSOR,
            key: 1,
            word_at: spare(bus),
        },
        |bus, ack| acknowledged_means_visible(ack.word_at, bus, 0),
    );
}

#[test]
fn who_sees_a_cleared_entry_sees_the_outputs() {
    while_committing(
        |bus| {
            let entry = bus.own_layout().entry_at(0);
            let word_at = entry + offset_of!(InFlightEntry, key);
            bus.own_memory().word(word_at).store(7, Ordering::Relaxed);
            crate::instance::ack_of_entry(0, entry, 7)
        },
        |bus, ack| acknowledged_means_visible(ack.word_at, bus, 7),
    );
}

#[test]
fn who_sees_an_entrys_key_sees_its_message() {
    model(|| {
        let (agent, grain) = pair(1, vec![]);
        assert!(send(&mut agent.instance(S0), 1));
        let claiming = grain.clone();
        let claimer = thread::spawn(move || assert!(claiming.claimer(S0).claim(|| 1).is_some()));
        let entry = grain.own_layout().entry_at(0);
        let key = grain
            .own_memory()
            .word(entry + offset_of!(InFlightEntry, key));
        if key.load(Ordering::Acquire) == entry_key(0, 0) {
            let message = entry + offset_of!(InFlightEntry, message);
            assert_eq!(read_words(grain.own_memory(), message)[0], 1, "torn");
        }
        claimer.join().unwrap();
    });
}

#[test]
fn two_claimers_free_a_slot_only_after_both_have_read_theirs() {
    model(|| {
        let (agent, grain) = pair(2, vec![]);
        let mut producer = agent.instance(S0);
        assert!(send(&mut producer, 1) && send(&mut producer, 2));
        let other = grain.clone();
        let second = thread::spawn(move || assert!(other.claimer(S1).claim(|| 1).is_some()));
        let first = thread::spawn(move || assert!(grain.claimer(S0).claim(|| 1).is_some()));
        for id in [3, 4] {
            while !send(&mut producer, id) {
                thread::yield_now();
            }
        }
        first.join().unwrap();
        second.join().unwrap();
    });
}

#[test]
fn a_chunk_is_held_while_its_message_lies_in_an_entry() {
    model(|| {
        let class = ChunkClass {
            bytes: 64,
            count: 1,
        };
        let (agent, grain) = pair(1, vec![class]);
        let mut producer = agent.instance(S0);
        let loan = producer.loan(8).unwrap();
        producer.write(&loan, 0, &7_u64.to_le_bytes());
        let id = MessageId(1);
        let header = MessageHeader::event(id, id, MessageId::NONE, GRAIN);
        let payload = Payload::Loaned(&loan);
        let staged = producer.stage(GRAIN, &header, payload, TraceStamps::default());
        assert!(staged.is_ok());
        producer.commit(Ack::NOTHING);
        // One look: before, while or after the consumer has the message.
        let looking = thread::spawn(move || {
            if let Ok(loan) = producer.loan(8) {
                producer.write(&loan, 0, &8_u64.to_le_bytes());
            }
        });
        let delivery = grain.claimer(S0).claim(|| 1).unwrap();
        assert_eq!(in_chunk(&grain, &delivery), 7);
        // Nothing but the acknowledgement: no fence of a commit in front of it.
        grain.instance(S0).acknowledge(delivery.ack);
        looking.join().unwrap();
    });
}

#[test]
fn whoever_moves_the_head_knows_that_the_slot_was_read() {
    model(|| {
        let (agent, grain) = pair(1, vec![]);
        assert!(send(&mut agent.instance(S0), 1));
        let lane = grain.own_layout().lanes[0];
        let helper = grain.clone();
        // No fence of its own: only the mark tells it that the copy was made.
        let helping = thread::spawn(move || {
            if advance_head(helper.own_memory(), lane.head_at, 1) == 1 {
                agent.own_memory().note_write(lane.slots_at + 8);
            }
        });
        assert!(grain.claimer(S0).claim(|| 1).is_some());
        helping.join().unwrap();
    });
}

#[test]
fn who_sees_the_orphan_hint_sees_the_orphan() {
    model(|| {
        let (agent, grain) = pair(2, vec![]);
        assert!(send(&mut agent.instance(S0), 1));
        assert!(grain.claimer(S0).claim(|| 1).is_some());
        let other = grain.clone();
        let early = thread::spawn(move || other.claimer(S1).claim(|| 1).is_some());
        recover_slot(&grain, S0);
        let early = early.join().unwrap();
        let late = grain.claimer(S1).claim(|| 1).is_some();
        assert!(early != late, "the hint was taken back and the orphan not");
    });
}

#[test]
fn recovery_and_a_claimer_that_finish_neighbours_do_not_both_leave_the_head() {
    model(|| {
        let (agent, grain) = pair(2, vec![]);
        let mut producer = agent.instance(S0);
        assert!(send(&mut producer, 1) && send(&mut producer, 2));
        // Slot 0 died with the first message in its entry, right before it was confirmed.
        let lane = grain.own_layout().lanes[0];
        let claim = Claim {
            position_after: 1,
            slot: 0,
            stage: Stage::Copied,
        };
        let own = grain.own_memory();
        let store = |at: usize, value: u64| own.word(at).store(value, Ordering::Relaxed);
        store(claim_at(lane.head_at, 1, 0), claim.to_word());
        let entry = grain.own_layout().entry_at(0);
        store(entry + offset_of!(InFlightEntry, owner), owner_word(1, 1));
        let key = tentative(entry_key(0, 0));
        store(entry + offset_of!(InFlightEntry, key), key);
        let other = grain.clone();
        let claimer = thread::spawn(move || assert!(other.claimer(S1).claim(|| 1).is_some()));
        recover_slot(&grain, S0);
        claimer.join().unwrap();
        let head = own.word(lane.head_at).load(Ordering::Relaxed);
        assert_eq!(
            head, 2,
            "both positions are copied, and nobody moved the head"
        );
    });
}

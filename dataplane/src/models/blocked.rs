//! Models of a claim that others end for its claimer (`claim/blocked.rs`).

use core::mem::offset_of;

use loom::thread;
use sandpipe_abi::layout::InFlightEntry;

use super::{S0, S1, model, pair, send};
use crate::chunk::entry_key;
use crate::claim_word::{Claim, Stage, advance_head, owner_word, settle, tentative};
use crate::lane::claim_at;
use crate::memory::Memory;
use crate::message::read_words;
use crate::recover::recover_slot;
use crate::sync::Ordering;
use crate::{Bus, Claimer, Delivery, HeapMemory, SlotIndex};

/// Two looks, as far apart as a claimer that is waited for is given.
fn wait_and_unblock(claimer: &mut Claimer<HeapMemory>) {
    claimer.unblock(0, 1);
    claimer.unblock(0, 1_000_000_000);
}

fn claim(bus: &Bus<HeapMemory>, slot: SlotIndex) -> Option<Delivery> {
    let delivery = bus.claimer(slot).claim(|| 1)?;
    let payload = bus.payload(&delivery).unwrap();
    assert_eq!(payload, 1_u64.to_le_bytes(), "torn");
    Some(delivery)
}

fn key_of(bus: &Bus<HeapMemory>, entry: usize) -> usize {
    bus.own_layout().entry_at(entry) + offset_of!(InFlightEntry, key)
}

#[test]
fn a_message_whose_claim_is_ended_by_another_is_delivered_once() {
    model(|| {
        let (agent, grain) = pair(2, vec![]);
        assert!(send(&mut agent.instance(S0), 1));
        let stopped = grain.clone();
        let slow = thread::spawn(move || claim(&stopped, S0).is_some());
        wait_and_unblock(&mut grain.claimer(S1));
        let other = claim(&grain, S1).is_some();
        let slow = slow.join().unwrap();
        // Neither may have it at first: the one was taken back after the other had looked.
        let late = claim(&grain, S1).is_some();
        assert_eq!(
            usize::from(slow) + usize::from(other) + usize::from(late),
            1
        );
        let head = grain.own_layout().lanes[0].head_at;
        let head = grain.own_memory().word(head).load(Ordering::Relaxed);
        assert_eq!(head, 1, "the head stays behind");
    });
}

#[test]
fn a_claim_ended_by_another_and_by_recovery_at_once_is_delivered_once() {
    model(|| {
        let (agent, grain) = pair(2, vec![]);
        assert!(send(&mut agent.instance(S0), 1));
        // Slot 0 died after its copy, before or after it became a fact.
        let lane = grain.own_layout().lanes[0];
        let own = grain.own_memory();
        let claim_word = Claim {
            position_after: 1,
            slot: 0,
            stage: Stage::Copied,
        };
        let store = |at: usize, value: u64| own.word(at).store(value, Ordering::Relaxed);
        store(claim_at(lane.head_at, 1, 0), claim_word.to_word());
        let entry = grain.own_layout().entry_at(0);
        store(entry + offset_of!(InFlightEntry, owner), owner_word(1, 1));
        let message = entry + offset_of!(InFlightEntry, message);
        let words = grain.lane_reader(&lane).unwrap().read(0);
        crate::message::write_words(own, message, &words);
        store(key_of(&grain, 0), tentative(entry_key(0, 0)));
        let recovering = grain.clone();
        let recoverer = thread::spawn(move || recover_slot(&recovering, S0).orphaned);
        wait_and_unblock(&mut grain.claimer(S1));
        assert_eq!(recoverer.join().unwrap(), 1, "its message is an orphan");
        let delivery = claim(&grain, S1).expect("the orphan is found");
        assert_eq!(delivery.attempt, 2);
        assert!(claim(&grain, S1).is_none());
    });
}

#[test]
fn who_sees_a_key_that_another_has_confirmed_sees_the_message() {
    model(|| {
        let (agent, grain) = pair(2, vec![]);
        assert!(send(&mut agent.instance(S0), 1));
        let stopped = grain.clone();
        let slow = thread::spawn(move || _ = claim(&stopped, S0));
        let other = grain.clone();
        let helper = thread::spawn(move || wait_and_unblock(&mut other.claimer(S1)));
        let key = grain.own_memory().word(key_of(&grain, 0));
        if key.load(Ordering::Acquire) == entry_key(0, 0) {
            let message = grain.own_layout().entry_at(0) + offset_of!(InFlightEntry, message);
            assert_eq!(read_words(grain.own_memory(), message)[0], 1, "torn");
        }
        slow.join().unwrap();
        helper.join().unwrap();
    });
}

#[test]
fn whoever_moves_the_head_over_a_claim_that_another_confirmed_sees_its_key() {
    model(|| {
        let (_, grain) = pair(2, vec![]);
        let lane = grain.own_layout().lanes[0];
        let own = grain.own_memory();
        let copied = Claim {
            position_after: 1,
            slot: 0,
            stage: Stage::Copied,
        };
        own.word(claim_at(lane.head_at, 1, 0))
            .store(copied.to_word(), Ordering::Relaxed);
        own.word(key_of(&grain, 0))
            .store(tentative(entry_key(0, 0)), Ordering::Relaxed);
        let other = grain.clone();
        let helper = thread::spawn(move || {
            assert!(settle(other.own_memory(), other.own_layout(), 0, 0, copied));
        });
        if advance_head(own, lane.head_at, 1) == 1 {
            let key = own.word(key_of(&grain, 0)).load(Ordering::Relaxed);
            assert_eq!(key, entry_key(0, 0), "nobody holds the message");
        }
        helper.join().unwrap();
    });
}

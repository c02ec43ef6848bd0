//! Lies about who lives, and writers from the past.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use sandpipe::lease::{LeaseState, lease_state, wait_for_change};
use sandpipe::{Memory, layout::InstanceSlot};

use crate::house::{AGENT, HOSTILE, House, INNOCENT, Raw, S0};

#[test]
fn a_forged_lease_speaks_for_its_own_slot_only_and_nobody_waits_for_ever() {
    let mut house = House::new();
    let layout = house.agent.topology().layout(HOSTILE);
    let lease = layout.slot_at(S0) + std::mem::offset_of!(InstanceSlot, lease);
    let own = std::process::id();
    for word in [
        u64::from(own),
        0x4000_0000,
        u64::MAX,
        0xc000_0000 | u64::from(own),
    ] {
        house.poke(lease, word);
        let expected = match word & 0x7fff_ffff {
            word if word & 0x4000_0000 != 0 => LeaseState::Died,
            tid => LeaseState::Held(tid as u32),
        };
        assert_eq!(lease_state(&house.agent, HOSTILE, S0), Some(expected));
        assert_eq!(
            lease_state(&house.agent, INNOCENT, S0),
            Some(LeaseState::Free)
        );
        // A lease that never changes is waited for no longer than was asked.
        wait_for_change(&house.agent, HOSTILE, S0, Duration::from_millis(5));
    }
    // Nothing is recycled on the word of a lease: the guardian waits for the processes.
    let (_, fds) = house.sandbox.guardian.peers_message(AGENT);
    assert_eq!(fds.len(), 3);
    house.innocents_lose_nothing();
}

#[test]
fn an_older_incarnation_that_writes_on_is_read_by_nobody() {
    let mut house = House::new();
    let old = house.raw().clone();
    house.forge(AGENT, 0, Raw::event(1));
    house.sandbox.guardian.repair_family(HOSTILE);
    let (_, hostile) = house.sandbox.join(HOSTILE);
    let mut agent = house.agent.clone();
    house.participant(AGENT).update(&mut agent).unwrap();
    house.agent = agent;
    house.receiver.rebind(&house.agent);
    // What it published in its life arrives; what it writes after it goes nowhere.
    let at = house.slot(AGENT, 1);
    for (index, word) in Raw::event(9).words().into_iter().enumerate() {
        old.word(at + 8 + index * 8).store(word, SeqCst);
    }
    old.word(at).store(2, SeqCst);
    let (delivery, place) = house.receiver.receive().unwrap();
    assert_eq!(delivery.message.header.id.0, 1);
    house.receiver.acknowledge(place);
    assert!(
        house.receiver.receive().is_none(),
        "a dead incarnation was read"
    );
    house.hostile = hostile;
    house.forge(AGENT, 1, Raw::event(2));
    assert_eq!(house.receiver.receive().unwrap().0.message.header.id.0, 2);
}

//! Messages of the dead that rest before their next attempt.

use super::*;
use crate::recover::recover_slot_later;

#[test]
fn what_rests_after_a_death_is_claimed_when_it_is_due_and_holds_up_nobody() {
    let sandbox = Sandbox::new();
    let mut agent = sandbox.bus(AGENT).instance(S0);
    send(&mut agent, FIRST, 7).unwrap();
    let bus = sandbox.bus(FIRST);
    let first = claim(&mut bus.claimer(S0)).unwrap();
    let (now, due) = (1 << 40, (1 << 40) + (50 << 20));
    let asked = core::cell::Cell::new(None);
    let repair = recover_slot_later(bus, S0, &|id, attempt| {
        asked.set(Some((id, attempt)));
        due
    });
    assert_eq!(repair.orphaned, 1);
    assert_eq!(asked.get(), Some((first.message.header.id, 2)));
    let mut claimer = bus.claimer(S1);
    assert!(claimer.has_message() && !claimer.has_due_message(|| now));
    assert!(claimer.claim(|| now).is_none());
    assert!(bus.has_waiting(FIRST), "one that rests is there");
    send(&mut agent, FIRST, 8).unwrap();
    assert!(claimer.has_due_message(|| now));
    let other = claimer.claim(|| now).unwrap();
    assert_eq!((other.message.header.id, other.attempt), (MessageId(8), 1));
    bus.instance(S1).commit(other.ack);
    claimer.finish();
    assert!(claimer.claim(|| due - (1 << 20)).is_none());
    assert_eq!(bus.audit(FIRST).orphans, 1);
    assert!(claimer.has_due_message(|| due + (1 << 20)));
    let second = claimer.claim(|| due + (1 << 20)).unwrap();
    assert_eq!((second.attempt, second.message), (2, first.message));
    assert!(!bus.has_waiting(FIRST), "it is taken");
}

#[test]
fn what_rests_never_takes_the_entries_that_others_need() {
    let sandbox = Sandbox::new();
    let bus = sandbox.bus(FIRST);
    let slots = usize::from(bus.own_layout().slots);
    for id in 1..=2 * slots as u128 {
        send(&mut sandbox.bus(AGENT).instance(S0), FIRST, id).unwrap();
        let delivery = bus.claimer(S0).claim(|| 1).expect("an entry is left");
        assert_eq!(delivery.attempt > 1, id > slots as u128 + 1, "{id}");
        recover_slot_later(bus, S0, &|_, _| u64::MAX >> 1);
    }
    assert!(bus.audit(FIRST).orphans < bus.own_layout().entries);
}

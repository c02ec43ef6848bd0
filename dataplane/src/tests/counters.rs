//! The counters: what they count, and that recovery counts once.

use super::*;
use crate::{Count, Counters};

/// The counters of the first grain as another family reads them, those that are not zero.
fn counted(sandbox: &Sandbox) -> Vec<(&'static str, u64)> {
    let counters = sandbox.bus(AGENT).counters(FIRST);
    let rows = counters.rows().into_iter();
    let rows = rows.filter(|&(_, _, count)| count != 0);
    rows.map(|(name, _, count)| (name, count)).collect()
}

#[test]
fn what_a_family_does_is_counted_and_read_by_another() {
    let sandbox = Sandbox::new();
    assert_eq!(sandbox.bus(AGENT).counters(FIRST), Counters::default());
    for id in 1..=3 {
        send(&mut sandbox.bus(AGENT).instance(S0), FIRST, id).unwrap();
    }
    let mut claimer = sandbox.bus(FIRST).claimer(S1);
    let mut instance = sandbox.bus(FIRST).instance(S1);
    for _ in 0..2 {
        let delivery = claim(&mut claimer).unwrap();
        instance.commit(delivery.ack);
        claimer.finish();
    }
    assert_eq!(counted(&sandbox), [("received", 2)]);
    for id in 1..=4 {
        send(&mut instance, AGENT, id).unwrap();
    }
    assert!(send(&mut instance, AGENT, 5).is_err());
    let loans: Vec<_> = (0..4).map(|_| instance.loan(256).unwrap()).collect();
    assert!(instance.loan(256).is_err() && instance.loan(1 << 20).is_err());
    loans.into_iter().for_each(|loan| instance.give_back(loan));
    let expected = [
        ("published", 4),
        ("received", 2),
        ("bytes", 64),
        ("full", 1),
    ];
    assert_eq!(
        counted(&sandbox),
        [&expected[..], &[("exhausted", 1)]].concat()
    );
    let tally = sandbox.bus(FIRST).tally(S0);
    tally.add(Count::Parked, 3);
    tally.add(Count::Parked, 4);
    assert!(counted(&sandbox).contains(&("parked", 7)));
}

#[test]
fn recovery_counts_what_it_mended_once() {
    let sandbox = Sandbox::new();
    let bus = sandbox.bus(FIRST);
    for id in 1..=2 {
        send(&mut sandbox.bus(AGENT).instance(S0), FIRST, id).unwrap();
    }
    claim(&mut bus.claimer(S0)).unwrap();
    let mut instance = bus.instance(S0);
    send(&mut instance, AGENT, 1).unwrap();
    instance.loan(10).unwrap();
    // As if it had died between the commit word and the stamp.
    let lane = &sandbox.bus(AGENT).own_layout().lanes[0];
    bus.own_memory()
        .word(lane.slots_at)
        .store(0, Ordering::Relaxed);
    for _ in 0..2 {
        recover_slot(bus, S0);
        let expected = [
            ("published", 1),
            ("received", 1),
            ("bytes", 16),
            ("recovered_commits", 1),
            ("recovered_lanes", 1),
            ("recovered_chunks", 1),
            ("recovered_messages", 1),
        ];
        assert_eq!(counted(&sandbox), expected);
    }
}

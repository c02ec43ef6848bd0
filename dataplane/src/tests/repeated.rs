//! A record outlives the holder that wrote it: recovery meets it again with each later holder.

use super::{AGENT, FIRST, S0, SECOND, Sandbox, claim, header, send};
use crate::recover::{Repair, recover_slot};
use crate::{HeapMemory, Instance, Payload, TraceStamps};

fn stage(instance: &mut Instance<HeapMemory>, id: u128) {
    let (header, payload) = (header(id, SECOND), id.to_le_bytes());
    let staged = instance.stage(
        SECOND,
        &header,
        Payload::Inline(&payload),
        TraceStamps::default(),
    );
    staged.unwrap();
}

#[test]
fn a_record_carried_out_again_changes_nothing_for_the_next_holders_of_its_slot() {
    let sandbox = Sandbox::new();
    let bus = sandbox.bus(FIRST);
    let mut agent = sandbox.bus(AGENT).instance(S0);
    let mut second = sandbox.bus(SECOND).claimer(S0);
    let mut expect_output = |id: u128| {
        let output =
            claim(&mut second).map(|delivery| (delivery.message.header.id.0, delivery.ack));
        let (seen, ack) = output.unwrap();
        assert_eq!(seen, id);
        sandbox.bus(SECOND).instance(S0).commit(ack);
        second.finish();
        assert!(claim(&mut second).is_none());
    };
    // Some times around the lanes of four.
    for round in (1..20).step_by(2) {
        send(&mut agent, FIRST, round).unwrap();
        send(&mut agent, FIRST, round + 1).unwrap();
        let event = claim(&mut bus.claimer(S0)).unwrap();
        let mut instance = bus.instance(S0);
        stage(&mut instance, round);
        instance.commit(event.ack);
        // It dies with its work done; the record stays.
        assert_eq!(recover_slot(bus, S0), Repair::default());
        expect_output(round);
        // The next one dies with an event in the same entry and an output in the lane, staged.
        assert!(claim(&mut bus.claimer(S0)).is_some());
        stage(&mut bus.instance(S0), round + 1);
        let repair = recover_slot(bus, S0);
        assert_eq!((repair.rolled_forward, repair.orphaned), (0, 1));
        let again = claim(&mut bus.claimer(S0)).unwrap();
        assert_eq!((again.message.header.id.0, again.attempt), (round + 1, 2));
        let mut instance = bus.instance(S0);
        stage(&mut instance, round + 1);
        instance.commit(again.ack);
        expect_output(round + 1);
        assert_eq!(recover_slot(bus, S0), Repair::default());
        assert!(claim(&mut bus.claimer(S0)).is_none());
    }
}

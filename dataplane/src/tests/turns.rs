//! Whoever publishes without an end holds up no other lane of the same queue.

use super::{AGENT, FIRST, S0, SECOND, Sandbox, send};

/// More than any lane's turn.
const PATIENCE: u128 = 200;

#[test]
fn a_lane_that_is_never_empty_leaves_the_others_their_turn() {
    let sandbox = Sandbox::new();
    let mut endless = sandbox.bus(FIRST).instance(S0);
    let mut modest = sandbox.bus(SECOND).instance(S0);
    let mut receiver = sandbox.bus(AGENT).receiver();
    send(&mut endless, AGENT, 1).unwrap();
    send(&mut modest, AGENT, 1000).unwrap();
    for id in 2..PATIENCE {
        send(&mut endless, AGENT, id).unwrap();
        let (delivery, place) = receiver.receive().unwrap();
        receiver.acknowledge(place);
        if delivery.source == SECOND {
            return;
        }
        assert_eq!(delivery.message.header.id.0, id - 1);
    }
    panic!("the second lane never had its turn");
}

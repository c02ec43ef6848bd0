//! What another family wrote: lanes, payload references, heads, in-flight tables. Read by the
//! agent's receiver, by an instance's claimer, by a publisher and by the audit.
#![no_main]

#[path = "../house.rs"]
mod house;

use house::{AGENT, GRAIN, House, OTHER};
use libfuzzer_sys::fuzz_target;
use sandpipe::{Ack, MessageHeader, MessageId, Payload, SlotIndex, TraceStamps};

fuzz_target!(|bytes: &[u8]| {
    let house = House::new();
    house.scribble(GRAIN, bytes);
    let agent = house.bus(AGENT);
    let mut receiver = agent.receiver();
    for _ in 0..64 {
        let Some((delivery, place)) = receiver.receive() else {
            break;
        };
        if let Ok(payload) = agent.payload(&delivery) {
            assert_eq!(payload.len(), delivery.message.len as usize);
        }
        receiver.acknowledge(place);
    }
    let other = house.bus(OTHER);
    let mut claimer = other.claimer(SlotIndex(0));
    let mut instance = other.instance(SlotIndex(0));
    for _ in 0..64 {
        let Some(delivery) = claimer.claim(|| 1) else {
            break;
        };
        let _ = other.payload(&delivery);
        instance.commit(delivery.ack);
        claimer.finish();
    }
    assert!(!claimer.has_message());
    let mut publisher = agent.instance(SlotIndex(0));
    for id in 1..20 {
        let header = MessageHeader::event(MessageId(id), MessageId(id), MessageId::NONE, GRAIN);
        let staged = publisher.stage(GRAIN, &header, Payload::Inline(b"x"), TraceStamps::default());
        if staged.is_err() {
            break;
        }
        publisher.commit(Ack::NOTHING);
    }
    let _ = publisher.loan(128);
    for family in [AGENT, GRAIN, OTHER] {
        let _ = agent.audit(family);
    }
});

//! The attach handshake: whatever a participant sends, the guardian answers or refuses it; whatever
//! topology a guardian sends is refused or has a layout that fits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sandpipe::attach::AttachMessage;
use sandpipe::{FamilyIndex, Topology};

fuzz_target!(|bytes: &[u8]| {
    if let Some(message) = AttachMessage::decode(bytes) {
        // What is understood is what was meant, byte for byte, but for text that was mended.
        if !matches!(message, AttachMessage::Refused { .. }) {
            assert_eq!(message.encode(), bytes);
        }
        if let AttachMessage::Own { topology, .. } = &message {
            judge(topology);
        }
    }
    judge(bytes);
});

fn judge(bytes: &[u8]) {
    let Ok(topology) = Topology::decode(bytes) else {
        return;
    };
    assert_eq!(topology.encode(), bytes);
    // A full layout is as large as the topology: a few are enough.
    if topology.families().iter().map(|family| usize::from(family.slots)).sum::<usize>() > 64 {
        return;
    }
    for family in 0..topology.families().len() {
        let layout = topology.layout(FamilyIndex(family as u16));
        assert!(layout.control_bytes <= layout.bytes);
        for lane in &layout.lanes {
            assert!(lane.head_at < layout.entries_at);
        }
        assert!(layout.entries_at <= layout.outgoing_at);
        assert!(layout.outgoing_at <= layout.descriptors_at);
    }
}

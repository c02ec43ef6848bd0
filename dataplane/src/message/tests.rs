//! Messages and their words.

use super::words::META;
use super::*;
use crate::refusal::Violation;

#[test]
fn a_message_keeps_every_field_through_its_words() {
    let traced = MessageHeader {
        id: MessageId(1 << 100 | 7),
        root: MessageId(2),
        parent: MessageId(3),
        kind: Kind::Failed,
        queue: FamilyIndex(31),
        last: true,
        traced: true,
        failure: FailureCode::Timeout,
    };
    let trace = TraceStamps {
        taken_ns: 1,
        started_ns: 2,
        ended_ns: 3,
        published_ns: 4,
        attempt: 5,
        worker_started_ns: 6,
        worker_loaded_ns: 7,
    };
    let untraced = MessageHeader {
        traced: false,
        ..traced
    };
    let dead = MessageHeader {
        kind: Kind::Dead,
        ..untraced
    };
    let (chunk, head) = (5, [1, 2, 3, 4, 5, 6, 7]);
    for (header, body) in [
        (traced, Body::Inline([9; 8])),
        (dead, Body::Inline([9; 8])),
        (traced, Body::Traced { chunk, trace }),
        (untraced, Body::Chunk { chunk, head }),
    ] {
        let message = Message {
            header,
            len: 60,
            body,
        };
        assert_eq!(Message::from_words(&message.to_words()), Ok(message));
    }
}

#[test]
fn words_that_are_no_message_are_refused() {
    assert_eq!(Message::from_words(&[0; 15]), Err(Violation::Kind(0)));
    let header = MessageHeader::event(MessageId(1), MessageId(1), MessageId::NONE, FamilyIndex(1));
    let mut words = Message {
        header,
        len: 64,
        body: Body::Inline([0; 8]),
    }
    .to_words();
    words[META] += 1; // 65 bytes cannot be inline
    assert_eq!(Message::from_words(&words), Err(Violation::Length(65)));
    words[META] |= 8 << 48;
    assert_eq!(Message::from_words(&words), Err(Violation::Flags(8)));
}

#[test]
fn the_golden_bytes_of_an_event_do_not_change() {
    let header = MessageHeader::event(
        MessageId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
        MessageId(2),
        MessageId(3),
        FamilyIndex(4),
    );
    let words = Message {
        header,
        len: 8,
        body: Body::Inline([5, 0, 0, 0, 0, 0, 0, 0]),
    };
    let golden = [
        0x090a_0b0c_0d0e_0f10,
        0x0102_0304_0506_0708,
        2,
        0,
        0x0600_0401_0000_0008,
        5,
    ];
    let words = words.to_words();
    assert_eq!(words[..6], golden);
    assert_eq!(words[13..], [3, 0]);
}

#[test]
fn a_childs_id_depends_on_parent_and_index_only() {
    let child = derive_child(MessageId(1), 0);
    assert_eq!(child, derive_child(MessageId(1), 0));
    assert_ne!(child, derive_child(MessageId(1), 1));
    assert_ne!(child, derive_child(MessageId(2), 0));
}

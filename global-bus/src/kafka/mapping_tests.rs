use std::sync::Arc;

use rdkafka::message::{Header, Headers, OwnedHeaders, OwnedMessage, Timestamp};
use sandpipe_abi::MessageId;

use super::mapping::{MappingError, headers, record, value};
use crate::record::{Flag, ObjectRef, Payload, Record, ReplyTo};

fn full() -> Record {
    let mut full = Record::new(MessageId(0xa1), "shop", "pay", b"hello".to_vec());
    full.root = MessageId(0xa2);
    full.parent = MessageId(0xa3);
    full.partition = 2;
    full.flag = Flag::Data(ObjectRef {
        name: "out".into(),
        size: 5,
        hash: [0xab; 32],
    });
    full.attempt = 3;
    full.deadline_unix_ms = 1_700_000_000_000;
    full.epoch = 7;
    full.workflow = Arc::from(*b"\x01\xff");
    full.reply_to = Some(ReplyTo {
        front_door: "door".into(),
        partition: 9,
    });
    full.content_type = "text/plain".into();
    full.traceparent = "00-ab-cd-01".into();
    full.attributes = Arc::new([
        ("source".into(), "/a".into()),
        ("empty".into(), String::new()),
    ]);
    full
}

fn message(of: &Record, headers: OwnedHeaders) -> OwnedMessage {
    OwnedMessage::new(
        value(of).map(<[u8]>::to_vec),
        Some(of.id.to_string().into_bytes()),
        of.topic(),
        Timestamp::NotAvailable,
        i32::try_from(of.partition).unwrap(),
        0,
        Some(headers),
    )
}

fn listed(headers: &OwnedHeaders) -> Vec<(String, Vec<u8>)> {
    let pair = |h: Header<'_, &[u8]>| (h.key.to_owned(), h.value.unwrap().to_vec());
    headers.iter().map(pair).collect()
}

#[test]
fn the_kafka_message_of_a_full_record_is_the_documented_one() {
    let full = full();
    let hash = "ab".repeat(32);
    let expected: Vec<(&str, &[u8])> = vec![
        ("sandpipe_version", b"1"),
        ("sandpipe_flag", b"data"),
        ("sandpipe_root", b"000000000000000000000000000000a2"),
        ("sandpipe_parent", b"000000000000000000000000000000a3"),
        ("sandpipe_attempt", b"3"),
        ("sandpipe_deadline", b"1700000000000"),
        ("sandpipe_epoch", b"7"),
        ("sandpipe_workflow", b"\x01\xff"),
        ("sandpipe_reply_to", b"door"),
        ("sandpipe_reply_partition", b"9"),
        ("sandpipe_data_name", b"out"),
        ("sandpipe_data_size", b"5"),
        ("sandpipe_data_hash", hash.as_bytes()),
        ("content-type", b"text/plain"),
        ("traceparent", b"00-ab-cd-01"),
        ("ce_source", b"/a"),
        ("ce_empty", b""),
    ];
    let expected: Vec<(String, Vec<u8>)> = expected
        .iter()
        .map(|(key, value)| ((*key).to_owned(), value.to_vec()))
        .collect();
    assert_eq!(listed(&headers(&full)), expected);
    assert_eq!(value(&full), Some(&b"hello"[..]));
    assert_eq!(full.topic(), "shop.pay");
    assert_eq!(record(&message(&full, headers(&full))), Ok(full));
}

#[test]
fn a_finished_record_is_a_tombstone_that_keeps_its_epoch() {
    let finished = full().finished();
    assert_eq!(value(&finished), None);
    let keys: Vec<String> = listed(&headers(&finished))
        .into_iter()
        .map(|(key, _)| key)
        .collect();
    let expected = [
        "sandpipe_version",
        "sandpipe_flag",
        "sandpipe_root",
        "sandpipe_parent",
        "sandpipe_attempt",
        "sandpipe_epoch",
    ];
    assert_eq!(keys, expected);
    assert_eq!(
        record(&message(&finished, headers(&finished))),
        Ok(finished)
    );
}

#[test]
fn a_payload_reference_has_an_empty_value() {
    let mut by_reference = full();
    by_reference.payload = Payload::Reference(ObjectRef {
        name: "object".into(),
        size: 1 << 40,
        hash: [1; 32],
    });
    assert_eq!(value(&by_reference), Some(&[][..]));
    let message = message(&by_reference, headers(&by_reference));
    assert_eq!(record(&message), Ok(by_reference));
}

#[test]
fn a_newer_version_is_refused_and_an_unknown_header_is_not() {
    let full = full();
    let with = |key, value: &str| {
        headers(&full).insert(Header {
            key,
            value: Some(value),
        })
    };
    let newer = message(&full, with("sandpipe_version", "2"));
    assert_eq!(record(&newer), Err(MappingError::Version(2)));
    let unknown = message(&full, with("sandpipe_colour", "blue"));
    assert_eq!(record(&unknown), Ok(full.clone()));
}

#[test]
fn a_forged_message_is_an_error_that_names_the_field() {
    let full = full();
    let cases: [(&str, &[u8], &str); 9] = [
        ("sandpipe_version", b"x", "sandpipe_version"),
        ("sandpipe_flag", b"done", "sandpipe_flag"),
        ("sandpipe_flag", b"finished", "value"),
        ("sandpipe_root", b"123", "sandpipe_root"),
        ("sandpipe_attempt", b"-1", "sandpipe_attempt"),
        (
            "sandpipe_epoch",
            b"99999999999999999999999",
            "sandpipe_epoch",
        ),
        ("sandpipe_data_hash", "ä".as_bytes(), "sandpipe_data_hash"),
        ("content-type", b"\xff", "content-type"),
        ("sandpipe_payload_name", b"x", "payload reference"),
    ];
    for (key, value, field) in cases {
        let forged = headers(&full).insert(Header {
            key,
            value: Some(value),
        });
        assert_eq!(
            record(&message(&full, forged)),
            Err(MappingError::Field(field)),
            "{key}"
        );
    }
    let mut no_key = message(&full, headers(&full));
    no_key = no_key.set_key(None);
    assert_eq!(record(&no_key), Err(MappingError::Field("key")));
    let no_topic = message(&full, headers(&full)).set_topic("nodot".into());
    assert_eq!(record(&no_topic), Err(MappingError::Field("topic")));
}

#[test]
fn a_null_value_without_headers_is_a_tombstone() {
    let null = OwnedMessage::new(
        None,
        Some(MessageId(5).to_string().into_bytes()),
        "shop.pay".into(),
        Timestamp::NotAvailable,
        0,
        0,
        None,
    );
    assert_eq!(record(&null).unwrap().flag, Flag::Finished);
}

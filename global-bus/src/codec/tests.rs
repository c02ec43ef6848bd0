use proptest::prelude::*;

use super::*;

/// A record that uses every field; its bytes are written out below.
fn golden() -> Record {
    Record {
        id: MessageId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
        root: MessageId(0x11),
        parent: MessageId(0x12),
        app: "shop".into(),
        grain: "pay".into(),
        partition: 2,
        flag: Flag::Data(ObjectRef {
            name: "out".into(),
            size: 5,
            hash: [0xaa; 32],
        }),
        attempt: 3,
        deadline_unix_ms: 0x0193_4bd0_1234,
        epoch: 7,
        workflow: Arc::from(*b"\x01\x02"),
        reply_to: Some(ReplyTo {
            front_door: "fd".into(),
            partition: 9,
        }),
        content_type: "text/plain".into(),
        traceparent: "00-ab".into(),
        attributes: Arc::new([("type".into(), "t".into())]),
        payload: Payload::Inline(b"hello".to_vec()),
    }
}

const GOLDEN: &str = "\
    01020101 02000000 03000000 01000000 \
    100f0e0d0c0b0a090807060504030201 11000000000000000000000000000000 \
    12000000000000000000000000000000 3412d04b93010000 0700000000000000 \
    04000000 73686f70 03000000 706179 02000000 0102 0a000000 746578742f706c61696e \
    05000000 30302d6162 04000000 74797065 01000000 74 02000000 6664 09000000 \
    03000000 6f7574 0500000000000000 \
    aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa \
    05000000 68656c6c6f";

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn encoded(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::new();
    record.encode(&mut bytes);
    bytes
}

#[test]
fn the_bytes_of_a_full_record_are_the_documented_ones() {
    assert_eq!(encoded(&golden()), unhex(GOLDEN));
    assert_eq!(Record::decode(&unhex(GOLDEN)).unwrap(), golden());
}

#[test]
fn the_bytes_of_a_tombstone_are_the_documented_ones() {
    let expected = "\
        01030100 02000000 03000000 00000000 \
        100f0e0d0c0b0a090807060504030201 11000000000000000000000000000000 \
        12000000000000000000000000000000 0000000000000000 0700000000000000 \
        04000000 73686f70 03000000 706179 00000000 00000000 00000000 00000000";
    assert_eq!(encoded(&golden().finished()), unhex(expected));
}

#[test]
fn the_bytes_of_a_payload_reference_are_the_documented_ones() {
    let mut record = golden().finished();
    record.flag = Flag::Processing;
    record.payload = Payload::Reference(ObjectRef {
        name: "o".into(),
        size: 1,
        hash: [0xbb; 32],
    });
    let bytes = encoded(&record);
    assert_eq!(bytes[..4], [1, 1, 2, 0]);
    let expected = "01000000 6f 0100000000000000 \
        bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    assert!(bytes.ends_with(&unhex(expected)));
}

#[test]
fn a_record_of_a_newer_build_is_refused_by_its_version() {
    let mut bytes = encoded(&golden());
    bytes[0] = 2;
    let error = Record::decode(&bytes).unwrap_err();
    assert_eq!(error, DecodeError::Version { found: 2 });
    assert!(
        error
            .to_string()
            .contains("version 2, this build reads up to 1")
    );
}

#[test]
fn each_truncation_is_an_error_that_names_the_field() {
    let bytes = encoded(&golden());
    for length in 0..bytes.len() {
        let error = Record::decode(&bytes[..length]).unwrap_err();
        assert!(
            matches!(error, DecodeError::Truncated { .. }),
            "{length}: {error}"
        );
    }
}

#[test]
fn bytes_behind_a_record_are_an_error() {
    let mut bytes = encoded(&golden());
    bytes.push(0);
    assert_eq!(
        Record::decode(&bytes),
        Err(DecodeError::Trailing { bytes: 1 })
    );
}

#[test]
fn a_forged_attribute_count_allocates_nothing() {
    let mut bytes = encoded(&golden());
    bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    let error = Record::decode(&bytes).unwrap_err();
    assert_eq!(
        error,
        DecodeError::Truncated {
            field: "attributes"
        }
    );
}

#[test]
fn names_that_cannot_be_topics_are_refused() {
    use crate::record::{InvalidRecord, check_name};
    let long = "a".repeat(101);
    for name in ["", "a.b", "a/b", "a b", "ä", long.as_str()] {
        let error = check_name("grain", name).unwrap_err();
        assert!(
            matches!(error, InvalidRecord::Name { what: "grain", .. }),
            "{name}"
        );
    }
    assert_eq!(check_name("grain", "Thumb-nail_2"), Ok(()));
}

fn object() -> impl Strategy<Value = ObjectRef> {
    (".{0,8}", any::<u64>(), any::<[u8; 32]>()).prop_map(|(name, size, hash)| ObjectRef {
        name,
        size,
        hash,
    })
}

prop_compose! {
    fn identity()(ids in any::<[u128; 3]>(), app in "[a-z0-9_-]{1,12}", grain in "[a-z]{1,12}",
                  numbers in any::<(u32, u32, u64, u64)>())
        -> Record {
        let mut record = Record::new(MessageId(ids[0]), &app, &grain, Vec::new());
        record.root = MessageId(ids[1]);
        record.parent = MessageId(ids[2]);
        (record.partition, record.attempt, record.deadline_unix_ms, record.epoch) = numbers;
        record
    }
}

prop_compose! {
    fn any_record()(identity in identity(),
        flag in prop_oneof![Just(Flag::Processing), Just(Flag::Finished),
                            object().prop_map(Flag::Data)],
        payload in prop_oneof![any::<Vec<u8>>().prop_map(Payload::Inline),
                               object().prop_map(Payload::Reference)],
        workflow in any::<Vec<u8>>(), content_type in ".{0,20}", traceparent in ".{0,20}",
        attributes in prop::collection::vec((".{0,8}", ".{0,8}"), 0..4),
        reply_to in prop::option::of((".{0,8}", any::<u32>())))
        -> Record {
        Record {
            flag,
            payload,
            workflow: workflow.into(),
            content_type: content_type.into(),
            traceparent: traceparent.into(),
            attributes: attributes.into(),
            reply_to: reply_to
                .map(|(door, partition)| ReplyTo { front_door: door.into(), partition }),
            ..identity
        }
    }
}

proptest! {
    #[test]
    fn every_record_survives_the_round_trip(record in any_record()) {
        let bytes = encoded(&record);
        prop_assert_eq!(bytes.len(), record.encoded_bytes());
        prop_assert_eq!(Record::decode(&bytes), Ok(record));
    }

    #[test]
    fn every_truncated_record_is_refused(
        record in any_record(),
        cut in any::<prop::sample::Index>(),
    ) {
        let bytes = encoded(&record);
        let length = cut.index(bytes.len());
        prop_assert!(Record::decode(&bytes[..length]).is_err());
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(
        mut bytes in any::<Vec<u8>>(),
        flips in any::<[(u8, u8); 4]>(),
    ) {
        let _ = Record::decode(&bytes);
        bytes = encoded(&golden());
        for (at, value) in flips {
            let at = usize::from(at) % bytes.len();
            bytes[at] = value;
        }
        if let Ok(record) = Record::decode(&bytes) {
            prop_assert_eq!(encoded(&record), bytes.clone());
            prop_assert!(Head::peek(&bytes).is_ok());
        }
    }
}

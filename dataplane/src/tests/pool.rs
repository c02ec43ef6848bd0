//! The payload pool: what is refused, and that nothing fragments.

use super::*;
use sandpipe_abi::layout::HEAD_MAX;

use crate::Loan;

/// Loans of one length until the pool is exhausted.
fn all(instance: &mut Instance<HeapMemory>, len: usize) -> Vec<Loan> {
    std::iter::from_fn(|| instance.loan(len).ok()).collect()
}

#[test]
fn a_payload_larger_than_every_chunk_is_refused_by_name_and_not_as_full() {
    let sandbox = Sandbox::new();
    let mut producer = sandbox.bus(FIRST).instance(S0);
    let held = all(&mut producer, 1);
    assert_eq!(held.len(), 4, "every chunk is held");
    let before = sandbox.bus(AGENT).counters(FIRST);
    let error = producer.loan(1025).unwrap_err();
    assert_eq!(
        error,
        LoanError::TooLarge {
            len: 1025,
            max: 1024
        }
    );
    assert!(error.to_string().contains("1025") && error.to_string().contains("1024"));
    assert_eq!(sandbox.bus(AGENT).counters(FIRST), before);
}

#[test]
fn an_exhausted_pool_is_told_and_counted_at_each_try() {
    let sandbox = Sandbox::new();
    let mut producer = sandbox.bus(FIRST).instance(S0);
    let mut held = all(&mut producer, 300);
    assert_eq!(
        held.len(),
        1,
        "only the larger class has room for 300 bytes"
    );
    for tries in 2..=4 {
        assert_eq!(producer.loan(300), Err(LoanError::Exhausted { len: 300 }));
        assert_eq!(sandbox.bus(AGENT).counters(FIRST).exhausted, tries);
    }
    producer.give_back(held.remove(0));
    assert!(producer.loan(300).is_ok());
}

#[test]
fn a_pool_does_not_fragment_whatever_the_order_of_loans_and_returns() {
    let sandbox = Sandbox::new();
    let mut producer = sandbox.bus(FIRST).instance(S0);
    let classes = sandbox.bus(FIRST).own_layout().chunks.clone();
    let class_of = |loan: &Loan| classes.iter().rposition(|class| class.first <= loan.chunk);
    let mut held: Vec<Loan> = Vec::new();
    let mut state = 1_u64;
    for _ in 0..ROUNDS * 50 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let random = (state >> 33) as usize;
        if random.is_multiple_of(3) && !held.is_empty() {
            producer.give_back(held.swap_remove(random / 3 % held.len()));
            continue;
        }
        let len = 1 + random / 3 % if random % 3 == 1 { 256 } else { 1024 };
        // The smallest class that fits and has a chunk that nobody holds, wherever that lies.
        let has_one = |class: usize| {
            let held = held.iter().filter(|loan| class_of(loan) == Some(class));
            classes[class].bytes >= len as u64 && held.count() < classes[class].count as usize
        };
        let expected = (0..classes.len()).find(|&class| has_one(class));
        let loan = producer.loan(len).ok();
        assert_eq!(loan.as_ref().and_then(class_of), expected, "{len} bytes");
        held.extend(loan);
    }
}

#[test]
fn a_reference_to_no_chunk_is_refused() {
    let sandbox = Sandbox::new();
    let mut producer = sandbox.bus(FIRST).instance(S0);
    let loan = producer.loan(100).unwrap();
    producer
        .stage(
            AGENT,
            &header(1, AGENT),
            Payload::Loaned(&loan),
            TraceStamps::default(),
        )
        .unwrap();
    producer.commit(Ack::NOTHING);
    let (mut delivery, _) = sandbox.bus(AGENT).receiver().receive().unwrap();
    for (chunk, len) in [(99, 100), (0, 257), (u32::MAX, u32::MAX)] {
        delivery.message.body = Body::Chunk {
            chunk,
            head: [0; 7],
        };
        delivery.message.len = len;
        assert!(
            sandbox.bus(AGENT).locate(&delivery).is_err(),
            "chunk {chunk}, {len} bytes"
        );
    }
    assert_eq!(sandbox.bus(FIRST).counters(AGENT).quarantined, 3);
}

#[test]
fn the_first_bytes_of_a_payload_need_no_look_at_its_chunk() {
    let sandbox = Sandbox::new();
    let mut producer = sandbox.bus(FIRST).instance(S0);
    let loan = producer.loan(100).unwrap();
    let bytes: Vec<u8> = (0..100).collect();
    producer.write(&loan, 0, &bytes);
    for traced in [false, true] {
        let header = MessageHeader {
            traced,
            ..header(1, AGENT)
        };
        let payload = Payload::Loaned(&loan);
        producer
            .stage(AGENT, &header, payload, TraceStamps::default())
            .unwrap();
    }
    producer.commit(Ack::NOTHING);
    producer.write(&loan, 0, &[0xff; 100]); // what the chunk says now
    let bus = sandbox.bus(AGENT);
    let mut receiver = bus.receiver();
    let mut seen = |len| {
        let (delivery, _) = receiver.receive().unwrap();
        let mut head = vec![0; len];
        bus.payload_of(&delivery).unwrap().copy_to(&mut head);
        (head, bus.payload(&delivery).unwrap())
    };
    // A traced message carries its times where another has its head.
    assert_eq!(
        seen(HEAD_MAX),
        (bytes[..HEAD_MAX].to_vec(), vec![0xff; 100])
    );
    assert_eq!(seen(HEAD_MAX), (vec![0xff; HEAD_MAX], vec![0xff; 100]));
}

#[test]
fn every_chunk_of_every_extension_has_its_own_place_and_only_within_the_limit() {
    let plain = topology().layout(FIRST);
    assert_eq!((plain.extensions, plain.span()), (0, plain.bytes));
    assert_eq!(plain.extended_data(plain.chunk_count()), None);
    let pool = (plain.bytes - plain.control_bytes) as u64;
    for (growth, extensions) in [(pool - 1, 0), (pool, 1), (3 * pool - 1, 2), (99 * pool, 4)] {
        let topology = topology().with_growth(growth);
        assert_eq!(Topology::decode(&topology.encode()), Ok(topology.clone()));
        let layout = topology.layout(FIRST);
        assert_eq!(layout.extensions, extensions);
        assert_eq!(layout.chunks.len(), plain.chunks.len());
        let mut end = layout.bytes;
        let of_segment = plain.chunk_count();
        for chunk in of_segment..of_segment * (1 + extensions as u32) {
            let (extension, at, bytes) = layout.extended_data(chunk).unwrap();
            assert_eq!(extension as u32, chunk / of_segment - 1);
            assert_eq!(bytes, layout.chunk_data(chunk % of_segment).unwrap().1);
            assert_eq!(layout.chunk_data(chunk), None);
            assert!(
                at >= end && at + bytes as usize <= layout.span(),
                "chunk {chunk}"
            );
            end = at + bytes as usize;
            assert!(layout.descriptor_at(chunk) + 192 <= layout.control_bytes);
        }
        let none = of_segment * (1 + extensions as u32);
        assert_eq!(layout.extended_data(none), None);
        assert_eq!(layout.extended_data(u32::MAX), None);
    }
}

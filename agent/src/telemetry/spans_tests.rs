//! Of what the agent heard, and of what a grain may have made up.

use super::*;
use crate::core::{Path, Stamps};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn hop(grain: &str, message: u128, stamps: [u64; 3], read_ns: u64) -> Hop {
    let [taken_ns, published_ns, attempt] = stamps;
    Hop {
        grain: grain.into(),
        message: MessageId(message),
        stamps: Stamps {
            taken_ns,
            published_ns,
            attempt,
            ..Stamps::default()
        },
        read_ns,
        ..Hop::default()
    }
}

/// Message 1 makes 2 and 3; heard of in this order: 3, 1, 2.
fn spans_of(hops: Vec<Hop>, traceparent: &str) -> Vec<SpanData> {
    let trace = Box::new(Trace {
        received_ns: 1000,
        known_ns: 9000,
        hops,
        made: vec![(MessageId(2), MessageId(1)), (MessageId(3), MessageId(1))],
        ..Trace::default()
    });
    let path = Path {
        root: MessageId(1),
        traceparent: traceparent.into(),
        trace,
        failed: Some(Cause::Timeout),
    };
    let app = "app".into();
    let clocks = Clocks {
        unix: SystemTime::UNIX_EPOCH + Duration::from_nanos(1_000_000),
        monotonic_ns: 10_000,
    };
    spans(
        &Queued { app, path },
        clocks,
        &InstrumentationScope::default(),
    )
}

fn times_of(span: &SpanData) -> (u128, u128) {
    let ns = |time: SystemTime| {
        time.duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_nanos()
    };
    (ns(span.start_time) - 990_000, ns(span.end_time) - 990_000)
}

#[test]
fn each_span_is_the_child_of_what_caused_it_in_whatever_order_it_was_heard() {
    let hops = vec![
        hop("c", 3, [4000, 5000, 1], 6000),
        hop("a", 1, [2000, 3000, 1], 6500),
        hop("b", 2, [4100, 5100, 2], 7000),
    ];
    let all = spans_of(hops, PARENT);
    let [request, c, a, b] = all.as_slice() else {
        panic!("{all:?}")
    };
    let id = |span: &SpanData| span.span_context.span_id();
    let trace = TraceId::from_hex(&PARENT[3..35]).unwrap();
    assert!(all.iter().all(|span| span.span_context.trace_id() == trace));
    assert_eq!(
        request.parent_span_id,
        SpanId::from_hex(&PARENT[36..52]).unwrap()
    );
    assert!(request.parent_span_is_remote && !a.parent_span_is_remote);
    assert_eq!(a.parent_span_id, id(request));
    assert_eq!((b.parent_span_id, c.parent_span_id), (id(a), id(a)));
    assert_eq!(
        (times_of(request), times_of(b)),
        ((1000, 9000), (4100, 5100))
    );
    assert_eq!(
        (request.status.clone(), b.status.clone()),
        (Status::error("timeout"), Status::Unset)
    );
    let attempt = KeyValue::new("sandpipe.attempt", 2);
    assert!(b.attributes.contains(&attempt) && !a.attributes.contains(&attempt));
}

#[test]
fn a_request_without_a_context_begins_a_trace_of_its_own() {
    let all = spans_of(vec![], "");
    assert_eq!(
        all[0].span_context.trace_id(),
        TraceId::from_bytes(1u128.to_be_bytes())
    );
    assert_eq!(all[0].parent_span_id, SpanId::INVALID);
    assert!(!all[0].parent_span_is_remote);
}

#[test]
fn times_that_an_instance_made_up_stay_within_what_the_agent_saw() {
    for (stamps, is) in [
        ([u64::MAX, u64::MAX, u64::MAX], (6000, 6000)),
        ([1, 1, 0], (1000, 1000)),
        ([5000, 4000, 1], (4000, 4000)),
        ([0, 0, 0], (6000, 6000)),
        ([2000, 0, 0], (2000, 6000)),
    ] {
        let all = spans_of(vec![hop("a", 1, stamps, 6000)], PARENT);
        assert_eq!(times_of(&all[1]), is, "{stamps:?}");
        let is_attempt = |pair: &&KeyValue| pair.key.as_str() == "sandpipe.attempt";
        let attempts = all[1].attributes.iter().filter(is_attempt).count();
        assert_eq!(attempts, usize::from(stamps[2] == 1), "{stamps:?}");
    }
}

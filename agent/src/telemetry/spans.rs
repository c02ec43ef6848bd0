//! A path as spans.

use std::time::{Duration, SystemTime};

use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use sandpipe_abi::MessageId;

use super::Queued;
use crate::core::{Cause, Hop, Trace};

/// Two readings of the same moment: what was measured by the one clock is told by the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clocks {
    pub unix: SystemTime,
    pub monotonic_ns: u64,
}

impl Clocks {
    pub(super) fn now() -> Clocks {
        Clocks {
            unix: SystemTime::now(),
            monotonic_ns: sandpipe::monotonic_ns(),
        }
    }

    fn unix(self, monotonic_ns: u64) -> SystemTime {
        let age = Duration::from_nanos(self.monotonic_ns.saturating_sub(monotonic_ns));
        self.unix.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

/// The request's span first, then one for each handling, in the order in which the agent heard.
pub(super) fn spans(
    queued: &Queued,
    clocks: Clocks,
    scope: &InstrumentationScope,
) -> Vec<SpanData> {
    let Queued { app, path } = queued;
    let (trace_id, remote) = context(&path.traceparent, path.root);
    let base = Base {
        trace_id,
        clocks,
        scope,
    };
    let trace = &path.trace;
    let mut request = base.span(span_id(REQUEST, path.root), app.to_string());
    request.parent_span_id = remote;
    request.parent_span_is_remote = remote != SpanId::INVALID;
    request.span_kind = SpanKind::Server;
    base.times(&mut request, trace.received_ns, trace.known_ns);
    describe(&mut request, app, path.root, path.failed);
    let handlings = trace.hops.iter().map(|hop| {
        let name = format!("{app}/{}", hop.grain);
        let mut span = base.span(span_id(HANDLING, hop.message), name);
        span.parent_span_id = cause_of(trace, hop, request.span_context.span_id());
        span.span_kind = SpanKind::Consumer;
        let (begin, end) = times(trace, hop);
        base.times(&mut span, begin, end);
        describe(&mut span, app, hop.message, hop.failed);
        let grain = KeyValue::new("sandpipe.grain", hop.grain.clone());
        span.attributes.push(grain);
        if let attempt @ 1..=0xffff = hop.stamps.attempt {
            let attempt = i64::try_from(attempt).unwrap_or_default();
            span.attributes
                .push(KeyValue::new("sandpipe.attempt", attempt));
        }
        span
    });
    let mut all: Vec<SpanData> = handlings.collect();
    all.insert(0, request);
    all
}

/// What the spans of one path have in common.
struct Base<'a> {
    trace_id: TraceId,
    clocks: Clocks,
    scope: &'a InstrumentationScope,
}

impl Base<'_> {
    fn span(&self, id: SpanId, name: String) -> SpanData {
        let (flags, state) = (TraceFlags::SAMPLED, TraceState::NONE);
        SpanData {
            span_context: SpanContext::new(self.trace_id, id, flags, false, state),
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: name.into(),
            start_time: SystemTime::UNIX_EPOCH,
            end_time: SystemTime::UNIX_EPOCH,
            attributes: Vec::with_capacity(5),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: self.scope.clone(),
        }
    }

    fn times(&self, span: &mut SpanData, begin_ns: u64, end_ns: u64) {
        span.start_time = self.clocks.unix(begin_ns);
        span.end_time = self.clocks.unix(end_ns.max(begin_ns));
    }
}

fn describe(span: &mut SpanData, app: &str, message: MessageId, failed: Option<Cause>) {
    let outcome = failed.map_or("output", Cause::name);
    span.attributes.extend([
        KeyValue::new("sandpipe.application", app.to_owned()),
        KeyValue::new("sandpipe.message_id", message.to_string()),
        KeyValue::new("sandpipe.outcome", outcome),
    ]);
    if failed.is_some() {
        span.status = Status::error(outcome);
    }
}

/// When an instance took the message and when it committed what came of it. It says so itself, so
/// it is held to what the agent has seen. One that died has said nothing.
fn times(trace: &Trace, hop: &Hop) -> (u64, u64) {
    let stamps = &hop.stamps;
    let said = |stamp: u64| Some(stamp).filter(|&stamp| stamp != 0);
    let latest = hop.read_ns.max(trace.received_ns);
    let end = said(stamps.published_ns).unwrap_or(latest);
    let end = end.clamp(trace.received_ns, latest);
    let begin = said(stamps.taken_ns).unwrap_or(end);
    (begin.clamp(trace.received_ns, end), end)
}

/// The handling that made the message, or else the request.
fn cause_of(trace: &Trace, hop: &Hop, request: SpanId) -> SpanId {
    let maker = trace.made.iter().find(|(made, _)| *made == hop.message);
    maker.map_or(request, |&(_, maker)| span_id(HANDLING, maker))
}

/// The trace and the caller's span, or a new trace of the request's own id.
fn context(traceparent: &str, root: MessageId) -> (TraceId, SpanId) {
    let mut fields = traceparent.split('-').skip(1);
    let trace = fields
        .next()
        .and_then(|field| TraceId::from_hex(field).ok());
    let span = fields.next().and_then(|field| SpanId::from_hex(field).ok());
    match (trace, span) {
        (Some(trace), Some(span)) => (trace, span),
        _ => (TraceId::from_bytes(root.0.to_be_bytes()), SpanId::INVALID),
    }
}

/// Kinds of spans that one message may have.
const REQUEST: &[u8] = b"request";
const HANDLING: &[u8] = b"handling";

/// The same for the same message, so that nobody has to remember it.
fn span_id(kind: &[u8], message: MessageId) -> SpanId {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&message.0.to_le_bytes());
    hasher.update(kind);
    let half = hasher.finalize().as_bytes()[..8].try_into();
    let id = u64::from_le_bytes(half.expect("a BLAKE3 hash has 32 bytes"));
    SpanId::from_bytes(id.max(1).to_be_bytes())
}

#[cfg(test)]
#[path = "spans_tests.rs"]
mod tests;

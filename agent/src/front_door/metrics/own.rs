//! What the front door counts without asking the bus threads.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::OfApp;
use crate::front_door::AppDoor;
use crate::front_door::connections::ConnectionCounts;
use crate::telemetry::SpanCounts;

pub(super) fn connection_counts(registry: &mut Registry, counts: ConnectionCounts) {
    let open = Gauge::<u64, AtomicU64>::default();
    open.set(counts.open as u64);
    registry.register(
        "connections_open",
        "Open connections of the front door",
        open,
    );
    for (name, help, count) in [
        ("accepted", "Connections accepted", counts.accepted),
        (
            "displaced",
            "Connections closed because another came and they had been idle longest",
            counts.displaced,
        ),
        (
            "timed_out",
            "Connections closed because they were idle for too long",
            counts.timed_out,
        ),
        (
            "refused",
            "Connections refused because all others were at work",
            counts.refused,
        ),
    ] {
        registry.register(
            format!("connections_{name}"),
            help,
            ConstCounter::new(count),
        );
    }
}

pub(super) fn span_counts(registry: &mut Registry, counts: SpanCounts) {
    for (name, help, count) in [
        (
            "exported",
            "Spans that their receiver took",
            counts.exported,
        ),
        (
            "dropped",
            "Spans that were lost: the queue was full or the receiver did not take them",
            counts.dropped,
        ),
    ] {
        registry.register(format!("spans_{name}"), help, ConstCounter::new(count));
    }
    let queued = Gauge::<u64, AtomicU64>::default();
    queued.set(counts.queued);
    registry.register("spans_queued", "Spans that are not sent yet", queued);
}

pub(super) fn held<'a>(registry: &mut Registry, doors: impl Iterator<Item = &'a AppDoor>) {
    let family = Family::<OfApp, Gauge<u64, AtomicU64>>::default();
    for door in doors {
        let app = door.name.to_string();
        family
            .get_or_create(&OfApp { app })
            .set(door.held_bytes.now() as u64);
    }
    let help = "Bytes of requests that are being received or not yet answered";
    registry.register("bytes_in_flight", help, family);
}

//! The local bus alone: round trips with both sides awake.

use std::sync::atomic::Ordering;

use sandpipe::{Ack, Delivery, Place};

use super::{FigureKind, Parts, Setting};
use crate::clock::{now_ns, two_cpus};
use crate::error::BenchError;
use crate::pair::{self, Peer};
use crate::probes::ring;
use crate::raw::SharedWords;
use crate::report::Unit;
use crate::rounds::Plan;
use crate::stats::Samples;

pub(super) const FIGURE: FigureKind = FigureKind {
    id: "bus",
    title: "Round trip over the local bus, both sides awake",
    source: "the paper has none",
    measure,
};

/// Bytes that both sides touch of each message.
const HEAD_BYTES: usize = 64;
const MIB: usize = 1 << 20;

fn measure(setting: &Setting<'_>) -> Result<Parts, BenchError> {
    let cpus = two_cpus()?;
    let batches = setting.profile.samples(200);
    let mut plan = Plan::default();
    let floor = plan.case("minimal two-line ring, 64 B", "floor", batches, |n| {
        ring::round_trips(cpus, n)
    });
    let small = plan.case("local bus, 64 B", "Rust", batches, |n| {
        round_trips(cpus, n, HEAD_BYTES)
    });
    let large = plan.case("local bus, 1 MiB, 64 B touched", "Rust", batches, |n| {
        round_trips(cpus, n, MIB)
    });
    plan.near_block(&[floor, small, large]);
    plan.ratio("bus.rtt_head.1MiB_over_64B", large, small);
    plan.ratio("bus.rtt_64B_over_ring", small, floor);
    let mut parts = Parts::default();
    parts.measure(setting, plan, Unit::Ns, |_, _| None)?;
    Ok(parts)
}

/// Means of batches of round trips: each message is received, its first 64 bytes read, and its
/// acknowledgement committed together with the answer.
fn round_trips(cpus: [usize; 2], batches: usize, len: usize) -> Result<Samples, BenchError> {
    let results = SharedWords::packed(batches)?;
    let trips = (batches as u64 + 1) * ring::BATCH;
    let ping = |mut peer: Peer| {
        let mut head = [0_u8; HEAD_BYTES];
        let mut before = None;
        for batch in 0..=batches {
            let start = now_ns();
            for _ in 0..ring::BATCH {
                head[0] = head[0].wrapping_add(1);
                before = Some(turn(&mut peer, len, &mut head, before)?);
            }
            if let Some(index) = batch.checked_sub(1) {
                let ns = (now_ns() - start) / ring::BATCH;
                results.word(index).store(ns, Ordering::Relaxed);
            }
        }
        Ok(())
    };
    let echo = |mut peer: Peer| {
        let mut head = [0_u8; HEAD_BYTES];
        for _ in 0..trips {
            let (delivery, place) = peer.receive_spinning(&mut head)?;
            send(&mut peer, len, &head, delivery.ack)?;
            peer.acknowledged(place);
        }
        Ok(())
    };
    pair::run(cpus, ping, echo)?;
    let ns = (0..batches).map(|i| results.word(i).load(Ordering::Relaxed));
    Ok(ns.collect())
}

/// Sends with the acknowledgement of what came before, then receives.
#[inline]
fn turn(
    peer: &mut Peer,
    len: usize,
    head: &mut [u8],
    before: Option<(Delivery, Place)>,
) -> Result<(Delivery, Place), BenchError> {
    match before {
        Some((delivery, place)) => {
            send(peer, len, head, delivery.ack)?;
            peer.acknowledged(place);
        }
        None => send(peer, len, head, Ack::NOTHING)?,
    }
    peer.receive_spinning(head)
}

#[inline]
fn send(peer: &mut Peer, len: usize, head: &[u8], ack: Ack) -> Result<(), BenchError> {
    if len <= HEAD_BYTES {
        peer.send_inline(head, ack)
    } else {
        peer.send_chunk(len, head, ack)
    }
}

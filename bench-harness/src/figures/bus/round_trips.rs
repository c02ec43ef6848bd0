//! Round trips with both sides awake.

use sandpipe::layout::HEAD_MAX;
use sandpipe_link::program::{Kind, Task};
use sandpipe_link::round_trip::Trips;

use super::local::{self, Way};
use super::peers::{Library, Peer, Peers, task};
use super::{Sheet, size};
use crate::links::ring::{self, Place};
use crate::links::stream;
use crate::links::{self};
use crate::port::Hands;
use crate::rounds::{Of, Side};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// Bytes, samples of a round, round trips timed together: from 64 KiB on one takes microseconds.
const SIZES: [(usize, usize, usize); 6] = [
    (64, 200, 100),
    (KIB, 100, 100),
    (4 * KIB, 60, 100),
    (64 * KIB, 300, 1),
    (MIB, 60, 1),
    (16 * MIB, 6, 1),
];
/// Round trips timed singly, for the tail.
const SINGLY: usize = 20_000;

pub(super) fn add<'a>(sheet: &mut Sheet<'a>, peers: &'a Peers) {
    let own: Vec<usize> = SIZES
        .iter()
        .map(|&size| of_size(sheet, size, peers))
        .collect();
    floors(sheet, own[0]);
    heads(sheet, peers);
    tails(sheet, peers);
}

/// All rows of one size in one block; the ratios of 64 bytes.
fn of_size<'a>(
    sheet: &mut Sheet<'a>,
    (len, samples, together): (usize, usize, usize),
    peers: &'a Peers,
) -> usize {
    let cpus = sheet.cpus;
    let name = format!("round trip, {}", size(len));
    let trips = move |n| Trips::busy(len, n, together);
    let own = sheet.case(&name, "Sandpipe", samples, move |n| {
        local::round_trips(cpus, trips(n), Way::touching(len))
    });
    let few = samples.min(30);
    let mut block = Vec::new();
    for (kind, series) in [
        (stream::Kind::Pipe, "pipe"),
        (stream::Kind::UnixSocket, "Unix socket"),
    ] {
        block.push(sheet.case(&name, series, few, move |n| {
            let [first, second] = stream::ends(kind, len)?;
            links::round_trips(cpus, Trips::busy(len, n, together.min(10)), first, second)
        }));
    }
    block.push(own);
    sheet.plan.pair_block(&block);
    for (library, forms) in peers.carrying(len) {
        let task = task(Kind::RoundTrip, cpus, len, samples, together);
        let theirs = peer_cases(sheet, &name, forms, &task);
        sheet.plan.pair_block(&[&theirs[..], &[own]].concat());
        if len == 64 {
            let ratio = match library {
                Library::Iceoryx2 => "bus.rtt_64.over_iceoryx2",
                Library::Aeron => "bus.rtt_64.over_aeron.p50",
            };
            let half = Of::Quantile(0.5);
            sheet.plan.ratio_of(ratio, half, own, Side::Fastest(theirs));
        }
    }
    own
}

/// Runs a task in each form of a peer: a case each.
pub(super) fn peer_cases<'a>(
    sheet: &mut Sheet<'a>,
    name: &str,
    forms: &'a [Peer],
    task: &Task,
) -> Vec<usize> {
    let mut cases = Vec::new();
    for peer in forms {
        cases.push(peer_case(sheet, name, peer, task.clone()));
    }
    cases
}

/// Runs a task of a peer as a case.
fn peer_case<'a>(sheet: &mut Sheet<'a>, name: &str, peer: &'a Peer, task: Task) -> usize {
    sheet.case(name, peer.series, task.samples, move |samples| {
        let task = Task {
            samples,
            ..task.clone()
        };
        // Its processes may find each other too late on a busy machine: once more then.
        let measured = peer.program.measure(&task);
        measured.or_else(|_| peer.program.measure(&task))
    })
}

/// The minimal ring just before each of our ways.
fn floors(sheet: &mut Sheet<'_>, plain: usize) {
    let cpus = sheet.cpus;
    let (len, samples, together) = SIZES[0];
    let trips = move |n| Trips::busy(len, n, together);
    let name = "round trip, 64 B";
    let mut floor = |series, place| {
        sheet.case(name, series, samples, move |n| {
            let [first, second] = ring::ends(place)?;
            links::round_trips(cpus, trips(n), first, second)
        })
    };
    let ring = floor("minimal ring, memfd", Place::Memfd);
    let named = floor("minimal ring, shared_memory", Place::NamedSegment);
    let whole = Way::touching(len);
    let mut way = |case: &str, way| {
        sheet.case(&format!("{name}, {case}"), "Sandpipe", samples, move |n| {
            local::round_trips(cpus, trips(n), way)
        })
    };
    let backup = way(
        "with the agent's copy",
        Way {
            backup: true,
            ..whole
        },
    );
    let table = way(
        "through the in-flight table",
        Way {
            hands: Hands::Table,
            ..whole
        },
    );
    sheet.median("bus.rtt_64.over_minimal_ring", plain, ring);
    sheet.median("bus.rtt_64.over_named_ring", plain, named);
    sheet.median("bus.rtt_64_backup.over_minimal_ring", backup, ring);
    sheet.median("bus.rtt_64_table.over_minimal_ring", table, ring);
}

/// Messages of which only the first bytes are written and read: no more than travel in the lane
/// slot, and one word more than that, which lies in the chunk.
fn heads<'a>(sheet: &mut Sheet<'a>, peers: &'a Peers) {
    let cpus = sheet.cpus;
    let (small, samples, together) = SIZES[0];
    let mut case = |len, touched| {
        let name = format!("round trip, {}, {touched} B touched", size(len));
        let own = sheet.case(&name, "Sandpipe", samples, move |n| {
            let trips = Trips::busy(len, n, together);
            local::round_trips(cpus, trips, Way::touching(touched))
        });
        (name, own)
    };
    let (_, floor) = case(small, small);
    let (_, head) = case(MIB, HEAD_MAX);
    let (name, chunk) = case(MIB, small);
    // Aeron moves a message that is longer than a fragment.
    let in_place = |(library, _): &(Library, _)| *library == Library::Iceoryx2;
    for (_, forms) in peers.carrying(MIB).filter(in_place) {
        let task = Task {
            touched: small,
            ..task(Kind::RoundTrip, cpus, MIB, samples, together)
        };
        let theirs = peer_cases(sheet, &name, forms, &task);
        sheet.plan.pair_block(&[&theirs[..], &[chunk]].concat());
    }
    sheet.median("bus.rtt_head.1MiB_over_64B", head, floor);
    sheet.median("bus.rtt_chunk.1MiB_over_64B", chunk, floor);
}

/// Round trips of 64 bytes timed one by one.
fn tails<'a>(sheet: &mut Sheet<'a>, peers: &'a Peers) {
    let cpus = sheet.cpus;
    let name = "round trip, 64 B, timed singly";
    let own = sheet.case(name, "Sandpipe", SINGLY, move |n| {
        local::round_trips(cpus, Trips::busy(64, n, 1), Way::touching(64))
    });
    for (library, forms) in peers.carrying(64) {
        let task = task(Kind::RoundTrip, cpus, 64, SINGLY, 1);
        let theirs = peer_cases(sheet, name, forms, &task);
        sheet.plan.pair_block(&[&theirs[..], &[own]].concat());
        if library == Library::Aeron {
            let tail = Of::Quantile(0.999);
            let (ratio, theirs) = ("bus.rtt_64.over_aeron.p999", Side::Fastest(theirs));
            sheet.plan.ratio_of(ratio, tail, own, theirs);
        }
    }
    if peers.carrying(64).next().is_none() {
        sheet.plan.pair_block(&[own]);
    }
}

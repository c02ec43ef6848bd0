//! Round trips between two sleepers (spin 0), on one core and on two, and between two that wait
//! for more than their queues; one request a millisecond.

use std::time::Duration;

use sandpipe::wait::{Loop, WaiterKind};
use sandpipe_link::round_trip::Trips;

use super::Sheet;
use super::local::{self, Way};
use crate::links::stream::Kind;
use crate::links::{self, futex, stream};
use crate::port::Wait;

const LEN: usize = 64;
/// Samples of a round.
const SAMPLES: usize = 300;
/// Samples of a round with a pause before each.
const PACED: usize = 40;
const PACE: Duration = Duration::from_millis(1);

pub(super) fn add(sheet: &mut Sheet<'_>) {
    let [first, second] = sheet.cpus;
    let same = sleepers(
        sheet,
        "asleep, same core",
        [first, first],
        SAMPLES,
        Duration::ZERO,
    );
    let cross = sleepers(
        sheet,
        "asleep, cross core",
        [first, second],
        SAMPLES,
        Duration::ZERO,
    );
    let paced = sleepers(sheet, "one request a ms", [first, second], PACED, PACE);
    let [pipe, futex, own, many] = same;
    sheet.plan.pair_block(&[pipe, futex, own]);
    let name = "bus.parked.over_futex.same_core";
    sheet.plan.ratio(name, own, futex);
    sheet.median("bus.parked_multi.over_futex.same_core", many, futex);
    let [pipe, futex, own, many] = cross;
    sheet.plan.pair_block(&[pipe, futex, own]);
    let name = "bus.parked.over_futex.cross_core";
    sheet.plan.ratio(name, own, futex);
    sheet.median("bus.parked_multi.over_futex.cross_core", many, futex);
    sheet.plan.pair_block(&paced);
}

/// What the sleepers that wait for more than their queues wait through here.
pub(super) fn company() -> String {
    let kind = WaiterKind::probe(Loop::Own).map(|waiter| waiter.kind().name());
    format!(
        "asleep in company: a child, a socket and a time are waited for as well, through {}",
        kind.unwrap_or("no waiter")
    )
}

/// Pipe, futex, the local bus, and the same in company, in the order in which they run.
fn sleepers(
    sheet: &mut Sheet<'_>,
    how: &str,
    cpus: [usize; 2],
    samples: usize,
    pause: Duration,
) -> [usize; 4] {
    let name = format!("round trip, {LEN} B, {how}");
    let trips = move |samples| Trips {
        pause,
        ..Trips::busy(LEN, samples, 1)
    };
    let pipe = sheet.case(&name, "pipe", samples, move |n| {
        let [first, second] = stream::ends(Kind::Pipe, LEN)?;
        links::round_trips(cpus, trips(n), first, second)
    });
    let bare = sheet.case(&name, "futex, no payload", samples, move |n| {
        let [first, second] = futex::ends()?;
        links::round_trips(cpus, trips(n), first, second)
    });
    let ours = [
        ("Sandpipe", Wait::Park),
        ("Sandpipe, in company", Wait::ParkInCompany),
    ];
    let [own, many] = ours.map(|(series, wait)| {
        let way = Way {
            wait,
            ..Way::touching(LEN)
        };
        sheet.case(&name, series, samples, move |n| {
            local::round_trips(cpus, trips(n), way)
        })
    });
    [pipe, bare, own, many]
}

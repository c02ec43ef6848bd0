//! Round trips between two sleepers (spin 0), on one core and on two; one request a millisecond.

use std::time::Duration;

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
    let same = three(
        sheet,
        "asleep, same core",
        [first, first],
        SAMPLES,
        Duration::ZERO,
    );
    let cross = three(
        sheet,
        "asleep, cross core",
        [first, second],
        SAMPLES,
        Duration::ZERO,
    );
    let paced = three(sheet, "one request a ms", [first, second], PACED, PACE);
    sheet.plan.pair_block(&same);
    sheet.plan.pair_block(&cross);
    sheet.plan.pair_block(&paced);
    let [_, futex, own] = same;
    sheet
        .plan
        .ratio("bus.parked.over_futex.same_core", own, futex);
    let [_, futex, own] = cross;
    sheet
        .plan
        .ratio("bus.parked.over_futex.cross_core", own, futex);
}

/// Pipe, futex and the local bus, in the order in which they run.
fn three(
    sheet: &mut Sheet<'_>,
    how: &str,
    cpus: [usize; 2],
    samples: usize,
    pause: Duration,
) -> [usize; 3] {
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
    let way = Way {
        wait: Wait::Park,
        ..Way::touching(LEN)
    };
    let own = sheet.case(&name, "Sandpipe", samples, move |n| {
        local::round_trips(cpus, trips(n), way)
    });
    [pipe, bare, own]
}

//! The local bus itself: who is on it, and one measurement of it.

use sandpipe::{Bus, ChunkClass, FamilyIndex, FamilySpec, Mapping, SlotIndex, Target, Topology};
use sandpipe_link::one_way::{Stream, consume, produce};
use sandpipe_link::round_trip::{Trips, echo, ping};

use crate::clock::die_with_parent;
use crate::crew::{self, Member};
use crate::error::BenchError;
use crate::links::Results;
use crate::port::{Habit, Hands, Port, Wait};
use crate::raw::{SharedWords, fork};
use crate::stats::Samples;

pub(super) const FIRST: FamilyIndex = FamilyIndex(1);
pub(super) const SECOND: FamilyIndex = FamilyIndex(2);

/// Messages that a lane of a round trip holds.
const TRIP_LANE_SLOTS: u32 = 1024;
/// Messages that a lane to the agent holds: those of two samples, since it is emptied after each.
const AGENT_LANE_SLOTS: u32 = 512;

/// How a round trip is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    pub(super) touched: usize,
    pub(super) backup: bool,
    pub(super) hands: Hands,
    pub(super) wait: Wait,
}

impl Way {
    /// Run to completion, both sides spinning, the first `touched` bytes written and read.
    pub(super) fn touching(touched: usize) -> Way {
        Way {
            touched,
            backup: false,
            hands: Hands::Receiver,
            wait: Wait::Spin,
        }
    }
}

/// A family that publishes to `targets` over lanes of `lane_slots`.
pub(super) fn family(
    slots: u16,
    targets: &[FamilyIndex],
    lane_slots: u32,
    chunks: Vec<ChunkClass>,
) -> FamilySpec {
    let target = |&queue| Target { queue, lane_slots };
    FamilySpec {
        slots,
        targets: targets.iter().map(target).collect(),
        chunks,
    }
}

/// Chunks for payloads of `len` bytes, none if they travel in the lane.
pub(super) fn chunks(len: usize, count: u32) -> Vec<ChunkClass> {
    let bytes = len.next_multiple_of(64) as u64;
    let class = ChunkClass { bytes, count };
    if len <= 64 { vec![] } else { vec![class] }
}

pub(super) fn topology(families: Vec<FamilySpec>) -> Result<Topology, BenchError> {
    Topology::new(families).map_err(|e| BenchError::peer("the topology", e.to_string()))
}

/// Round trips between two families.
pub(super) fn round_trips(cpus: [usize; 2], trips: Trips, way: Way) -> Result<Samples, BenchError> {
    let count = if trips.len > 1 << 20 { 2 } else { 4 };
    let member = |other| {
        let mut spec = family(1, &[other], TRIP_LANE_SLOTS, chunks(trips.len, count));
        let copies = Target {
            queue: FamilyIndex::AGENT,
            lane_slots: AGENT_LANE_SLOTS,
        };
        spec.targets.splice(0..0, way.backup.then_some(copies));
        spec
    };
    let topology = topology(vec![
        family(1, &[], 2, vec![]),
        member(SECOND),
        member(FIRST),
    ])?;
    let results = Results::new(trips.samples)?;
    let port = |bus: &Bus<Mapping>, to| {
        let habit = Habit {
            backup: way.backup,
            hands: way.hands,
            wait: way.wait,
            ..Habit::to(to, way.touched)
        };
        Port::new(bus, habit)
    };
    let mut places = vec![FIRST];
    places.extend(way.backup.then_some(FamilyIndex::AGENT));
    let first = Member::of_many(&places, cpus[0], |seats| {
        let mut port = port(&seats[0].bus, SECOND);
        if let Some(agent) = seats.get(1) {
            port = port.with_agent(&agent.bus);
        }
        ping(&mut port, trips, |index, ns| results.put(index, ns))
    });
    let second = Member::new(SECOND, cpus[1], |seat| {
        echo(&mut port(&seat.bus, FIRST), trips)
    });
    crew::run(topology, vec![first, second])?;
    Ok(results.samples())
}

/// A stream's lane and who fills it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lane {
    /// Messages that each producer's lane holds.
    pub(super) slots: u32,
    /// Messages of one commit.
    pub(super) batch: usize,
    /// Instances of the producing family, all on one core.
    pub(super) producers: u16,
}

/// One way: the producers on `cpus[1]`, the consumer alone on `cpus[0]`.
pub(super) fn one_way(cpus: [usize; 2], stream: Stream, lane: Lane) -> Result<Samples, BenchError> {
    // A lane's worth for each producer, and a commit's worth under way: what is used again soon
    // still lies in the caches.
    let under_way = u32::try_from(lane.batch).unwrap_or(u32::MAX);
    let chunk_count = lane.slots * u32::from(lane.producers) + under_way;
    let topology = topology(vec![
        family(1, &[], 2, vec![]),
        family(
            lane.producers,
            &[SECOND],
            lane.slots,
            chunks(stream.len, chunk_count),
        ),
        family(1, &[], 2, vec![]),
    ])?;
    let results = Results::new(stream.samples)?;
    let stop = SharedWords::new(1)?;
    let order = std::sync::atomic::Ordering::Relaxed;
    let send = |bus: &Bus<Mapping>, slot: u16| {
        let habit = Habit {
            slot: SlotIndex(slot),
            batch: lane.batch,
            ..Habit::to(SECOND, stream.len)
        };
        produce(&mut Port::new(bus, habit), stream.len, || {
            stop.word(0).load(order) != 0
        })
    };
    let producers = Member::new(FIRST, cpus[1], |seat| {
        // Instances are forked from their worker, whose mappings they share.
        let fork_one = |slot: u16| {
            let (send, bus) = (&send, &seat.bus);
            fork(move || {
                die_with_parent();
                i32::from(send(bus, slot).is_err())
            })
        };
        let others: Result<Vec<_>, BenchError> = (1..lane.producers).map(fork_one).collect();
        let sent = send(&seat.bus, 0);
        for other in others? {
            other.wait()?;
        }
        sent
    });
    let consumer = Member::new(SECOND, cpus[0], |seat| {
        let mut port = Port::new(&seat.bus, Habit::to(FIRST, stream.len));
        let consumed = consume(&mut port, stream, |index, ns| results.put(index, ns));
        stop.word(0).store(1, order);
        consumed
    });
    crew::run(topology, vec![consumer, producers])?;
    Ok(results.samples())
}

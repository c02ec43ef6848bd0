//! Eight grains on two cores: each spins before it parks, and none burns the core that its producer
//! needs.

mod views;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use sandpipe::wait::{SpinBudget, SpinCounts};
use sandpipe::{
    Ack, Bus, FamilyIndex, FamilySpec, HeapMemory, MessageHeader, MessageId, PARK_MAX, Payload,
    SlotIndex, Target, Topology, TraceStamps,
};
use views::{memories, views};

const GRAINS: u16 = 8;
/// Messages on their way at once: less than there are grains, so that all of them wait, and more
/// than there are cores.
const TOKENS: u64 = 4;
const HOPS: u64 = 40_000;
/// Ten times what it takes on a machine that has nothing else to do, and more.
const WATCHDOG: Duration = Duration::from_secs(120);

/// A ring of grains: each publishes to the next.
fn buses() -> [Bus<HeapMemory>; 1 + GRAINS as usize] {
    let spec = |targets| FamilySpec {
        slots: 1,
        targets,
        chunks: vec![],
    };
    let next = |grain: u16| FamilyIndex(grain % GRAINS + 1);
    let grains = (1..=GRAINS).map(|grain| {
        spec(vec![Target {
            queue: next(grain),
            lane_slots: 16,
        }])
    });
    let families = std::iter::once(spec(vec![])).chain(grains).collect();
    let topology = Topology::new(families).unwrap();
    let segments = memories(&topology, HeapMemory::new);
    views(&topology, &segments, &HeapMemory::new(4096))
}

/// The two cores that the test may use.
fn cores() -> Option<[usize; 2]> {
    let allowed = sched_getaffinity(None).ok()?;
    let mut cores = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core));
    Some([cores.next()?, cores.next()?])
}

/// One grain: takes a token, works a little, hands it on.
fn serve(bus: &Bus<HeapMemory>, all: &[Bus<HeapMemory>], done: &AtomicBool) -> SpinCounts {
    let own = bus.family();
    let next = FamilyIndex(own.0 % GRAINS + 1);
    let (mut receiver, mut instance) = (bus.receiver(), bus.instance(SlotIndex(0)));
    let bell = bus.bell(own);
    let mut budget = SpinBudget::new();
    let end = Instant::now() + WATCHDOG;
    while !done.load(Ordering::SeqCst) && Instant::now() < end {
        let Some((delivery, place)) = receiver.receive() else {
            if !budget.spin(|| receiver.has_message()) {
                let begin = Instant::now();
                let parking = bell.prepare();
                if receiver.has_message() || done.load(Ordering::SeqCst) {
                    parking.cancel();
                } else {
                    parking.sleep(PARK_MAX);
                    budget.slept(begin.elapsed());
                }
            }
            continue;
        };
        let hops = delivery.message.header.id.0 as u64;
        receiver.acknowledge(place);
        (0..200).for_each(|_| std::hint::spin_loop());
        if hops >= HOPS {
            done.store(true, Ordering::SeqCst);
            all.iter().for_each(|bus| bus.bell(bus.family()).ring_all());
            break;
        }
        send(&mut instance, next, hops + TOKENS);
    }
    budget.counts()
}

fn send(instance: &mut sandpipe::Instance<HeapMemory>, queue: FamilyIndex, hops: u64) {
    let (id, none) = (MessageId(hops.into()), MessageId::NONE);
    let header = MessageHeader::event(id, none, none, queue);
    let stamps = TraceStamps::default();
    let staged = instance.stage(queue, &header, Payload::Inline(&[]), stamps);
    staged.expect("there are fewer tokens than slots");
    instance.commit(Ack::NOTHING);
}

#[test]
fn eight_grains_on_two_cores_leave_them_to_each_other() {
    let Some(cores) = cores() else {
        eprintln!("SKIP eight_grains_on_two_cores_leave_them_to_each_other: one core only");
        return;
    };
    let buses = buses();
    let (done, ready) = (AtomicBool::new(false), Barrier::new(usize::from(GRAINS)));
    let mut total = SpinCounts::default();
    std::thread::scope(|scope| {
        let grains: Vec<_> = (1..=GRAINS)
            .map(|grain| {
                let (buses, done, ready) = (&buses, &done, &ready);
                scope.spawn(move || {
                    // Where the scheduler puts them it may leave one core to a single grain.
                    let mut both = CpuSet::new();
                    cores.iter().for_each(|&core| both.set(core));
                    sched_setaffinity(None, &both).unwrap();
                    ready.wait();
                    let bus = &buses[usize::from(grain)];
                    if u64::from(grain) <= TOKENS {
                        let next = FamilyIndex(grain % GRAINS + 1);
                        send(&mut bus.instance(SlotIndex(0)), next, grain.into());
                    }
                    serve(bus, buses, done)
                })
            })
            .collect();
        for grain in grains {
            let counts = grain.join().unwrap();
            total.waits += counts.waits;
            total.spun += counts.spun;
            total.in_vain += counts.in_vain;
        }
    });
    println!("{total:?}");
    assert!(
        done.load(Ordering::SeqCst),
        "not all hops within {WATCHDOG:?}"
    );
    assert!(
        total.in_vain * 4 <= total.waits,
        "most waits burn the core that their producer needs: {total:?}"
    );
}

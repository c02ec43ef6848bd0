//! The hint page, which every process may write: a lie there costs a bounded look, never a message.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use sandpipe::layout::HintBlock;
use sandpipe::{Bus, Mapping, Memory, PARK_MAX};

use crate::house::{
    AGENT, CONSUMER, House, INNOCENT, LANE, SPARE, Stop, hint_page, publish, topology,
};
use crate::sandbox::{Sandbox, Watchdog};

/// The agent parks between messages while `vandal` writes to the hint page without a pause; the
/// innocent family's messages arrive, each once.
fn arrives_while(messages: u128, vandal: impl Fn(&Mapping) + Sync) {
    let _watchdog = Watchdog::new(Duration::from_secs(100));
    let mut sandbox = Sandbox::new(topology());
    let (mut participant, mut agent) = sandbox.join(AGENT);
    let (_, innocent) = sandbox.join(INNOCENT);
    participant.update(&mut agent).unwrap();
    let hints = hint_page(&mut sandbox, SPARE);
    let (stop, taken) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                vandal(&hints);
            }
        });
        scope.spawn(|| {
            let mut instance = innocent.instance(crate::house::S0);
            for id in 0..messages {
                // One at a time, so that the agent parks for each.
                while taken.load(SeqCst) < id as u64 || !publish(&mut instance, &[AGENT], id) {
                    if stop.load(Relaxed) {
                        return;
                    }
                    std::thread::yield_now();
                }
            }
        });
        let mut looks = 0;
        let began = Instant::now();
        let mut receiver = agent.receiver();
        for id in 0..messages {
            let (delivery, place) = loop {
                looks += 1;
                if let Some(received) = receiver.receive() {
                    break received;
                }
                park(&agent, &receiver);
            };
            assert_eq!(delivery.message.header.id.0, id);
            receiver.acknowledge(place);
            taken.fetch_add(1, SeqCst);
        }
        // A watchdog: each message waits for at most one park.
        let bound = PARK_MAX * messages as u32 * 10;
        assert!(
            began.elapsed() < bound,
            "{looks} looks in {:?}",
            began.elapsed()
        );
    });
}

fn park(bus: &Bus<Mapping>, receiver: &sandpipe::Receiver<Mapping>) {
    let bell = bus.bell(AGENT);
    let parking = bell.prepare();
    if receiver.has_message() {
        parking.cancel();
    } else {
        parking.sleep(PARK_MAX);
    }
}

#[test]
fn silenced_bells_delay_by_one_park_at_the_most() {
    arrives_while(20, |hints| {
        for word in hints.words(0, 512) {
            word.store(0, Relaxed);
        }
    });
}

#[test]
fn forged_bells_and_sleepers_wake_nobody_for_good() {
    arrives_while(20, |hints| {
        for word in hints.words(0, 512) {
            word.store(u64::MAX, Relaxed);
            word.fetch_add(1, Relaxed);
        }
    });
}

#[test]
fn a_storm_of_doorbells_loses_nothing() {
    arrives_while(2_000, |hints| {
        let bell = hints.word(usize::from(AGENT.0) * size_of::<HintBlock>());
        bell.fetch_add(1, SeqCst);
        sandpipe::futex::wake(bell, u32::MAX >> 1);
    });
}

#[test]
fn bells_that_jump_between_futex_values_lose_nothing() {
    arrives_while(20, |hints| {
        let at = usize::from(AGENT.0) * size_of::<HintBlock>();
        // What robust and PI futexes would read a meaning into.
        for value in [0x4000_0000, 0x8000_0000, 0xc000_0000, u64::MAX, 0, 1] {
            hints.word(at).store(value, SeqCst);
            hints.word(at + 8).store(value, SeqCst);
        }
    });
}

#[test]
fn a_full_house_goes_on_with_a_page_of_noise() {
    let mut house = House::new();
    let hints = {
        let mut random = crate::sandbox::Random(3);
        move |bus: &Bus<Mapping>| {
            for _ in 0..LANE {
                for queue in [AGENT, INNOCENT, CONSUMER] {
                    if random.below(2) == 0 {
                        bus.bell(queue).ring_all();
                    } else {
                        bus.bell(queue).touch();
                    }
                }
            }
        }
    };
    let mut hints = hints;
    hints(&house.hostile);
    house.innocents_lose_nothing();
}

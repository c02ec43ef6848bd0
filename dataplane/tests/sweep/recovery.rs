//! Death of the recoverer at every instruction: recovery of a recovery finds the same facts.

use std::time::Duration;

use sandpipe::monotonic_ns;
use sandpipe::recover::{Repair, recover_family};

use crate::sandbox::{self, Random};
use crate::stage::{GRAIN, Mode, Watch, World};
use crate::steps::{stay_on_one_core, step, stopped};
use crate::whole::{judge, prepared, stopped_grain};
use crate::{COPY_STRIDE, SLOW_BUILD};

/// Messages before: the wrapped ring, its chunks all used once.
const BEFORE: u64 = 8;

/// Places at which the grain dies before the recoverer is stepped.
const VICTIMS: u64 = if SLOW_BUILD { 3 } else { 40 };

/// Pairs of (death of the grain, death of its recoverer) with `SANDPIPE_FULL`.
const PAIRS_FULL: u64 = 100_000;

/// What a grain that died at an instruction left; nothing is repaired.
fn remains(mode: Mode, at: u64) -> World {
    let mut world = prepared(BEFORE, mode);
    let pid = stopped_grain(&mut world, mode);
    let _all = (0..at).all(|_| step(pid));
    let remains = world.copy();
    world.sandbox.kill_family(GRAIN, pid);
    remains
}

/// A process over the same remains, stopped right before it repairs them.
fn stopped_recoverer(remains: &mut World) -> i32 {
    stopped(
        &mut remains.sandbox,
        GRAIN,
        |participant, bus| (participant, bus),
        |(_, bus)| _ = recover_family(bus),
    )
}

/// Instructions of the work on one message.
fn instructions(mode: Mode) -> u64 {
    let mut world = prepared(BEFORE, mode);
    let pid = stopped_grain(&mut world, mode);
    let steps = (0..).take_while(|_| step(pid)).count();
    world.sandbox.kill_family(GRAIN, pid);
    steps as u64
}

#[test]
fn a_recoverer_killed_at_any_instruction_is_recovered_to_the_same_facts() {
    let pairs = match std::env::var_os("SANDPIPE_FULL") {
        Some(_) => PAIRS_FULL,
        None => 0,
    };
    let _watchdog = sandbox::Watchdog::new(Duration::from_secs(1200 + pairs / 4));
    stay_on_one_core(0);
    for mode in [Mode::Claim, Mode::Exclusive] {
        let all = instructions(mode);
        let (mut total, mut deaths) = (Repair::default(), 0);
        // Denser towards the end, where the commit is.
        for victim in 1..=VICTIMS {
            let at = all - all * (VICTIMS - victim) * (VICTIMS - victim) / (VICTIMS * VICTIMS);
            // All of one death: another process may allocate in a few instructions more or less.
            let mut world = remains(mode, at);
            let fact = judge(&mut world.copy(), BEFORE, mode, at);
            total += recover_family(&world.copy().view(GRAIN));
            let pid = stopped_recoverer(&mut world);
            let mut watch = Watch::new(&world);
            let mut steps = 0;
            loop {
                if steps % COPY_STRIDE == 0 && watch.changed() {
                    let again = judge(&mut world.copy(), BEFORE, mode, steps);
                    assert_eq!(again, fact, "grain dead at {at}, recoverer at {steps}");
                    deaths += 1;
                }
                if !step(pid) {
                    break;
                }
                steps += 1;
            }
            world.sandbox.kill_family(GRAIN, pid);
            assert_eq!(judge(&mut world, BEFORE, mode, steps), fact);
        }
        println!(
            "{mode:?}: {VICTIMS} deaths of the grain, {deaths} states of its recoverer: {total:?}"
        );
        assert!(SLOW_BUILD || total.rolled_forward > 0 && total.freed_chunks > 0);
    }
    if pairs > 0 {
        random_pairs(pairs);
    }
}

/// Really killed, both: the grain anywhere, its recoverer anywhere, then recovered.
fn random_pairs(pairs: u64) {
    let mut random = Random(monotonic_ns() | 1);
    for pair in 0..pairs {
        let mode = [Mode::Claim, Mode::Exclusive][(pair % 2) as usize];
        let mut world = prepared(BEFORE, mode);
        let pid = stopped_grain(&mut world, mode);
        let at = random.below(6_000);
        let _all = (0..at).all(|_| step(pid));
        sandbox::kill_group(pid);
        let pid = stopped_recoverer(&mut world);
        let then = random.below(3_000);
        let _all = (0..then).all(|_| step(pid));
        world.sandbox.kill_family(GRAIN, pid);
        judge(&mut world, BEFORE, mode, at);
    }
    println!("{pairs} pairs of deaths, both real: nothing or everything");
}

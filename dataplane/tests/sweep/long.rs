//! The longer operations: loan and chunk free, attach, detach, lane lease. A copy of the memory at
//! every instruction that changed it, a real death at a sample.

use std::time::Duration;

use sandpipe::lease::{LeaseState, lease_state};
use sandpipe::{Bus, Mapping, Participant};

use crate::sandbox::{self, exit, hold};
use crate::stage::{Carry, GRAIN, Grain, Mode, S0, Watch, World};
use crate::steps::{stay_on_one_core, step, stop, stop_traced, stopped, wait_stopped};
use crate::whole::{judge, prepared};
use crate::{COPY_STRIDE, KILL_STRIDE};

/// Instructions stepped through for the real deaths in one work, about.
const STEPS_MAX: u64 = 2_000_000;

/// Steps through `start`'s process; a message waits for the grain all the while and is handled by a
/// survivor in the end.
fn sweep(name: &str, before: u64, start: impl Fn(&mut World) -> i32) {
    let mut world = prepared(before, Mode::Claim);
    let pid = start(&mut world);
    let mut watch = Watch::new(&world);
    let (mut steps, mut copies) = (0, 0);
    loop {
        if steps % COPY_STRIDE == 0 && watch.changed() {
            copies += 1;
            let fact = judge(&mut world.copy(), before, Mode::Claim, steps);
            assert!(!fact, "{name}, step {steps}: an answer to nothing");
        }
        world.sandbox.serve();
        if !step(pid) {
            break;
        }
        steps += 1;
    }
    world.sandbox.kill_family(GRAIN, pid);
    // Each real death steps from the start again: fewer in a work of many instructions.
    let stride = KILL_STRIDE.max(steps / 60).max(steps * steps / STEPS_MAX);
    let (mut kills, mut marked) = (0, 0);
    for at in (0..steps).step_by(stride as usize) {
        let mut world = prepared(before, Mode::Claim);
        let pid = start(&mut world);
        let _all = (0..at).all(|_| {
            world.sandbox.serve();
            step(pid)
        });
        world.sandbox.kill_family(GRAIN, pid);
        let lease = lease_state(&world.view(GRAIN), GRAIN, S0).unwrap();
        assert!(
            !matches!(lease, LeaseState::Held(_)),
            "{name}, step {at}: a dead holder"
        );
        marked += u64::from(lease == LeaseState::Died);
        judge(&mut world, before, Mode::Claim, at);
        kills += 1;
    }
    println!(
        "{name}: {steps} instructions, {copies} states of the memory judged, {kills} deaths were \
         real ({marked} leases marked): nothing left over"
    );
}

fn ready(participant: Participant, bus: Bus<Mapping>) -> (Participant, Grain, Bus<Mapping>) {
    (
        participant,
        Grain::new(&bus, Mode::Claim, Carry::Chunk),
        bus,
    )
}

#[test]
fn a_process_killed_in_loan_attach_detach_or_lease_leaves_nothing() {
    let _watchdog = sandbox::Watchdog::new(Duration::from_secs(1200));
    stay_on_one_core(1);
    // A fresh chunk; and all of them published and released, so that they are freed first.
    for before in [0, 8] {
        sweep("loan, write, give back", before, |world| {
            stopped(&mut world.sandbox, GRAIN, ready, |(_, grain, _)| {
                let loan = grain.instance.loan(60).expect("a chunk is free");
                grain.instance.write(&loan, 0, &[7; 60]);
                grain.instance.give_back(loan);
            })
        });
    }
    sweep("lane lease", 3, |world| {
        stopped(&mut world.sandbox, GRAIN, ready, |(_, _, bus)| {
            hold(bus, S0);
        })
    });
    sweep("detach", 3, |world| {
        let prepare = |participant, bus| Some(ready(participant, bus));
        stopped(&mut world.sandbox, GRAIN, prepare, |all| drop(all.take()))
    });
    sweep("attach", 3, |world| {
        let pid = world.sandbox.spawn_detached(GRAIN, |socket| {
            stop_traced();
            let attached = Participant::attach(socket, GRAIN, Duration::from_secs(600));
            stop();
            exit(i32::from(attached.is_err()));
        });
        wait_stopped(&mut world.sandbox, pid);
        pid
    });
}

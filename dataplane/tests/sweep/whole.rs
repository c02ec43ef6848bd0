//! Receive + loan + commit as one work: a copy of the memory at every instruction that changed
//! it, a real death at a sample.

use crate::sandbox;
use crate::stage::{Carry, GRAIN, Grain, Mode, Watch, World, root_of};
use crate::steps::{stay_on_one_core, step, stopped};
use crate::{COPY_STRIDE, KILL_STRIDE};

/// A grain in the sandbox, stopped right before it handles its message.
pub fn stopped_grain(world: &mut World, mode: Mode) -> i32 {
    stopped(
        &mut world.sandbox,
        GRAIN,
        |participant, bus| (participant, Grain::new(&bus, mode, Carry::Chunk), bus),
        |(_, grain, _)| assert!(grain.handle_one()),
    )
}

pub fn prepared(before: u64, mode: Mode) -> World {
    World::prepared(before, 0, 1, mode, Carry::Chunk)
}

/// Repairs what a dead grain left and checks it; whether its commit had become a fact.
pub fn judge(world: &mut World, before: u64, mode: Mode, steps: u64) -> bool {
    world.sandbox.guardian.repair_family(GRAIN);
    world.sandbox.guardian.repair_family(GRAIN);
    let bus = world.view(GRAIN);
    let audit = bus.audit(GRAIN);
    assert_eq!(
        audit.chunks_loaned, 0,
        "step {steps}: a loan was not given back"
    );
    let left = match mode {
        Mode::Claim => audit.queued.len() + audit.in_flight.len(),
        Mode::Exclusive => usize::from(bus.receiver().has_message()),
    };
    let (copies, messages) = world.consume();
    assert_eq!(copies, messages, "step {steps}: half a commit");
    assert_eq!(
        left,
        1 - copies.len(),
        "step {steps}: outputs {copies:?}, inputs left {left}"
    );
    if left == 1 {
        assert!(Grain::new(&bus, mode, Carry::Chunk).handle_one());
        let root = vec![root_of(before)];
        assert_eq!(
            world.consume(),
            (root.clone(), root),
            "step {steps}: the input is not handled again"
        );
    }
    world.sandbox.guardian.repair_family(GRAIN);
    world.assert_at_rest(&format!("step {steps}"));
    !copies.is_empty()
}

/// A look after every instruction: how many there are, how many changed a shared word and were
/// judged on a copy, and for how many of those the commit was a fact.
fn sweep_copies(before: u64, mode: Mode) -> (u64, u64, u64) {
    let mut world = prepared(before, mode);
    let pid = stopped_grain(&mut world, mode);
    let mut watch = Watch::new(&world);
    let (mut steps, mut copies, mut facts) = (0, 0, 0);
    loop {
        if steps % COPY_STRIDE == 0 && watch.changed() {
            facts += u64::from(judge(&mut world.copy(), before, mode, steps));
            copies += 1;
        }
        if !step(pid) {
            break;
        }
        steps += 1;
    }
    world.sandbox.kill_family(GRAIN, pid);
    assert!(
        judge(&mut world, before, mode, steps),
        "a handled message is a fact"
    );
    (steps, copies, facts)
}

fn sweep(before: u64, mode: Mode) {
    let (steps, copies, facts) = sweep_copies(before, mode);
    let mut kills = 0;
    for at in (0..steps).step_by(KILL_STRIDE as usize) {
        let mut world = prepared(before, mode);
        let pid = stopped_grain(&mut world, mode);
        // The count may differ by some instructions from run to run: the last ones end early.
        let _all = (0..at).all(|_| step(pid));
        world.sandbox.kill_family(GRAIN, pid);
        judge(&mut world, before, mode, at);
        kills += 1;
    }
    println!(
        "{mode:?}, {before} messages before: {steps} instructions, {copies} changed something and \
         were judged on copies ({facts} of them: everything done), {kills} deaths were real; \
         in between nothing and everything: 0"
    );
    assert!(
        facts > 0 && facts < copies,
        "the sweep did not cross the commit"
    );
}

#[test]
fn a_grain_killed_at_any_instruction_has_done_all_or_nothing() {
    let _watchdog = sandbox::Watchdog::new(std::time::Duration::from_secs(1200));
    stay_on_one_core(0);
    // Ring empty, part full, wrapped, and long-lived.
    for mode in [Mode::Claim, Mode::Exclusive] {
        for before in [0, 5, 8, 1000] {
            sweep(before, mode);
        }
    }
}

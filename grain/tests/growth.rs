//! Pools that grow: real workers whose instances wait for chunks.

mod sandbox;

use std::time::Duration;

use sandbox::{Sandbox, chain, settings};
use sandpipe::MessageId;
use sandpipe_grain::Mode;

/// Chunks that are large enough in one pool.
const CHUNKS: usize = 4;
/// Bytes of a pool, which are those of an extension.
const POOL: u64 = 64 * 4096 + (4 << 20);

/// The answers of a burst fill the grain's pool three times over while the agent reads none; in
/// each round, since what the pool has grown by goes back in between.
fn a_burst_of_answers(mode: Mode, spares: u16) {
    let like = settings(mode, 2, spares);
    let idle = Duration::from_millis(50);
    let mut sandbox = Sandbox::start_growing(chain(1, &like), 4 * POOL, idle);
    let text = |id: u128| format!("{id}{}", "-".repeat(10_000));
    for round in 1..=2 {
        let last = round * 3 * CHUNKS;
        for id in last - 3 * CHUNKS + 1..=last {
            sandbox.send_unread(id as u128, &text(id as u128));
        }
        sandbox.until_unread("all answers are published", |sandbox| {
            sandbox.counters_of(1).published == last as u64
        });
        assert!(sandbox.counters_of(1).grown >= 2 * round as u64, "{mode:?}");
        sandbox.wait_for(last);
        for id in last - 3 * CHUNKS + 1..=last {
            let [answer] = sandbox.answers[&MessageId(id as u128)].as_slice() else {
                panic!("answered more than once");
            };
            assert_eq!(answer.text, text(id as u128) + ">g1");
        }
        sandbox.until("the pools are small again", |sandbox| sandbox.is_small());
    }
    assert_eq!(sandbox.counters_of(1).quarantined, 0);
    sandbox.finish();
}

#[test]
fn a_burst_of_answers_passes_instances_that_are_forked_on_demand() {
    a_burst_of_answers(Mode::Fork, 0);
}

#[test]
fn a_burst_of_answers_passes_instances_that_are_forked_ahead() {
    a_burst_of_answers(Mode::Fork, 2);
}

#[test]
fn a_burst_of_answers_passes_a_pool_of_instances() {
    a_burst_of_answers(Mode::Pool, 0);
}

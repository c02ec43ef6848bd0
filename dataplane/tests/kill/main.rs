//! Random SIGKILLs under load, judged by an independent program.
//!
//! A source feeds a chain of two grains, each a worker with two instances; every hop is copied to
//! the agent, which hands what it receives to `check.rs`. Victims are instances, whole workers with
//! their instances, and the source. Nothing committed may be lost, torn, invented or doubled, the
//! agent's copy must be there before the answer, and in the end every slot, entry and chunk must
//! be back. With `--features pauses` the steps of a commit are apart far enough to be hit.
#![allow(unsafe_code, reason = "fork, kill and waitpid of test processes")]

mod chain;
mod feed;
mod roles;
#[path = "../sandbox/mod.rs"]
mod sandbox;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use sandbox::{Random, Sandbox};
use sandpipe::{Audit, SlotIndex, monotonic_ns};

use chain::{AGENT, Chain, Control, FIRST, SECOND, SOURCE, Word};
use feed::Feed;

/// Kills with these builds' speed in mind: the debug build's run is a smoke test.
const KILLS: u64 = if cfg!(debug_assertions) {
    1_000
} else {
    10_000
};
const KILLS_FULL: u64 = 500_000;

fn kill_test(kills: u64) {
    let _watchdog = sandbox::Watchdog::new(Duration::from_secs(60 + kills / 50));
    sandbox::become_subreaper();
    let mut chain = Chain {
        sandbox: Sandbox::new(chain::topology()),
        control: Control::new(),
        groups: HashMap::new(),
    };
    let mut feed = Feed::new(chain.sandbox.join(AGENT));
    for family in [SOURCE, FIRST, SECOND] {
        chain.start(family);
    }
    let mut random = Random(monotonic_ns() | 1);
    for _ in 0..kills {
        let until = Instant::now() + Duration::from_micros(100 + random.below(1500));
        while Instant::now() < until {
            chain.sandbox.serve();
            feed.drain();
            std::thread::yield_now();
        }
        chain.kill_something(&mut random, feed.bus());
    }
    // Everything that the source has committed must arrive.
    chain.close();
    let committed = |chain: &Chain| {
        let bus = chain.sandbox.guardian.view(SOURCE).unwrap();
        bus.instance(SlotIndex(0)).commits()
    };
    let stop = Instant::now() + Duration::from_secs(60);
    while !(feed.closed() && feed.answers() >= committed(&chain)) && Instant::now() < stop {
        chain.sandbox.serve();
        feed.drain();
    }
    feed.drain();
    if Instant::now() >= stop {
        explain(&chain);
    }
    judge(&mut chain, feed, kills);
}

/// Who holds what in a chain that does not come to its end.
fn explain(chain: &Chain) {
    for family in [AGENT, SOURCE, FIRST, SECOND] {
        let audit = chain.sandbox.guardian.view(family).unwrap().audit(family);
        eprintln!("stuck: family {} holds {audit:?}", family.0);
    }
    let groups: Vec<_> = chain.groups.values().map(i32::to_string).collect();
    let alive = std::process::Command::new("pgrep")
        .args(["--list-full", "--pgroup", &groups.join(",")])
        .output();
    let alive = alive.map(|output| output.stdout).unwrap_or_default();
    eprintln!("{}", String::from_utf8_lossy(&alive));
}

fn judge(chain: &mut Chain, feed: Feed, kills: u64) {
    for family in [SOURCE, FIRST, SECOND] {
        chain.kill(family);
    }
    let answers = feed.answers();
    let (verdict, good) = feed.verdict();
    let counted = |word: Word| chain.control.read(word);
    let (torn, redelivered) = (counted(Word::Torn), counted(Word::Redelivered));
    let rolled = counted(Word::RolledForward);
    println!(
        "{kills} kills, {verdict}; torn inputs {torn}, redelivered {redelivered}, \
         rolled forward {rolled}"
    );
    assert!(good, "the judge found violations");
    assert_eq!(torn, 0, "an instance received a torn payload");
    assert!(
        answers > kills / 4,
        "the chain has hardly run: {answers} answers"
    );
    assert!(redelivered > 0, "no kill ever hit a message in flight");
    for family in [SOURCE, FIRST, SECOND] {
        let audit = chain.sandbox.guardian.view(family).unwrap().audit(family);
        assert_eq!(
            audit,
            Audit::default(),
            "family {} keeps something",
            family.0
        );
    }
    if cfg!(feature = "pauses") && !cfg!(debug_assertions) {
        assert!(
            rolled > 100,
            "only {rolled} kills hit the window between a commit and its last step"
        );
    }
}

#[test]
fn nothing_is_lost_torn_or_invented_under_random_kills() {
    let full = std::env::var_os("SANDPIPE_FULL").is_some();
    kill_test(if full { KILLS_FULL } else { KILLS });
}

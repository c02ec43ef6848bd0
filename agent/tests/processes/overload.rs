//! More requests than an application can do.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::attacks::resident_kib;
use super::harness::{Agent, Place};

/// Events that one phase has time for.
const PHASE: Duration = Duration::from_secs(2);
const ROUNDS: usize = 3;

/// Requests that the application has room for, and clients at three times that.
const ROOM: usize = 8;
const CROWD: usize = 3 * ROOM;

#[derive(Debug, Default)]
struct Counts {
    answered: AtomicUsize,
    refused: AtomicUsize,
}

/// So many clients ask again and again; how many were answered and refused.
fn phase(agent: &Agent<'_>, clients: usize) -> (usize, usize) {
    let counts = Counts::default();
    let end = Instant::now() + PHASE;
    std::thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                while Instant::now() < end {
                    let answer = agent.post(&[], "*: sleep 20");
                    match answer.status {
                        200 => counts.answered.fetch_add(1, Ordering::Relaxed),
                        429 => {
                            assert!(answer.header("retry-after").is_some());
                            // It comes again as soon as it would have been answered.
                            std::thread::sleep(Duration::from_millis(20));
                            counts.refused.fetch_add(1, Ordering::Relaxed)
                        }
                        other => panic!("{other}: {}", answer.text()),
                    };
                }
            });
        }
    });
    (counts.answered.into_inner(), counts.refused.into_inner())
}

#[test]
fn three_times_the_capacity_costs_a_tenth_of_the_goodput_at_most() {
    let limits = format!("max_in_flight = {ROOM}");
    let place = Place::chain(&["a"], &limits, "mode = \"pool\"\nconcurrency = 4");
    let agent = place.start();
    phase(&agent, CROWD); // warm: what it needs for a crowd it has from now on
    let memory = resident_kib(&agent);
    let (mut best, mut crowded, mut refused) = (0, Vec::new(), 0);
    for _ in 0..ROUNDS {
        best = best.max(phase(&agent, ROOM).0);
        let (answered, turned_away) = phase(&agent, CROWD);
        crowded.push(answered);
        refused += turned_away;
        assert_eq!(agent.get("/readyz").status, 200);
    }
    crowded.sort_unstable();
    let median = crowded[ROUNDS / 2];
    assert!(10 * median >= 9 * best, "{crowded:?} of {best} at its best");
    assert!(refused > ROUNDS * ROOM, "{refused}: that was no overload");
    let grown = resident_kib(&agent).saturating_sub(memory);
    assert!(grown < 8 << 10, "{grown} KiB more after the overload");
    let counters = agent.app().counters;
    assert!(counters.busy >= refused as u64);
    assert_eq!((counters.failed, counters.folded), (0, 0));
    agent.stop();
    place.assert_clean();
}

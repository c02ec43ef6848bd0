//! Requests in numbers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::harness::Place;

const REQUESTS: usize = 10_000;
const CONCURRENCY: usize = 64;

#[test]
fn ten_thousand_requests_at_64_at_once_through_three_grains_lose_and_double_nothing() {
    let grain = "mode = \"pool\"\nenv = { NOTES = \"@NOTES@\" }";
    let place = Place::chain(&["a", "b", "c"], "max_in_flight = 4096", grain);
    let agent = place.start();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..CONCURRENCY {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= REQUESTS {
                        return;
                    }
                    let answer = agent.post(&[], format!("r{number}."));
                    let expected = format!("r{number}.abc");
                    assert_eq!((answer.status, answer.text()), (200, expected));
                }
            });
        }
    });
    let mut runs: HashMap<String, usize> = HashMap::new();
    for note in place.notes() {
        let (_, what) = note.split_once(' ').unwrap();
        *runs.entry(what.to_owned()).or_default() += 1;
    }
    assert_eq!(runs.len(), 3 * REQUESTS, "a grain missed an event");
    assert!(
        runs.values().all(|&count| count == 1),
        "a handler ran twice"
    );
    let counters = agent.app().counters;
    assert_eq!(
        (counters.answered, counters.folded, counters.failed),
        (REQUESTS as u64, 0, 0)
    );
    agent.stop();
    place.assert_clean();
}

#[test]
fn a_full_queue_is_429_and_what_was_accepted_is_answered() {
    let place = Place::chain(&["a"], "max_in_flight = 4", "concurrency = 1\nspares = 1");
    let agent = place.start();
    let statuses: Vec<(u16, bool)> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..16)
            .map(|_| {
                scope.spawn(|| {
                    let answer = agent.post(&[], "*: sleep 300");
                    (answer.status, answer.header("retry-after").is_some())
                })
            })
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    let ok = statuses.iter().filter(|(status, _)| *status == 200).count();
    let busy = statuses
        .iter()
        .filter(|answer| **answer == (429, true))
        .count();
    assert_eq!(ok + busy, 16, "{statuses:?}");
    assert!(ok >= 4 && busy > 0, "{statuses:?}");
    assert_eq!(agent.app().counters.answered, ok as u64);
    agent.stop();
}

#[test]
fn payloads_of_every_size_up_to_the_limit_go_through() {
    let place = Place::chain(&["a"], "max_payload_bytes = 2000000", "");
    let agent = place.start();
    for size in [0, 1, 63, 64, 65, 4096, 70_000, 1_999_000] {
        let answer = agent.post(&[], vec![b'x'; size]);
        assert_eq!(
            (answer.status, answer.body.len()),
            (200, size + 1),
            "{size}"
        );
    }
    assert_eq!(agent.post(&[], vec![b'x'; 2_000_001]).status, 413);
    agent.stop();
}

//! Events through a chain of two grains, in every mode.

mod sandbox;

use sandbox::{Sandbox, chain, settings};
use sandpipe::{Kind, MessageId, derive_child};
use sandpipe_grain::{Backup, Mode, NextGrain, Route};

fn a_thousand_events(mode: Mode, concurrency: u16, spares: u16) {
    let mut sandbox = Sandbox::start(chain(2, &settings(mode, concurrency, spares)));
    for id in 1..=1000 {
        // Every third payload is too long for a lane slot.
        let long = if id % 3 == 0 {
            "-".repeat(500)
        } else {
            String::new()
        };
        sandbox.send(id, &format!("event-{id}{long}"));
    }
    sandbox.wait_for(1000);
    for id in 1..=1000 {
        let root = MessageId(id);
        let [answer] = sandbox.answers[&root].as_slice() else {
            panic!("{root}: {:?}", sandbox.answers[&root]);
        };
        assert_eq!(answer.kind, Kind::Final);
        assert!(answer.text.starts_with(&format!("event-{id}")));
        assert!(answer.text.ends_with(">g1>g2"));
        let backup = derive_child(root, 0);
        assert_eq!(sandbox.told[&backup], 1, "one backup copy of {backup}");
    }
    assert_eq!(sandbox.told.len(), 2000);
    sandbox.finish();
}

#[test]
fn a_thousand_events_pass_two_grains_that_fork_on_demand() {
    a_thousand_events(Mode::Fork, 2, 0);
}

#[test]
fn a_thousand_events_pass_two_grains_that_fork_ahead() {
    a_thousand_events(Mode::Fork, 2, 2);
}

#[test]
fn a_thousand_events_pass_two_pools() {
    a_thousand_events(Mode::Pool, 2, 0);
}

#[test]
fn a_forked_instance_handles_one_event_and_a_pooled_one_many() {
    for (mode, spares, fresh) in [
        (Mode::Fork, 0, true),
        (Mode::Fork, 1, true),
        (Mode::Pool, 0, false),
    ] {
        let mut sandbox = Sandbox::start(chain(1, &settings(mode, 1, spares)));
        let pids: std::collections::BTreeSet<_> =
            (1..=20).map(|id| sandbox.ask(id, "pid").text).collect();
        assert_eq!(pids.len(), if fresh { 20 } else { 1 }, "{mode:?} {spares}");
        sandbox.finish();
    }
}

#[test]
fn no_more_than_concurrency_events_are_handled_at_once() {
    for (mode, spares) in [(Mode::Fork, 0), (Mode::Fork, 3), (Mode::Pool, 0)] {
        let mut sandbox = Sandbox::start(chain(1, &settings(mode, 2, spares)));
        sandbox.traced = true;
        for id in 1..=30 {
            sandbox.send(id, "sleep 3");
        }
        sandbox.wait_for(30);
        let stamps = sandbox.answers.values().map(|all| all[0].stamps.unwrap());
        let mut edges: Vec<_> = stamps
            .flat_map(|stamps| [(stamps.started_ns, 1), (stamps.ended_ns, -1)])
            .collect();
        edges.sort_unstable();
        let busy = edges.iter().scan(0, |busy, &(_, step)| {
            *busy += step;
            Some(*busy)
        });
        assert_eq!(busy.max(), Some(2), "{mode:?} with {spares} spares");
        sandbox.finish();
    }
}

#[test]
fn a_traced_event_tells_when_each_step_happened() {
    let mut sandbox = Sandbox::start(chain(2, &settings(Mode::Fork, 1, 1)));
    sandbox.traced = true;
    let before = sandpipe::monotonic_ns();
    let stamps = sandbox.ask(1, "sleep 5").stamps.unwrap();
    let order = [
        before,
        stamps.taken_ns,
        stamps.started_ns,
        stamps.ended_ns,
        stamps.published_ns,
        sandpipe::monotonic_ns(),
    ];
    assert!(order.is_sorted() && order[1] > before, "{order:?}");
    sandbox.finish();
}

#[test]
fn an_output_goes_where_it_says_or_fails_by_name() {
    let mut configs = chain(3, &settings(Mode::Pool, 1, 0));
    configs[0].route = Route::ByOutput;
    configs[0].next.push(NextGrain {
        grain: "g3".into(),
        family: 3,
    });
    let mut sandbox = Sandbox::start(configs);
    assert_eq!(sandbox.ask(1, "to g3").text, "routed>g3");
    assert_eq!(sandbox.ask(2, "to g2").text, "routed>g2>g3");
    for (id, text, expected) in [(3, "to g4", "\"g4\""), (4, "hello", "must name")] {
        let answer = sandbox.ask(id, text);
        assert_eq!(answer.failure, sandpipe::FailureCode::BadRoute);
        assert!(answer.text.contains(expected), "{}", answer.text);
    }
    sandbox.finish();
}

#[test]
fn an_output_goes_to_every_next_grain_of_a_static_workflow() {
    let mut configs = chain(3, &settings(Mode::Fork, 2, 1));
    configs[0].next.push(NextGrain {
        grain: "g3".into(),
        family: 3,
    });
    configs[1].next.clear();
    let mut sandbox = Sandbox::start(configs);
    sandbox.send(1, &"both ".repeat(100));
    sandbox.until("both branches answer", |sandbox| {
        sandbox
            .answers
            .get(&MessageId(1))
            .is_some_and(|all| all.len() == 2)
    });
    let mut ends: Vec<_> = sandbox.answers[&MessageId(1)]
        .iter()
        .map(|answer| answer.text.split('>').skip(1).collect::<Vec<_>>())
        .collect();
    ends.sort();
    assert_eq!(ends, [["g1", "g2"], ["g1", "g3"]]);
    for index in 0..2 {
        let backup = derive_child(MessageId(1), index);
        assert_eq!(sandbox.told.get(&backup), Some(&1), "branch {index}");
    }
    sandbox.finish();
}

#[test]
fn without_backup_the_agent_hears_of_the_answer_only() {
    let like = sandpipe_grain::WorkerConfig {
        backup: Backup::None,
        ..settings(Mode::Fork, 1, 1)
    };
    let mut sandbox = Sandbox::start(chain(2, &like));
    assert_eq!(sandbox.ask(1, "hello").text, "hello>g1>g2");
    assert_eq!(sandbox.told.len(), 1);
    sandbox.finish();
}

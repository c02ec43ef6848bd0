//! `sandpipe top`, `invoke --async` and `results` on a running agent.

use std::sync::atomic::{AtomicBool, Ordering};

use super::changes::EndsAtDrop;
use super::fleet::Fleet;
use super::harness::until;

#[test]
fn top_shows_queues_rates_times_and_memory_as_text_and_as_json() {
    let fleet = Fleet::new();
    let agent = fleet.start();
    fleet.deploy(&fleet.write("x", &["a", "b"], "", "concurrency = 1\nmode = \"pool\""));
    fleet.deploy(&fleet.write("y", &["c"], "", ""));
    let stop = AtomicBool::new(false);
    let json = std::thread::scope(|scope| {
        let ends = EndsAtDrop(&stop);
        let callers = [(); 3].map(|()| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(agent.post("x", "b: sleep 20 ").status, 200);
                }
            })
        });
        let mut json = serde_json::Value::Null;
        until("a queue is seen at work", || {
            let text = fleet.ok(&["top", "--once", "--json", "--interval", "500"]);
            json = serde_json::from_str(&text).unwrap();
            let b = &json["apps"][0]["grains"][1];
            b["high_water"].as_u64() > Some(0) && b["events_per_s"].as_f64() > Some(1.0)
        });
        drop(ends);
        for caller in callers {
            caller.join().unwrap();
        }
        json
    });
    let app = &json["apps"][0];
    assert_eq!(app["name"], fleet.app("x"));
    assert_eq!((&app["version"], &app["restarts"]), (&1.into(), &0.into()));
    assert!(app["answered_per_s"].as_f64() > Some(1.0), "{app}");
    let (p50, p99) = (app["p50_us"].as_u64(), app["p99_us"].as_u64());
    assert!(p50 >= Some(20_000) && p99 >= p50, "{app}");
    let grain = &app["grains"][1];
    assert_eq!(
        (&grain["name"], &grain["state"]),
        (&"b".into(), &"running".into())
    );
    assert!(grain["instances"].as_u64() >= Some(1) && grain["memory"].as_u64() > Some(50_000));
    let text = fleet.ok(&["top", "--once"]);
    for words in [
        "applications: 2",
        "backup window:",
        "p50 / p99 ms",
        &fleet.app("y"),
        "q end",
    ] {
        assert!(text.contains(words), "no {words:?} in\n{text}");
    }
    assert!(
        text.lines()
            .any(|line| line.starts_with("  b ") && line.contains("running"))
    );
    let no_terminal = fleet.sandpipe(&["top"]);
    assert!(String::from_utf8_lossy(&no_terminal.stderr).contains("--once"));
    agent.stop();
    fleet.assert_clean();
}

#[test]
fn an_accepted_requests_answer_is_collected_by_its_id() {
    let fleet = Fleet::new();
    let agent = fleet.start();
    fleet.deploy(&fleet.write("x", &["a"], "", ""));
    let app = fleet.app("x");
    let place = fleet.ok(&["invoke", &app, "--async", "--data", "a: sleep 500 "]);
    let place = place.trim();
    assert!(place.starts_with("/results/"), "{place}");
    let early = fleet.sandpipe(&["results", place]);
    assert_eq!(early.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&early.stderr).contains("--wait"));
    assert_eq!(
        fleet.ok(&["results", place, "--wait", "60"]),
        "a: sleep 500 a"
    );
    let id = place.trim_start_matches("/results/");
    assert_eq!(fleet.ok(&["results", id]), "a: sleep 500 a");
    let json: serde_json::Value =
        serde_json::from_str(&fleet.ok(&["results", id, "--json"])).unwrap();
    assert_eq!(
        (&json["status"], &json["body"]),
        (&200.into(), &"a: sleep 500 a".into())
    );
    let failed = fleet.ok(&["invoke", &app, "--async", "--data", "a: fail"]);
    let failed = fleet.sandpipe(&["results", failed.trim(), "--wait", "60"]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&failed.stderr).contains("told to fail"));
    let unknown = fleet.sandpipe(&["results", "00000000000000000000000000000009"]);
    assert_eq!(unknown.status.code(), Some(1));
    agent.stop();
    fleet.assert_clean();
}

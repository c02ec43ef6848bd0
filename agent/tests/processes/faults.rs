//! Handlers that misbehave.

use super::harness::{Place, until};

fn problem(answer: &sandpipe_agent::client::Response) -> serde_json::Value {
    serde_json::from_slice(&answer.body).unwrap_or_else(|_| panic!("{}", answer.text()))
}

#[test]
fn a_handler_that_fails_panics_exits_or_sleeps_is_500_and_the_next_event_is_handled() {
    let limits = "max_attempts = 2";
    let place = Place::chain(&["a", "b"], limits, "time_limit_ms = 1500");
    let agent = place.start();
    for (order, error) in [
        ("fail", "handler_error"),
        ("panic", "handler_error"),
        ("exit", "crashed"),
        ("abort", "crashed"),
        ("sleep 60000", "timeout"),
        ("grow 9000000", "payload_too_large"),
    ] {
        let answer = agent.post(&[], format!("b: {order} "));
        assert_eq!(answer.status, 500, "{order}: {}", answer.text());
        let problem = problem(&answer);
        assert_eq!(problem["error"], error, "{order}: {problem}");
        assert_eq!(problem["grain"], "b");
        assert_eq!(problem["message"].as_str().unwrap().len(), 32);
        assert_eq!(agent.post(&[], "x").text(), "xab", "after {order}");
    }
    agent.stop();
    place.assert_clean();
}

#[test]
fn a_child_that_a_handler_leaves_behind_does_not_outlive_the_sandbox() {
    let place = Place::chain(&["a"], "", "");
    let agent = place.start();
    assert_eq!(agent.post(&[], "*: child").status, 200);
    until("the child runs", || place.workers().len() > 1);
    agent.stop();
    place.assert_clean();
}

#[test]
fn a_grain_that_cannot_load_is_503_with_its_words_which_are_logged_once() {
    let place = Place::chain(
        &["a"],
        "",
        "env = { FAIL_AT_START = \"no module named x\" }",
    );
    let agent = place.start();
    assert!(
        agent.announced["not_ready"]
            .as_str()
            .unwrap()
            .contains("no module named x")
    );
    let answer = agent.post(&[], "x");
    assert_eq!(answer.status, 503);
    assert!(answer.header("retry-after").is_some());
    assert!(
        problem(&answer)["detail"]
            .as_str()
            .unwrap()
            .contains("no module named x")
    );
    assert_eq!(agent.get("/readyz").status, 503);
    assert_eq!(agent.get("/healthz").status, 200);
    std::thread::sleep(std::time::Duration::from_secs(1)); // time for a hot loop to show
    let restarts = agent.app().grains[0].restarts;
    assert!(
        restarts < 20,
        "{restarts} restarts within a second: a hot loop"
    );
    let told = place.log().matches("Traceback: no module").count();
    assert!(
        (1..=2).contains(&told),
        "told {told} times:\n{}",
        place.log()
    );
    agent.stop();
    place.assert_clean();
}

#[test]
fn unknown_applications_and_results_are_404() {
    let place = Place::chain(&["a"], "", "");
    let agent = place.start();
    assert_eq!(agent.call("POST", "/nobody", &[], b"x").status, 404);
    assert_eq!(
        agent
            .get("/results/00000000000000000000000000000009")
            .status,
        404
    );
    agent.stop();
}

#[test]
fn a_deadline_is_504_and_the_answer_can_be_collected() {
    let place = Place::chain(&["a"], "deadline_ms = 300", "");
    let agent = place.start();
    let late = agent.post(&[], "*: sleep 1000");
    assert_eq!(late.status, 504);
    let answer = agent.collect(late.header("location").unwrap());
    assert_eq!(answer.text(), "*: sleep 1000a");
    agent.stop();
}

#[test]
fn without_backup_a_chain_answers_and_fails_as_with_it() {
    let place = Place::chain(&["a", "b", "c"], "", "");
    let text = std::fs::read_to_string(place.path("app.toml")).unwrap();
    let text = text.replace("[workflow]\n", "[workflow]\nbackup = \"none\"\n");
    std::fs::write(place.path("app.toml"), text).unwrap();
    let agent = place.start();
    assert_eq!(agent.post(&[], "x").text(), "xabc");
    assert_eq!(problem(&agent.post(&[], "b: fail "))["grain"], "b");
    assert_eq!(
        (agent.app().in_flight, agent.app().unbacked_messages),
        (0, 0)
    );
    agent.stop();
}

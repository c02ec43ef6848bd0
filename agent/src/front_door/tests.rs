use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

mod attacks;
mod http2;
mod structured;

use super::*;
use crate::bridge::fake::{Running, workflow};
use crate::client::{self, Response};
use crate::core::{Cause, Workflow};

const PATIENCE: Duration = Duration::from_secs(20);

/// A served front door over a fake sandbox; stopped when it is dropped.
struct Served {
    running: Running,
    address: SocketAddr,
    _runtime: tokio::runtime::Runtime,
    _directory: tempfile::TempDir,
}

impl Served {
    fn start(workflow: Workflow) -> Served {
        Served::limited(workflow, ConnectionLimits::default())
    }

    fn limited(workflow: Workflow, limits: ConnectionLimits) -> Served {
        let directory = tempfile::tempdir().unwrap();
        let running = Running::start(directory.path(), workflow);
        let app = AppDoor {
            name: "app".into(),
            mailbox: Arc::clone(&running.mailbox),
            max_payload_bytes: 1000,
            max_bytes_in_flight: 4000,
            held_bytes: Arc::default(),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime
            .block_on(bind("127.0.0.1:0".parse().unwrap()))
            .unwrap();
        let address = listener.local_addr().unwrap();
        let mut door = FrontDoor::new(vec![app]);
        door.limits = limits;
        runtime.spawn(serve(listener, Arc::new(door), std::future::pending()));
        Served {
            running,
            address,
            _runtime: runtime,
            _directory: directory,
        }
    }

    fn chain() -> Served {
        Served::start(workflow(2))
    }

    fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        client::request(self.address, method, path, headers, body, PATIENCE).unwrap()
    }

    fn post(&self, headers: &[(&str, &str)], body: &[u8]) -> Response {
        self.call("POST", "/app", headers, body)
    }

    fn get(&self, path: &str) -> Response {
        self.call("GET", path, &[], b"")
    }

    fn handled(&self) -> usize {
        self.running.fake.knobs.lock().unwrap().handled
    }

    /// A metric's value, by the beginning of its line.
    fn metric(&self, line: &str) -> f64 {
        let page = self.get("/metrics").text();
        let found = page.lines().find(|found| found.starts_with(line));
        let found = found.unwrap_or_else(|| panic!("no {line} in\n{page}"));
        found.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

fn problem(response: &Response) -> serde_json::Value {
    assert_eq!(
        response.header("content-type"),
        Some("application/problem+json")
    );
    serde_json::from_slice(&response.body).unwrap()
}

#[test]
fn the_metrics_show_what_the_bus_counts_for_the_agent_and_each_grain() {
    let served = Served::chain();
    let count = |name: &str, grain: &str| {
        let line = format!("sandpipe_bus_{name}_total{{app=\"app\",grain=\"{grain}\"}}");
        served.metric(&line) as u64
    };
    let published = ["(agent)", "g0", "g1"].map(|grain| count("published", grain));
    assert_eq!(published, [1, 10, 11]);
    assert_eq!(count("recovered_messages", "g1"), 1);
    assert_eq!(count("full", "g0"), 0);
}

#[test]
fn metrics_tell_how_large_each_pool_is_and_by_how_much_it_has_grown() {
    let served = Served::chain();
    let sizes = ["(agent)", "g0", "g1"].map(|grain| {
        let labels = format!("{{app=\"app\",grain=\"{grain}\"}}");
        let value = |name: &str| served.metric(&format!("sandpipe_{name}{labels}"));
        (value("bus_pool_bytes"), value("bus_pool_extensions"))
    });
    let mib = f64::from(1 << 20);
    assert_eq!(sizes, [(mib, 0.0), (2.0 * mib, 1.0), (3.0 * mib, 2.0)]);
}

#[test]
fn a_post_is_answered_with_the_last_grains_output() {
    let served = Served::chain();
    let response = served.post(&[], b"x");
    assert_eq!((response.status, response.text()), (200, "xab".to_owned()));
    assert_eq!(
        response.header("content-type"),
        Some("text/plain; charset=utf-8")
    );
    assert_eq!(response.header("ce-source"), Some("/app"));
    assert_eq!(response.header("ce-specversion"), Some("1.0"));
    assert_eq!(response.header("ce-id").unwrap().len(), 32);
}

#[test]
fn a_trace_context_comes_back_with_the_answer_and_noise_does_not() {
    let served = Served::chain();
    let context = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let answer = served.post(&[("traceparent", context)], b"x");
    assert_eq!(answer.header("traceparent"), Some(context));
    let headers = [("traceparent", context), ("prefer", "respond-async")];
    let place = served.post(&headers, b"y");
    let place = place.header("location").unwrap().to_owned();
    let deadline = Instant::now() + PATIENCE;
    let mut collected = served.get(&place);
    while collected.status == 202 && Instant::now() < deadline {
        collected = served.get(&place);
    }
    assert_eq!(collected.header("traceparent"), Some(context));
    let answer = served.post(&[("traceparent", "00-noise")], b"z");
    assert_eq!((answer.status, answer.header("traceparent")), (200, None));
}

#[test]
fn an_asynchronous_request_is_accepted_and_its_answer_collected() {
    let served = Served::chain();
    served.running.fake.set(|knobs| knobs.stalled = true);
    let accepted = served.post(&[("prefer", "wait=5, respond-async")], b"x");
    assert_eq!(accepted.status, 202);
    let place = accepted.header("location").unwrap().to_owned();
    assert!(place.starts_with("/results/"));
    assert_eq!(served.get(&place).status, 202);
    served.running.fake.set(|knobs| knobs.stalled = false);
    let deadline = Instant::now() + PATIENCE;
    let answer = loop {
        let answer = served.get(&place);
        if answer.status != 202 || Instant::now() > deadline {
            break answer;
        }
    };
    assert_eq!((answer.status, answer.text()), (200, "xab".to_owned()));
    assert_eq!(served.call("POST", "/app?async=1", &[], b"x").status, 202);
}

#[test]
fn an_answer_is_gone_after_its_time() {
    let mut workflow = workflow(1);
    workflow.result_ttl_ms = 100;
    let served = Served::start(workflow);
    let place = served.post(&[("prefer", "respond-async")], b"x");
    let place = place.header("location").unwrap().to_owned();
    let deadline = Instant::now() + PATIENCE;
    while served.get(&place).status != 404 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(problem(&served.get(&place))["error"], "unknown_result");
}

#[test]
fn what_is_no_result_is_not_found() {
    let served = Served::chain();
    for path in ["/results/x", "/results/00000000000000000000000000000001"] {
        assert_eq!(served.get(path).status, 404);
    }
}

#[test]
fn a_key_makes_a_retry_get_the_first_answer() {
    let served = Served::chain();
    let first = served.post(&[("idempotency-key", "k")], b"x");
    let again = served.post(&[("idempotency-key", "k")], b"x");
    assert_eq!(
        (first.body, first.headers[0].clone()),
        (again.body, again.headers[0].clone())
    );
    assert_eq!(served.handled(), 2);
    assert_eq!(served.post(&[("idempotency-key", "")], b"x").status, 400);
}

#[test]
fn a_cloud_event_is_taken_once_and_its_attributes_come_back() {
    let served = Served::chain();
    let event = [
        ("ce-specversion", "1.0"),
        ("ce-id", "7"),
        ("ce-source", "/sensors/1"),
        ("ce-type", "reading"),
        ("ce-subject", "t"),
    ];
    let first = served.post(&event, b"x");
    assert_eq!(first.header("ce-subject"), Some("t"));
    assert_eq!(first.header("ce-type"), Some("sandpipe.answer"));
    assert_eq!(served.post(&event, b"x").text(), "xab");
    assert_eq!(served.handled(), 2);
    for wrong in [&event[1..], &event[..3]] {
        assert_eq!(served.post(wrong, b"x").status, 400);
    }
}

#[test]
fn a_body_over_the_limit_is_refused_also_when_its_length_is_not_said() {
    let served = Served::chain();
    let response = served.post(&[], &[b'x'; 1001]);
    assert_eq!(response.status, 413);
    assert!(
        problem(&response)["detail"]
            .as_str()
            .unwrap()
            .contains("1000 bytes")
    );
    let mut stream = TcpStream::connect(served.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = "POST /app HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n7d0\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&[b'x'; 2000]).unwrap();
    stream.write_all(b"\r\n0\r\n\r\n").unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
    assert_eq!(served.post(&[], &[b'x'; 1000]).status, 200);
    assert_eq!(served.handled(), 2);
}

#[test]
fn an_unknown_application_is_named_beside_those_that_are_there() {
    let served = Served::chain();
    let response = served.call("POST", "/nobody", &[], b"x");
    assert_eq!(response.status, 404);
    assert!(
        problem(&response)["detail"]
            .as_str()
            .unwrap()
            .contains("there is: app")
    );
    assert_eq!(served.get("/a/b/c").status, 404);
    assert_eq!(served.get("/app").status, 405);
}

#[test]
fn a_full_queue_is_429_with_retry_after_and_nothing_accepted_is_lost() {
    let served = Served::chain();
    served.running.fake.set(|knobs| {
        knobs.stalled = true;
        knobs.capacity = 1;
    });
    let address = served.address;
    let waiting = std::thread::spawn(move || {
        client::request(address, "POST", "/app", &[], b"x", PATIENCE).unwrap()
    });
    let deadline = Instant::now() + PATIENCE;
    while served.metric("sandpipe_in_flight") < 1.0 && Instant::now() < deadline {}
    let refused = served.post(&[], b"y");
    assert_eq!(refused.status, 429);
    assert!(refused.header("retry-after").is_some());
    served.running.fake.set(|knobs| knobs.stalled = false);
    assert_eq!(waiting.join().unwrap().text(), "xab");
    assert_eq!(served.post(&[], b"y").text(), "yab");
}

#[test]
fn without_a_sandbox_it_is_503_with_the_reason() {
    let served = Served::chain();
    served.running.fake.set(|knobs| knobs.dead = true);
    served.running.fake.kill();
    let deadline = Instant::now() + PATIENCE;
    while served.get("/readyz").status != 503 && Instant::now() < deadline {}
    let response = served.post(&[], b"x");
    assert_eq!(response.status, 503);
    assert!(response.header("retry-after").is_some());
    assert!(
        problem(&response)["detail"]
            .as_str()
            .unwrap()
            .contains("sandbox")
    );
    assert_eq!(served.get("/healthz").status, 200);
    served.running.fake.set(|knobs| knobs.dead = false);
    while served.get("/readyz").status != 200 && Instant::now() < deadline {}
    assert_eq!(served.post(&[], b"x").status, 200);
}

#[test]
fn a_deadline_is_504_and_the_answer_can_be_collected_later() {
    let mut workflow = workflow(1);
    workflow.deadline_ms = 50;
    let served = Served::start(workflow);
    served.running.fake.set(|knobs| knobs.stalled = true);
    let late = served.post(&[], b"x");
    assert_eq!(late.status, 504);
    let place = late.header("location").unwrap().to_owned();
    served.running.fake.set(|knobs| knobs.stalled = false);
    let deadline = Instant::now() + PATIENCE;
    while served.get(&place).status == 202 && Instant::now() < deadline {}
    assert_eq!(served.get(&place).text(), "xa");
}

#[test]
fn a_handlers_error_is_500_and_names_grain_message_and_reason() {
    let served = Served::chain();
    served
        .running
        .fake
        .set(|knobs| knobs.failure = Some(Cause::HandlerError));
    let response = served.post(&[], b"x");
    assert_eq!(response.status, 500);
    let problem = problem(&response);
    assert_eq!(problem["error"], "handler_error");
    assert_eq!(problem["grain"], "g0");
    assert_eq!(problem["message"].as_str().unwrap().len(), 32);
    assert!(problem["detail"].as_str().unwrap().contains("Traceback"));
}

#[test]
fn a_client_that_hangs_up_cancels_only_its_waiting() {
    let served = Served::chain();
    served.running.fake.set(|knobs| knobs.stalled = true);
    let mut stream = TcpStream::connect(served.address).unwrap();
    stream
        .write_all(b"POST /app HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx")
        .unwrap();
    let deadline = Instant::now() + PATIENCE;
    while served.metric("sandpipe_in_flight") < 1.0 && Instant::now() < deadline {}
    drop(stream);
    served.running.fake.set(|knobs| knobs.stalled = false);
    while served.metric("sandpipe_answered_total") < 1.0 && Instant::now() < deadline {}
    assert_eq!(served.handled(), 2);
    assert_eq!(served.post(&[], b"y").text(), "yab");
}

#[test]
fn the_metrics_are_openmetrics() {
    let served = Served::chain();
    served.post(&[], b"x");
    let page = served.get("/metrics");
    assert!(
        page.header("content-type")
            .unwrap()
            .starts_with("application/openmetrics-text")
    );
    assert!(page.text().ends_with("# EOF\n"), "{}", page.text());
    assert!(
        (served.metric("sandpipe_http_requests_total{app=\"app\",code=\"200\"}") - 1.0).abs() < 0.1
    );
    assert!((served.metric("sandpipe_accepted_total") - 1.0).abs() < 0.1);
    assert!(
        page.text()
            .contains("sandpipe_http_request_duration_seconds_bucket")
    );
}

#[test]
fn a_traced_request_answers_with_its_times() {
    let served = Served::chain();
    let response = served.post(&[(TRACE_HEADER, "1")], b"x");
    let trace: crate::core::Trace =
        serde_json::from_str(response.header(TRACE_HEADER).unwrap()).unwrap();
    let times = [
        trace.received_ns,
        trace.taken_ns,
        trace.published_ns,
        trace.finished_ns,
    ];
    assert!(times[0] > 0 && times.is_sorted(), "{times:?}");
    assert_eq!(trace.hops.len(), 2);
}

#[test]
fn a_port_in_use_is_an_error_with_a_remedy() {
    let served = Served::chain();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let error = runtime
        .block_on(bind(served.address))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("is in use") && error.contains("--listen"),
        "{error}"
    );
}

#[test]
fn an_answer_that_is_an_image_says_so() {
    let served = Served::chain();
    served
        .running
        .fake
        .set(|knobs| knobs.answer = Some(b"\xff\xd8\xff\xe0photo".to_vec()));
    assert_eq!(
        served.post(&[], b"x").header("content-type"),
        Some("image/jpeg")
    );
}

//! Clients that mean no good; a good one is answered meanwhile.

use super::*;

/// Nothing is given up while a test lasts.
fn patient(open_max: usize) -> ConnectionLimits {
    let long = Duration::from_secs(3600);
    ConnectionLimits {
        open_max,
        head: long,
        body: long,
        idle: long,
    }
}

/// A limit that a test need not wait for.
const BRIEF: Duration = Duration::from_millis(300);

impl Served {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends bytes as they are; all that comes back until the front door closes.
    fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // It may close before it has read everything.
        let _ = stream.write_all(bytes);
        rest(&mut stream)
    }

    fn good_client_is_answered(&self) {
        assert_eq!(self.post(&[], b"x").text(), "xab");
    }

    fn until(&self, what: &str, done: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done() {
            assert!(Instant::now() < deadline, "not in time: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the connection was not closed: {error}"),
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn heads_that_never_end_are_given_up_while_others_are_answered() {
    let limits = ConnectionLimits {
        head: BRIEF,
        ..patient(1000)
    };
    let served = Served::limited(workflow(2), limits);
    let mut slow: Vec<TcpStream> = (0..50).map(|_| served.connect()).collect();
    for stream in &mut slow {
        stream.write_all(b"POST /app HTTP/1.1\r\nx-").unwrap();
    }
    served.good_client_is_answered();
    for stream in &mut slow {
        assert_eq!(rest(stream), "", "no answer to half a head");
    }
    served.until("all are closed", || {
        served.metric("sandpipe_connections_open") < 1.5
    });
    served.good_client_is_answered();
}

#[test]
fn a_body_that_never_ends_is_408_and_was_never_accepted() {
    let limits = ConnectionLimits {
        body: BRIEF,
        ..patient(1000)
    };
    let served = Served::limited(workflow(2), limits);
    let mut slow: Vec<TcpStream> = (0..20).map(|_| served.connect()).collect();
    for stream in &mut slow {
        let head = b"POST /app HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf";
        stream.write_all(head).unwrap();
    }
    served.good_client_is_answered();
    for stream in &mut slow {
        let answer = rest(stream);
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
        assert!(answer.contains("body_timeout"), "{answer}");
    }
    assert_eq!(served.handled(), 2, "only the good client's two events");
    assert!(served.metric("sandpipe_bytes_in_flight") < 0.5);
}

#[test]
fn connections_that_say_nothing_are_closed_after_their_time() {
    let limits = ConnectionLimits {
        idle: BRIEF,
        ..patient(1000)
    };
    let served = Served::limited(workflow(2), limits);
    let mut silent: Vec<TcpStream> = (0..50).map(|_| served.connect()).collect();
    served.good_client_is_answered();
    for stream in &mut silent {
        assert_eq!(rest(stream), "");
    }
    assert!(served.metric("sandpipe_connections_timed_out_total") >= 50.0);
}

#[test]
fn a_thousand_idle_connections_keep_nobody_out_of_a_front_door_for_32() {
    let served = Served::limited(workflow(2), patient(32));
    let mut idle = Vec::new();
    for number in 0..1000 {
        let mut stream = served.connect();
        match number % 3 {
            0 => {}
            1 => stream.write_all(b"POST /app HT").unwrap(),
            _ => stream.write_all(b"PRI * HTTP/2.0\r\n\r\n").unwrap(),
        }
        idle.push(stream);
        if number % 100 == 0 {
            served.good_client_is_answered();
        }
    }
    served.good_client_is_answered();
    assert!(served.metric("sandpipe_connections_open") <= 32.0);
    assert!(served.metric("sandpipe_connections_displaced_total") >= 1000.0 - 32.0);
    assert_eq!(
        rest(&mut idle[0]),
        "",
        "the first to idle is the first to go"
    );
}

#[test]
fn who_is_at_work_is_not_displaced_and_the_next_is_refused() {
    let served = Served::limited(workflow(2), patient(2));
    served.running.fake.set(|knobs| knobs.stalled = true);
    let address = served.address;
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            std::thread::spawn(move || {
                client::request(address, "POST", "/app", &[], b"x", PATIENCE).unwrap()
            })
        })
        .collect();
    // Asked past the front door, which has no room for the question.
    served.until("both are at work", || {
        let (waiter, status) = oneshot::channel();
        served.running.mailbox.post(Post::Status(waiter));
        status.blocking_recv().unwrap().in_flight == 2
    });
    let refused = served.raw(b"");
    assert!(refused.contains("retry-after: 1"), "{refused}");
    served.running.fake.set(|knobs| knobs.stalled = false);
    for call in waiting {
        assert_eq!(call.join().unwrap().text(), "xab");
    }
    served.good_client_is_answered();
    assert!(served.metric("sandpipe_connections_refused_total") > 0.5);
}

#[test]
fn heads_that_are_too_large_are_refused_in_words() {
    let served = Served::chain();
    let long = "x".repeat(100 << 10);
    let many: String = (0..200).map(|n| format!("h{n}: v\r\n")).collect();
    for (head, status) in [
        (format!("POST /app HTTP/1.1\r\nh: {long}\r\n\r\n"), "431"),
        (format!("POST /app HTTP/1.1\r\n{many}\r\n"), "431"),
        (format!("POST /{long} HTTP/1.1\r\n\r\n"), "4"),
    ] {
        let answer = served.raw(head.as_bytes());
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{status}: {answer:.60} to {head:.60}"
        );
        served.good_client_is_answered();
    }
    assert_eq!(served.handled(), 6);
}

#[test]
fn malformed_requests_are_refused_and_reach_no_grain() {
    let served = Served::chain();
    let post = "POST /app HTTP/1.1\r\nhost: x\r\n";
    for wrong in [
        "\0\0\0\0\r\n\r\n".to_owned(),
        "GET\r\n\r\n".into(),
        "POST /app HTTP/7.3\r\n\r\n".into(),
        "\u{16}\u{3}\u{1}\u{2}\0 a TLS greeting\r\n\r\n".into(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnot a frame of any kind".into(),
        format!("{post}a b: c\r\n\r\n"),
        format!("{post}h: \0\r\n\r\n"),
        format!("{post}content-length: -1\r\n\r\nx"),
        format!("{post}content-length: 1\r\ncontent-length: 2\r\n\r\nxx"),
        format!("{post}transfer-encoding: chunked\r\n\r\nZZZ\r\nx\r\n0\r\n\r\n"),
        format!("{post}transfer-encoding: gzip\r\n\r\nx"),
        format!("{post}transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\nx"),
    ] {
        let answer = served.raw(wrong.as_bytes());
        assert!(!answer.contains("HTTP/1.1 2"), "{wrong:?}: {answer}");
        served.good_client_is_answered();
    }
    assert_eq!(served.handled(), 24, "the good client's, two a request");
}

#[test]
fn a_length_beside_chunks_smuggles_no_second_request() {
    let served = Served::chain();
    let answer = served.raw(
        b"POST /app HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\
          transfer-encoding: chunked\r\n\r\n0\r\n\r\nPOST /app HTTP/1.1\r\nhost: x\r\n\
          content-length: 1\r\nconnection: close\r\n\r\nx",
    );
    let answers = answer.matches("HTTP/1.1 ").count();
    assert!(answers <= 1, "{answer}");
}

#[test]
fn bytes_of_open_requests_are_limited_and_given_back() {
    let served = Served::limited(workflow(2), patient(100));
    let head =
        b"POST /app HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 1000\r\n\r\n";
    let mut open: Vec<TcpStream> = (0..4).map(|_| served.connect()).collect();
    for stream in &mut open {
        stream.write_all(head).unwrap();
        stream.write_all(&[b'x'; 999]).unwrap();
    }
    let held = || served.metric("sandpipe_bytes_in_flight{app=\"app\"}");
    served.until("all are held", || held() > 3995.0);
    let refused = served.post(&[], b"12345");
    assert_eq!(refused.status, 429);
    assert!(refused.header("retry-after").is_some());
    assert_eq!(problem(&refused)["error"], "bytes_in_flight");
    open[0].write_all(b"x").unwrap();
    let answer = rest(&mut open[0]);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    served.post(&[], b"12345");
    served.good_client_is_answered();
    drop(open);
    served.until("all are given back", || held() < 0.5);
}

#[test]
fn who_has_half_closed_leaves_nothing_behind() {
    let served = Served::limited(workflow(2), patient(100));
    for bytes in [
        &b""[..],
        b"POST /app HT",
        b"POST /app HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nx",
        b"PRI * HTTP/2.0\r\n\r\n",
    ] {
        let mut stream = served.connect();
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        rest(&mut stream);
    }
    served.until("all are closed", || {
        served.metric("sandpipe_connections_open") < 1.5
    });
    served.good_client_is_answered();
}

#[test]
fn who_takes_no_answer_is_given_up() {
    let limits = ConnectionLimits {
        idle: BRIEF,
        ..patient(1000)
    };
    let served = Served::limited(workflow(2), limits);
    // More than the two sockets hold.
    let long = vec![b'x'; 32 << 20];
    served.running.fake.set(|knobs| knobs.answer = Some(long));
    let mut asked = served.connect();
    asked
        .write_all(b"POST /app HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx")
        .unwrap();
    served.until("it is answered", || served.handled() == 2);
    served.until("it is closed", || {
        served.metric("sandpipe_connections_open") < 1.5
            && served.metric("sandpipe_connections_timed_out_total") > 0.5
    });
    assert!(rest(&mut asked).len() < 32 << 20);
}

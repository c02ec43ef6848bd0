//! SIGKILL at every level, while a request is in the hands of who is killed.

use std::time::{Duration, Instant};

use super::harness::{Place, children, kill, until};

/// A place whose grain `b` notes its process and then takes its time.
fn slow() -> Place {
    let grain = "env = { NOTES = \"@NOTES@\" }";
    Place::chain(&["a", "b", "c"], "", grain)
}

const SLOW: &str = "b: sleep 800 ";

/// The processes that have begun to handle the slow event in `b`.
fn handlers(place: &Place) -> Vec<u32> {
    let notes = place.notes();
    let of_b = notes.iter().filter(|note| note.contains(" b "));
    of_b.map(|note| note.split(' ').next().unwrap().parse().unwrap())
        .collect()
}

/// Kills something while `b` handles an event, and expects that event's answer all the same.
fn killed_in_the_middle(place: &Place, strike: impl FnOnce(&super::harness::Agent<'_>)) {
    let agent = place.start();
    assert_eq!(agent.post(&[], "x").text(), "xabc");
    let before = handlers(place).len();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| agent.post(&[], SLOW));
        until("b has begun", || handlers(place).len() > before);
        strike(&agent);
        let answer = call.join().unwrap();
        assert_eq!((answer.status, answer.text()), (200, format!("{SLOW}abc")));
    });
    assert_eq!(
        handlers(place).len(),
        before + 2,
        "b runs the event once more"
    );
    assert_eq!(agent.post(&[], "y").text(), "yabc");
    agent.stop();
    place.assert_clean();
}

/// A process's number inside its sandbox, which is the one that it knows itself by.
fn inner_pid(pid: u32) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find(|line| line.starts_with("NSpid:"))?;
    line.split_whitespace().last()?.parse().ok()
}

#[test]
fn a_killed_instances_event_is_handled_again() {
    let place = slow();
    killed_in_the_middle(&place, |agent| {
        let inner = *handlers(&place).last().expect("b has begun");
        let instances = children(agent.worker("b"));
        let holder = instances
            .into_iter()
            .find(|&pid| inner_pid(pid) == Some(inner));
        kill(holder.expect("the instance lives"), "KILL");
    });
}

#[test]
fn a_killed_workers_event_is_handled_again() {
    let place = slow();
    killed_in_the_middle(&place, |agent| kill(agent.worker("b"), "KILL"));
}

#[test]
fn a_killed_inits_events_are_delivered_again_into_a_new_sandbox() {
    let place = slow();
    killed_in_the_middle(&place, |_| kill(place.init().expect("init lives"), "KILL"));
}

#[test]
fn a_killed_agent_is_succeeded_by_one_that_adopts_and_finds_all_that_was_accepted() {
    let place = slow();
    let agent = place.start();
    let keyed = agent.post(&[("idempotency-key", "k")], "keyed");
    assert_eq!(keyed.text(), "keyedabc");
    let places: Vec<String> = (0..20)
        .map(|number| {
            let order = format!("b: sleep 300 {number} ");
            let accepted = agent.post(&[("prefer", "respond-async")], order);
            assert_eq!(accepted.status, 202);
            accepted.header("location").unwrap().to_owned()
        })
        .collect();
    let init = place.init().expect("init lives");
    agent.kill();
    let handled = handlers(&place).len();
    until("grains go on without an agent", || {
        handlers(&place).len() > handled
    });
    let next = place.start();
    assert_eq!(
        place.init(),
        Some(init),
        "the sandbox is adopted, not made anew"
    );
    assert!(next.app().adopted);
    for (number, place) in places.iter().enumerate() {
        assert_eq!(
            next.collect(place).text(),
            format!("b: sleep 300 {number} abc")
        );
    }
    let runs = handlers(&place).len();
    // What lived on in the sandbox was not published again; one may have moved just then.
    assert!(
        (21..=23).contains(&runs),
        "20 events and the keyed one made b run {runs} times"
    );
    let again = next.post(&[("idempotency-key", "k")], "keyed");
    assert_eq!((again.body, again.status), (keyed.body, 200));
    assert_eq!(handlers(&place).len(), runs, "a retry runs nothing");
    next.stop();
    place.assert_clean();
}

#[test]
fn agents_killed_again_and_again_lose_nothing_that_was_accepted() {
    let place = Place::chain(&["a", "b"], "", "");
    let mut accepted = Vec::new();
    let context = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers = [("prefer", "respond-async"), ("traceparent", context)];
    for round in 0..5 {
        let agent = place.start();
        for number in 0..30 {
            let text = format!("r{round}n{number}.");
            let answer = agent.post(&headers, &text);
            assert_eq!(answer.status, 202, "{}", answer.text());
            accepted.push((text, answer.header("location").unwrap().to_owned()));
        }
        agent.kill();
    }
    let agent = place.start();
    for (text, location) in &accepted {
        let answer = agent.collect(location);
        assert_eq!(answer.text(), format!("{text}ab"));
        assert_eq!(answer.header("traceparent"), Some(context));
    }
    agent.stop();
    place.assert_clean();
}

#[test]
fn after_a_kill_of_everything_the_next_start_cleans_up_and_goes_on() {
    let place = slow();
    let agent = place.start();
    let accepted = agent.post(&[("prefer", "respond-async")], SLOW);
    let location = accepted.header("location").unwrap().to_owned();
    let init = place.init().expect("init lives");
    agent.kill();
    kill(init, "KILL");
    until("the workers die with their init", || {
        place.workers().is_empty()
    });
    let agent = place.start();
    assert_eq!(agent.collect(&location).text(), format!("{SLOW}abc"));
    agent.stop();
    place.assert_clean();
}

#[test]
fn a_hang_up_signal_and_a_client_that_hangs_up_change_nothing() {
    let place = slow();
    let agent = place.start();
    kill(agent.pid(), "HUP");
    let body = SLOW.as_bytes();
    let head = format!(
        "POST /{} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
        place.app,
        body.len()
    );
    let mut stream = std::net::TcpStream::connect(agent.address).unwrap();
    std::io::Write::write_all(&mut stream, &[head.as_bytes(), body].concat()).unwrap();
    until("b has begun", || !handlers(&place).is_empty());
    drop(stream);
    until("the work goes on", || agent.app().counters.answered == 1);
    assert_eq!(agent.post(&[], "x").text(), "xabc");
    agent.stop();
}

#[test]
fn random_kills_of_instances_under_load_lose_nothing() {
    // With --full for a minute.
    let full = super::harness::is_full();
    let end = Instant::now() + Duration::from_secs(if full { 60 } else { 0 });
    let place = Place::chain(&["a", "b", "c"], "max_attempts = 50", "");
    let agent = place.start();
    let workers: Vec<u32> = ["a", "b", "c"]
        .iter()
        .map(|grain| agent.worker(grain))
        .collect();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let mut kills = 0usize;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let victims = children(workers[kills % 3]);
                if let Some(&victim) = victims.get(kills % victims.len().max(1)) {
                    kill(victim, "KILL");
                    kills += 1;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            kills
        });
        let callers: Vec<_> = (0..8)
            .map(|caller| {
                let agent = &agent;
                scope.spawn(move || {
                    let mut number = 0;
                    while number < 100 || Instant::now() < end {
                        number += 1;
                        let answer = agent.post(&[], format!("c{caller}n{number}."));
                        let expected = format!("c{caller}n{number}.abc");
                        assert_eq!((answer.status, answer.text()), (200, expected));
                    }
                    number
                })
            })
            .collect();
        let results: Vec<_> = callers.into_iter().map(|caller| caller.join()).collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let kills = killer.join().unwrap();
        assert!(kills > 20, "only {kills} kills");
        assert!(results.iter().all(Result::is_ok));
        let answers: u32 = results.into_iter().flatten().sum();
        eprintln!("{kills} instances killed, {answers} requests answered");
    });
    agent.stop();
    place.assert_clean();
}

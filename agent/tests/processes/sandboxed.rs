//! What a grain has in its hands, whole application and all.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::harness::{Agent, Place, SANDPIPE, WATCHDOG, kill};

#[test]
fn a_rust_instance_holds_no_descriptor_of_the_agent_or_another() {
    let place = Place::chain(&["a"], "", "");
    let agent = place.start();
    let answer = agent.post(&[], "a: descriptors");
    let text = answer.text();
    let held: BTreeMap<&str, &str> = text
        .lines()
        .filter_map(|line| {
            let (number, target) = line.split_once(' ')?;
            Some((number, target.split(':').next()?))
        })
        .collect();
    // Nothing to read; what it writes goes to init.
    let expected = [("0", "/dev/null"), ("1", "pipe"), ("2", "pipe")];
    assert_eq!(held, BTreeMap::from(expected), "{text}");
    agent.stop();
}

#[test]
fn the_doctor_tells_of_each_part_of_a_sandbox() {
    let mut doctor = std::process::Command::new(SANDPIPE);
    let output = doctor.arg("doctor").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for part in [
        "read-only root, private /tmp",
        "no privileges",
        "file rules",
        "abstract sockets out of reach",
        "system call filter",
    ] {
        assert!(text.contains(&format!("ok    {part}")) || text.contains(&format!("off   {part}")));
    }
    assert!(
        text.contains("ok    no privileges"),
        "every kernel has them: {text}"
    );
}

#[test]
fn a_developer_gives_the_hosts_network_by_an_option_of_its_own() {
    let place = Place::chain(&["a"], "", "");
    let file = place.path("app.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text + "network = \"host\"\n").unwrap();
    let mut command = place.command();
    let command = command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut running = command.spawn().unwrap();
    let deadline = Instant::now() + WATCHDOG;
    while running.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            // It runs: it ends as one that was called would, and the assertion says so.
            kill(running.id(), "TERM");
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let refused = running.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success());
    assert!(words.contains("pass --allow-host-network"), "{words}");
    place.assert_clean();
    let mut command = place.command();
    command.arg("--allow-host-network");
    let agent = Agent::start(&place, command);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let order = format!("a: reach tcp:{}", listener.local_addr().unwrap());
    assert_eq!(agent.post(&[], order).text(), "yes");
    agent.stop();
    place.assert_clean();
}

//! The other processes of the tests: `agent` makes or adopts a sandbox and takes orders on its
//! standard input, `worker` is a grain worker in one of several moods, `ask` is a stranger.
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{BufRead, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use sandpipe::{FamilyIndex, Participant};
use sandpipe_sandbox::{SandboxSpec, create_or_adopt};
use serde_json::json;

const ATTACH_TIMEOUT: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    if sandpipe_sandbox::is_sandbox_init() {
        return sandpipe_sandbox::sandbox_init_main();
    }
    let arguments: Vec<String> = std::env::args().collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[1..] {
        ["agent", spec] => agent(spec),
        ["worker", mood, family, file] => worker(mood, family.parse().expect("a number"), file),
        ["sleep", ..] => loop {
            std::thread::sleep(Duration::from_secs(1000));
        },
        ["ask", socket] => ask(socket),
        ["probe"] => print(&json!(sandpipe_sandbox::probe_isolation())),
        _ => panic!("what? {arguments:?}"),
    }
    ExitCode::SUCCESS
}

fn print(value: &serde_json::Value) {
    let mut out = std::io::stdout().lock();
    // A test that has seen enough may have closed the pipe.
    let _ = writeln!(out, "{value}").and_then(|()| out.flush());
}

fn agent(spec: &str) {
    let spec: SandboxSpec = serde_json::from_str(spec).expect("the test wrote it");
    let mut handle = match create_or_adopt(&spec) {
        Ok(handle) => handle,
        Err(error) => return print(&json!({ "error": error.to_string() })),
    };
    let socket = handle.take_attach_socket().expect("first time");
    let attached = Participant::attach(socket, FamilyIndex::AGENT, ATTACH_TIMEOUT);
    print(&json!({
        "adopted": handle.adopted,
        "same_spec": handle.same_spec,
        "epoch": handle.epoch,
        "init": pid_of(handle.init_pidfd().as_raw_fd()),
        "attached": attached.as_ref().err().map(ToString::to_string),
    }));
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["status"] => match handle.status() {
                Ok(status) => print(&json!(status)),
                Err(error) => print(&json!({ "error": error.to_string() })),
            },
            ["quarantine", worker, reason] => {
                let worker = worker.parse().expect("a number");
                let error = handle.quarantine(worker, reason).err();
                print(&json!({ "error": error.map(|error| error.to_string()) }));
            }
            ["shutdown", ms] => {
                let timeout = Duration::from_millis(ms.parse().expect("a number"));
                let error = handle
                    .shutdown(timeout)
                    .err()
                    .map(|error| error.to_string());
                print(&json!({ "error": error }));
            }
            _ => panic!("what? {line}"),
        }
    }
}

fn pid_of(pidfd: i32) -> Option<i32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{pidfd}")).ok()?;
    info.lines()
        .find_map(|line| line.strip_prefix("Pid:"))?
        .trim()
        .parse()
        .ok()
}

/// Answers that nobody asked for, until init has had enough.
fn storm(participant: &Participant, file: &str) {
    std::thread::sleep(Duration::from_millis(200));
    let sent =
        (0..100_000).map_while(|_| sandpipe::socket::send(participant.as_fd(), &[6], &[]).ok());
    let sent = sent.count().to_string();
    std::fs::write(format!("{file}.sent"), sent).expect("the test's directory");
}

/// A grain that would be its own sandbox's agent.
fn usurp(file: &str) {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket};
    let path = std::path::Path::new(file).with_file_name("run/app/sock");
    let address = SocketAddrUnix::new(&path).expect("a short path");
    let control = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).expect("a socket");
    let said = connect(&control, &address)
        .map_err(std::io::Error::from)
        .and_then(|()| sandpipe::socket::send(&control, br#"{"request":"claim"}"#, &[]))
        .and_then(|()| sandpipe::socket::receive(&control, true));
    let said = match said {
        Ok((bytes, _)) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => error.to_string(),
    };
    let said = format!("answer: {said}");
    std::fs::write(format!("{file}.said"), said).expect("the test's directory");
}

/// The descriptor that init gave us: duplicated through a pidfd of our own, which needs no unsafe
/// code.
fn attach_socket() -> OwnedFd {
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
    let own = pidfd_open(getpid(), PidfdFlags::empty()).expect("our own pidfd");
    pidfd_getfd(own, 3, PidfdGetfdFlags::empty()).expect("init gave us this descriptor")
}

fn worker(mood: &str, family: u16, file: &str) {
    let count = count_start(file);
    if mood == "broken" {
        eprintln!("Traceback of start {count}: No module named 'nowhere'");
        std::process::exit(3);
    }
    if mood == "loud" {
        eprintln!("loading, start {count}");
    }
    let (mut participant, mut bus) =
        Participant::attach(attach_socket(), FamilyIndex(family), ATTACH_TIMEOUT)
            .unwrap_or_else(|error| panic!("attach: {error}"));
    let marker = File::create(format!("{file}.beat")).expect("the test's directory");
    match mood {
        "orphans" => leave_orphans(20),
        "storming" => storm(&participant, file),
        "usurping" => usurp(file),
        "family" => {
            // Its family: a child, and a daemon that left its session and its parent.
            spawn_sleeper(file);
            let daemon = format!("setsid {} sleep {file} &", own_path());
            Command::new("sh")
                .args(["-c", &daemon])
                .status()
                .expect("sh runs");
        }
        _ => {}
    }
    let began = Instant::now();
    let (mut beats, mut last, mut longest, mut updates) = (0u64, began, Duration::ZERO, 0u64);
    loop {
        std::thread::sleep(Duration::from_millis(1));
        let updated = participant.update(&mut bus);
        updates += u64::from(updated.unwrap_or_else(|error| panic!("update: {error}")));
        let now = Instant::now();
        longest = longest.max(now - last);
        last = now;
        beats += 1;
        let words = [beats, longest.as_micros() as u64, updates]
            .map(u64::to_le_bytes)
            .concat();
        marker.write_all_at(&words, 0).expect("24 bytes");
        if mood == "crashing" && began.elapsed() > Duration::from_millis(20) {
            eprintln!("crash {count}");
            std::process::exit(7);
        }
    }
}

/// Adds a line with the time to the worker's file and returns how many there are.
fn count_start(file: &str) -> usize {
    let mut log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(file)
        .expect("test's file");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    writeln!(log, "{}", now.expect("after 1970").as_millis()).expect("one line");
    std::fs::read_to_string(file)
        .expect("test's file")
        .lines()
        .count()
}

fn own_path() -> String {
    std::env::current_exe()
        .expect("/proc")
        .display()
        .to_string()
}

fn spawn_sleeper(file: &str) {
    let child = Command::new(own_path())
        .args(["sleep", file])
        .spawn()
        .expect("our own program");
    // Never waited for: it is to outlive its parent.
    std::mem::forget(child);
}

fn leave_orphans(count: usize) {
    for _ in 0..count {
        Command::new("sh")
            .args(["-c", "(sleep 0.05 &)"])
            .status()
            .expect("sh runs");
    }
}

/// Connects to a sandbox's socket and asks for its state, as anybody could.
fn ask(socket: &str) {
    use rustix::net::{
        AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketType, connect, recv, send,
    };
    let asked = || -> std::io::Result<String> {
        let fd = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None)?;
        connect(&fd, &SocketAddrUnix::new(socket)?)?;
        send(&fd, br#"{"request":"status"}"#, SendFlags::NOSIGNAL)?;
        let mut buffer = vec![0; 200_000];
        let (read, _) = recv(&fd, &mut buffer[..], RecvFlags::empty())?;
        Ok(String::from_utf8_lossy(&buffer[..read]).into_owned())
    };
    match asked() {
        Ok(answer) => print(&json!({ "answer": answer })),
        Err(error) => print(&json!({ "error": error.to_string() })),
    }
}

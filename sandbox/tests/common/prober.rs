//! `sandbox-prober FILE ORDER…` obeys each order (`verb` or `verb:argument`), writes
//! `{ORDER: outcome}` to FILE, and sleeps. An outcome is 0, an error number, or what was seen.
#![allow(
    unsafe_code,
    reason = "the system calls that a grain must not make are raw ones"
)]

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

fn main() -> ExitCode {
    if sandpipe_sandbox::is_launcher() {
        return sandpipe_sandbox::launcher_main();
    }
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().expect("a file");
    let mut kept = Kept::default();
    let said: serde_json::Map<String, Value> = arguments
        .map(|order| {
            let (verb, argument) = order.split_once(':').unwrap_or((&order, ""));
            let argument = match argument.contains('@') {
                true => argument.replace('@', &other().to_string()),
                false => argument.to_owned(),
            };
            let outcome = kept.obey(verb, &argument);
            (order, outcome)
        })
        .collect();
    let whole = format!("{file}.part");
    std::fs::write(&whole, Value::Object(said).to_string()).expect("the test's directory");
    std::fs::rename(whole, file).expect("the test's directory");
    loop {
        std::thread::sleep(Duration::from_secs(1000));
    }
}

/// The first process here that is neither init nor this one.
fn other() -> u32 {
    let pids = std::fs::read_dir("/proc").expect("/proc").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let others = pids.filter(|pid| ![1, std::process::id()].contains(pid));
    others.min().expect("a neighbour was started before")
}

/// What must stay for as long as the prober lives.
#[derive(Default)]
struct Kept {
    listeners: Vec<UnixListener>,
    files: Vec<File>,
}

fn outcome(result: io::Result<impl Sized>) -> Value {
    match result {
        Ok(_) => json!(0),
        Err(error) => error
            .raw_os_error()
            .map_or_else(|| json!(error.to_string()), |number| json!(number)),
    }
}

fn checked(result: i64) -> io::Result<i64> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

impl Kept {
    fn obey(&mut self, verb: &str, argument: &str) -> Value {
        let number = argument.parse::<i64>().unwrap_or(0);
        match verb {
            "text" => std::fs::read_to_string(argument)
                .map_or_else(|e| outcome(Err::<(), _>(e)), |t| json!(t)),
            "read" => outcome(File::open(argument)),
            "list" => outcome(std::fs::read_dir(argument)),
            "write" => outcome(OpenOptions::new().create(true).append(true).open(argument)),
            "run" => outcome(std::process::Command::new(argument).output()),
            "write-link" => outcome(OpenOptions::new().write(true).open(argument)),
            "give-up" => give_up(argument),
            "descriptors" => descriptors(),
            "unix" => outcome(UnixStream::connect(argument)),
            "listen-abstract" => self.listen(argument),
            "tcp" => outcome(TcpStream::connect(argument)),
            "abstract" => {
                let address = SocketAddr::from_abstract_name(argument);
                outcome(address.and_then(|address| UnixStream::connect_addr(&address)))
            }
            "fill" => fill(argument),
            "opens" => self.open_many(number),
            "forks" => fork_many(number),
            "threads" => outcome(std::thread::Builder::new().spawn(|| {}).map(|t| t.join())),
            _ => outcome(call(verb, number)),
        }
    }

    fn listen(&mut self, name: &str) -> Value {
        let bound = SocketAddr::from_abstract_name(name)
            .and_then(|address| UnixListener::bind_addr(&address));
        outcome(bound.map(|listener| self.listeners.push(listener)))
    }

    /// How many files could be opened, and what stopped it.
    fn open_many(&mut self, most: i64) -> Value {
        for count in 0..most {
            match File::open("/dev/null") {
                Ok(file) => self.files.push(file),
                Err(error) => {
                    self.files.clear();
                    return json!([count, error.raw_os_error()]);
                }
            }
        }
        json!([most, null])
    }
}

/// Gives up what an agent does: `RUN,DATA,READ,NETWORK`, the third for whatever it may if it is
/// empty, the last "network" for one that connects. What was given up, and what was not with the
/// reason.
fn give_up(argument: &str) -> Value {
    let mut paths = argument.split(',');
    let mut next = || paths.next().expect("three paths and a word");
    let (run_dir, data_dir, read) = (next().into(), next().into(), next());
    let connects = next() == "network";
    let rights = sandpipe_sandbox::AgentRights {
        run_dir,
        data_dir,
        read: (!read.is_empty()).then(|| vec![read.into()]),
        connects,
    };
    let mut report = sandpipe_sandbox::give_up_rights(&rights);
    report.push(sandpipe_sandbox::bound_calls(connects));
    let items = report.into_iter().map(|item| {
        let off = item.state == sandpipe_sandbox::IsolationState::Off;
        (item.name, off.then_some(item.reason))
    });
    json!(items.collect::<std::collections::BTreeMap<_, _>>())
}

/// How many bytes went into one file, and what stopped it.
fn fill(directory: &str) -> Value {
    let block = vec![7u8; 1 << 20];
    let mut bytes = 0;
    let mut file = match File::create(format!("{directory}/filler")) {
        Ok(file) => file,
        Err(error) => return json!([0, error.raw_os_error()]),
    };
    while bytes < 10 << 30 {
        match file.write(&block) {
            Ok(written) => bytes += written as u64,
            Err(error) => return json!([bytes, error.raw_os_error()]),
        }
    }
    json!([bytes, null])
}

/// How many children could be had at once, and what stopped it; they stay.
fn fork_many(most: i64) -> Value {
    for count in 0..most {
        // SAFETY: this process has one thread; the child only sleeps.
        match unsafe { libc::fork() } {
            0 => loop {
                // SAFETY: waits for a signal.
                unsafe { libc::pause() };
            },
            ..0 => return json!([count, io::Error::last_os_error().raw_os_error()]),
            _ => {}
        }
    }
    json!([most, null])
}

/// What stands behind each descriptor of this process.
fn descriptors() -> Value {
    let mut found = serde_json::Map::new();
    for number in 0..4096 {
        if let Ok(target) = std::fs::read_link(format!("/proc/self/fd/{number}")) {
            found.insert(number.to_string(), json!(target.to_string_lossy()));
        }
    }
    Value::Object(found)
}

/// Makes a system call with arguments that do nothing where it is let in.
fn call(name: &str, argument: i64) -> io::Result<i64> {
    let bad = -1_i64;
    let own = i64::from(std::process::id());
    let mut word = 0u64;
    let local = libc::iovec {
        iov_base: (&raw mut word).cast(),
        iov_len: 8,
    };
    let local = &raw const local as i64;
    let (number, arguments) = match name {
        "kill" => (libc::SYS_kill, [argument, 0, 0, 0, 0, 0]),
        "terminate" => (libc::SYS_kill, [argument, 15, 0, 0, 0, 0]),
        "vm-read" => (
            libc::SYS_process_vm_readv,
            [argument, local, 1, local, 1, 0],
        ),
        "vm-write" => (
            libc::SYS_process_vm_writev,
            [argument, local, 1, local, 1, 0],
        ),
        "ptrace" => (libc::SYS_ptrace, [0x4206, argument, 0, 0, 0, 0]),
        "get-descriptor" => {
            // SAFETY: plain numbers.
            let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, argument, 0) };
            (libc::SYS_pidfd_getfd, [checked(pidfd)?, 3, 0, 0, 0, 0])
        }
        "sysv-make" => (libc::SYS_shmget, [argument, 4096, 0o1600, 0, 0, 0]),
        "sysv" => (libc::SYS_shmget, [argument, 4096, 0o600, 0, 0, 0]),
        "socket" => (
            libc::SYS_socket,
            [argument, libc::SOCK_STREAM as i64, 0, 0, 0, 0],
        ),
        "personality" => (libc::SYS_personality, [argument, 0, 0, 0, 0, 0]),
        // A child that ends at once, with these flags beside its signal.
        "clone" => return clone(argument),
        "ioctl" => (libc::SYS_ioctl, [0, argument, 0, 0, 0, 0]),
        "prctl" => (libc::SYS_prctl, [argument, 0, 0, 0, 0, 0]),
        "set-user" => (libc::SYS_setuid, [argument, 0, 0, 0, 0, 0]),
        // Any number; what it points to is nowhere.
        "call" => (argument, [bad, bad, bad, bad, bad, bad]),
        "ptrace-self" => (libc::SYS_ptrace, [0x4206, own, 0, 0, 0, 0]),
        _ => panic!("what? {name}"),
    };
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: every pointer among the arguments is of this frame, or leads nowhere, which the
    // kernel answers with EFAULT.
    checked(unsafe { libc::syscall(number, a, b, c, d, e, f) })
}

fn clone(flags: i64) -> io::Result<i64> {
    let flags = flags | i64::from(libc::SIGCHLD);
    // SAFETY: without CLONE_VM this is a fork; the child leaves at once.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    if pid == 0 {
        // SAFETY: leaves the child.
        unsafe { libc::_exit(0) };
    }
    checked(pid)
}

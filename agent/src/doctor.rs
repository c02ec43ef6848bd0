//! Checks of the machine, each by use.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sandpipe::futex;
use sandpipe::lease::{Lease, LeaseState, lease_state};
use sandpipe::wait::{Loop, WaiterKind, Watched};
use sandpipe::{ChunkClass, FamilyIndex, FamilySpec, Guardian, SlotIndex, Target, Topology};
use serde::Serialize;

/// One thing, and whether it works here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What it is.
    pub name: String,
    /// Whether it worked just now.
    pub ok: bool,
    /// How, or why not.
    pub reason: String,
    /// What to do; empty if there is nothing to do.
    pub remedy: String,
    /// Nothing runs without it.
    pub needed: bool,
}

type Tried = Result<String, String>;

/// All checks. Blocks for some hundred milliseconds. `directory` is where a log would be.
#[must_use]
pub fn checks(directory: &Path) -> Vec<Check> {
    let mut all = vec![
        needed("memfd seals", seals(), "run Linux 5.1 or newer"),
        needed(
            "futex",
            futex_wakes(),
            "run a Linux kernel with CONFIG_FUTEX",
        ),
        optional(
            "robust futex lease",
            lease(),
            "use glibc; without leases a death is seen by waitid only, some milliseconds later",
        ),
        needed(
            "shared memory segments",
            segments(),
            "raise the memory limit of this process",
        ),
        optional(
            "io_uring",
            io_uring(),
            "sysctl kernel.io_uring_disabled=0, Linux 6.7 or newer, a container that permits it; \
             without it workers wait by futex and epoll",
        ),
        optional(
            "huge pages",
            huge_pages(),
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        ),
        needed(
            "disk sync",
            disk_sync(directory),
            "choose a disk with --data-dir",
        ),
        optional(
            "java",
            java(),
            "apt-get install openjdk-17-jre-headless (for a local Kafka only)",
        ),
        optional(
            "kafka",
            kafka(),
            "scripts/kafka start, or set KAFKA_BOOTSTRAP=host:port",
        ),
        optional(
            "root",
            root(),
            "run as root for cgroups and namespaces without a user namespace",
        ),
    ];
    all.extend(
        sandpipe_sandbox::probe_isolation()
            .into_iter()
            .map(|probe| Check {
                name: probe.name,
                ok: probe.ok,
                reason: probe.reason,
                remedy: probe.remedy,
                needed: false,
            }),
    );
    all
}

fn needed(name: &str, tried: Tried, remedy: &str) -> Check {
    Check {
        needed: true,
        ..optional(name, tried, remedy)
    }
}

fn optional(name: &str, tried: Tried, remedy: &str) -> Check {
    let (ok, reason, remedy) = match tried {
        Ok(how) => (true, how, String::new()),
        Err(why) => (false, why, remedy.to_owned()),
    };
    Check {
        name: name.into(),
        ok,
        reason,
        remedy,
        needed: false,
    }
}

/// A sealed segment refuses another writer.
fn seals() -> Tried {
    use rustix::fs::{SealFlags, fcntl_get_seals};
    let text = |error: std::io::Error| error.to_string();
    let fd = sandpipe::segment::create("sandpipe-doctor", 4096).map_err(text)?;
    sandpipe::segment::seal(&fd).map_err(text)?;
    let seals = fcntl_get_seals(&fd).map_err(|error| error.to_string())?;
    if !seals.contains(SealFlags::FUTURE_WRITE) {
        return Err("F_SEAL_FUTURE_WRITE is not kept".into());
    }
    match rustix::io::write(&fd, b"x") {
        Err(_) => Ok("a sealed segment takes no other writer".into()),
        Ok(_) => Err("a sealed segment can still be written".into()),
    }
}

/// A word that another thread moves and rings in a moment.
fn soon_rung() -> (Arc<AtomicU64>, JoinHandle<()>) {
    let word = Arc::new(AtomicU64::new(0));
    let waker = Arc::clone(&word);
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(5));
        waker.store(1, Ordering::SeqCst);
        futex::wake(&waker, 1);
    });
    (word, thread)
}

/// One thread wakes another.
fn futex_wakes() -> Tried {
    let (word, thread) = soon_rung();
    let begin = Instant::now();
    while word.load(Ordering::SeqCst) == 0 && begin.elapsed() < Duration::from_secs(2) {
        futex::wait(&word, 0, Duration::from_secs(1));
    }
    let took = begin.elapsed();
    thread
        .join()
        .map_err(|_| "the waking thread has panicked".to_owned())?;
    if took < Duration::from_secs(1) {
        Ok(String::new())
    } else {
        Err("a wake was lost".into())
    }
}

/// A guardian makes the segment of a family, as in each sandbox.
fn segments() -> Tried {
    let guardian = small_sandbox()?;
    let bytes = guardian.topology().layout(FamilyIndex(1)).bytes;
    Ok(format!("{bytes} bytes for a small family"))
}

/// The kernel marks the lease of a thread that has ended.
fn lease() -> Tried {
    let guardian = small_sandbox()?;
    let (family, slot) = (FamilyIndex(1), SlotIndex(0));
    let bus = guardian.view(family).ok_or("no segment")?;
    let holder = bus.clone();
    let held = std::thread::spawn(move || Lease::hold(&holder, slot).map(|_| ()));
    let held = held.join().map_err(|_| "the holder panicked")?;
    held.map_err(|error| error.to_string())?;
    match lease_state(&bus, family, slot) {
        Some(LeaseState::Died) => Ok("a robust futex tells of a thread's end".into()),
        state => Err(format!("the end of a thread was not marked: {state:?}")),
    }
}

/// A guardian that has made the segment of one grain.
fn small_sandbox() -> Result<Guardian, String> {
    let chunks = vec![ChunkClass {
        bytes: 4096,
        count: 8,
    }];
    let agent = FamilySpec {
        slots: 1,
        targets: Vec::new(),
        chunks: chunks.clone(),
    };
    let target = Target {
        queue: FamilyIndex::AGENT,
        lane_slots: 8,
    };
    let grain = FamilySpec {
        slots: 2,
        targets: vec![target],
        chunks,
    };
    let topology = Topology::new(vec![agent, grain]).map_err(|error| error.to_string())?;
    let mut guardian = Guardian::new(topology).map_err(|error| error.to_string())?;
    guardian
        .make_family(FamilyIndex(1))
        .map_err(|error| error.to_string())?;
    Ok(guardian)
}

/// A ring, restricted as the processes here restrict theirs, on which a thread wakes another.
fn io_uring() -> Tried {
    let path = "/proc/sys/kernel/io_uring_disabled";
    let mut waiter = WaiterKind::IoUring.open(Loop::Own).map_err(|error| {
        let disabled = std::fs::read_to_string(path).unwrap_or_else(|_| "not there".into());
        format!("{error} ({path} is {})", disabled.trim())
    })?;
    let (word, thread) = soon_rung();
    let begin = Instant::now();
    let mut rung = Ok(false);
    while matches!(rung, Ok(false)) && begin.elapsed() < Duration::from_secs(2) {
        let words = [Watched {
            word: &word,
            seen: 0,
        }];
        rung = waiter.wait(&words, Duration::from_secs(2), &mut Vec::new());
    }
    let joined = thread.join();
    joined.map_err(|_| "the waking thread has panicked".to_owned())?;
    match rung {
        Ok(true) => Ok("a thread was woken on a futex through a restricted ring".into()),
        Ok(false) => Err("a wake through the ring was lost".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// Memory that is advised huge pages gets some.
fn huge_pages() -> Tried {
    let path = "/sys/kernel/mm/transparent_hugepage/enabled";
    let policy = std::fs::read_to_string(path).unwrap_or_else(|_| "not there".into());
    match sandpipe::huge_pages::granted() {
        Ok(0) => Err(format!("none were given ({path}: {})", policy.trim())),
        Ok(bytes) => Ok(format!("{} KiB of 4 MiB were backed by them", bytes >> 10)),
        Err(error) => Err(error.to_string()),
    }
}

/// How long it takes until 1 KiB is durable: what a backup waits for.
fn disk_sync(directory: &Path) -> Tried {
    let text = |error: std::io::Error| format!("{}: {error}", directory.display());
    std::fs::create_dir_all(directory).map_err(text)?;
    let path = directory.join(format!(".sandpipe-doctor-{}", std::process::id()));
    let mut file = std::fs::File::create(&path).map_err(text)?;
    let mut times = Vec::new();
    let mut tried = Ok(());
    for _ in 0..20 {
        let begin = Instant::now();
        tried = file.write_all(&[7; 1024]).and_then(|()| file.sync_data());
        times.push(begin.elapsed());
        if tried.is_err() {
            break;
        }
    }
    let _ = std::fs::remove_file(&path);
    tried.map_err(text)?;
    times.sort();
    let median = times[times.len() / 2].as_micros();
    Ok(format!(
        "{median} µs for 1 KiB in {} (median of 20)",
        directory.display()
    ))
}

fn java() -> Tried {
    let output = Command::new("java").arg("-version").output();
    let output = output.map_err(|error| format!("java: {error}"))?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = text.lines().next().unwrap_or_default().to_owned();
    let version = line
        .split('"')
        .nth(1)
        .and_then(|v| v.split('.').next()?.parse::<u32>().ok());
    match version {
        Some(17..) => Ok(line),
        _ => Err(format!("Kafka 4 needs Java 17 or newer: {line}")),
    }
}

fn kafka() -> Tried {
    let place = std::env::var("KAFKA_BOOTSTRAP").unwrap_or_else(|_| "127.0.0.1:9092".into());
    let first = place.split(',').next().unwrap_or_default().to_owned();
    let address = std::net::ToSocketAddrs::to_socket_addrs(&first)
        .ok()
        .and_then(|mut found| found.next())
        .ok_or_else(|| format!("{first} is no address"))?;
    std::net::TcpStream::connect_timeout(&address, Duration::from_millis(500))
        .map(|_| format!("something listens at {first}"))
        .map_err(|error| {
            format!("nothing answers at {first} ({error}); the embedded bus needs none")
        })
}

fn root() -> Tried {
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        Ok(String::new())
    } else {
        Err(format!("uid {}", uid.as_raw()))
    }
}

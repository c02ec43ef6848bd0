//! Nothing left: descriptors, address space, memory for pages. Each is an error by name, and no
//! SIGBUS comes after an attach that succeeded.

use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::time::Duration;

use sandpipe::{
    ChunkClass, FamilyIndex, FamilySpec, Guardian, Mapping, Memory, Participant, Reaction, Target,
    Topology, socket,
};

use crate::sandbox::exit;

const GRAIN: FamilyIndex = FamilyIndex(1);

/// How an attempt in a child process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Attached,
    TypedError,
}

/// Runs `attempt` in a child that has no descriptors but its standard ones.
fn in_child(limit: impl FnOnce(), attempt: impl FnOnce() -> Result<(), String>) -> End {
    // SAFETY: the child runs test code only and ends with _exit.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: closes descriptors that only the parent's threads use.
        unsafe { libc::close_range(3, u32::MAX, 0) };
        limit();
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(attempt));
        exit(match caught {
            Ok(Ok(())) => 0,
            Ok(Err(_)) => 1,
            Err(_) => 2,
        });
    }
    let mut status = 0;
    // SAFETY: waits for the own child.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    match (libc::WIFEXITED(status), libc::WEXITSTATUS(status)) {
        (true, 0) => End::Attached,
        (true, 1) => End::TypedError,
        _ => panic!("neither attached nor a typed error: wait status {status:#x}"),
    }
}

fn topology(chunk_bytes: u64) -> Topology {
    let family = |queue: FamilyIndex| FamilySpec {
        slots: 1,
        targets: vec![Target {
            queue,
            lane_slots: 8,
        }],
        chunks: vec![ChunkClass {
            bytes: chunk_bytes,
            count: 1,
        }],
    };
    Topology::new(vec![family(GRAIN), family(FamilyIndex::AGENT)]).unwrap()
}

/// A whole attach of a grain whose agent is there: guardian, socket, segments of both.
fn attach(topology: Topology) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let mut guardian = Guardian::new(topology).map_err(|e| text(&e))?;
    for family in [FamilyIndex::AGENT, GRAIN] {
        guardian.make_family(family).map_err(|e| text(&e))?;
    }
    let flags = rustix::net::SocketFlags::CLOEXEC;
    let kind = rustix::net::SocketType::SEQPACKET;
    let unix = rustix::net::AddressFamily::UNIX;
    let pair = rustix::net::socketpair(unix, kind, flags, None);
    let (ours, theirs) = pair.map_err(|e| text(&e))?;
    let join = move || Participant::attach(theirs, GRAIN, Duration::from_secs(20));
    let thread = std::thread::Builder::new().spawn(join);
    let thread = thread.map_err(|e| text(&e))?;
    let served = serve(&mut guardian, &ours);
    drop(ours);
    let joined = thread.join().map_err(|_| exit(3));
    let (_participant, bus) = joined.unwrap_or_else(|()| exit(3)).map_err(|e| text(&e))?;
    served.map_err(|e| text(&e))?;
    // Attached: every control word can be touched.
    let own = bus.segment(GRAIN).expect("the own segment");
    for at in (0..bus.own_layout().control_bytes).step_by(64) {
        own.word(at)
            .fetch_add(0, std::sync::atomic::Ordering::SeqCst);
    }
    Ok(())
}

fn serve(guardian: &mut Guardian, socket: &rustix::fd::OwnedFd) -> io::Result<()> {
    loop {
        let (bytes, _) = socket::receive(socket, true)?;
        match guardian.handle(GRAIN, &bytes)? {
            Reaction::Reply(bytes, fds) => socket::send(socket, &bytes, &fds)?,
            Reaction::Sealed => {
                let (bytes, fds) = guardian.peers_message(GRAIN);
                socket::send(socket, &bytes, &fds)?;
            }
            _ => return Ok(()),
        }
    }
}

fn set_limit(what: libc::__rlimit_resource_t, soft: u64) {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: reads and lowers a limit of the own process.
    unsafe {
        libc::getrlimit(what, &raw mut limit);
        limit.rlim_cur = soft.min(limit.rlim_max);
        libc::setrlimit(what, &raw const limit);
    }
}

#[test]
fn whatever_descriptor_is_missing_the_attach_fails_by_name_or_succeeds() {
    let mut ends = Vec::new();
    for files in 3..=20 {
        let end = in_child(
            || set_limit(libc::RLIMIT_NOFILE, files),
            || attach(topology(4096)),
        );
        ends.push(end);
    }
    let first = ends.iter().position(|end| *end == End::Attached);
    let first = first.expect("twenty descriptors are enough");
    assert!(first >= 5, "hints, two segments, two socket ends");
    assert!(
        ends[first..].iter().all(|end| *end == End::Attached),
        "{ends:?}"
    );
}

#[test]
fn a_failed_attach_and_ten_thousand_good_ones_leave_no_descriptor() {
    let rounds = if std::env::var_os("SANDPIPE_FULL").is_some() {
        10_000
    } else {
        500
    };
    let end = in_child(
        || {},
        || {
            let before = crate::handshake::open_files();
            for files in 3..=20 {
                set_limit(libc::RLIMIT_NOFILE, files);
                let _ = attach(topology(4096));
            }
            set_limit(libc::RLIMIT_NOFILE, 1024);
            for _ in 0..rounds {
                attach(topology(4096))?;
            }
            let after = crate::handshake::open_files();
            assert_eq!(after, before);
            Ok(())
        },
    );
    assert_eq!(end, End::Attached);
}

#[test]
fn without_address_space_each_mapping_fails_by_name() {
    if std::env::var_os("SANDPIPE_ASAN").is_some() {
        eprintln!("SKIP without_address_space_each_mapping_fails_by_name: the sanitizer needs it");
        return;
    }
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = pages.split(' ').next().unwrap().parse().unwrap();
    let (mut ends, mib) = (Vec::new(), 1 << 20);
    for step in 0..=9 {
        let bytes = pages * 4096 + (32 + step * 48) * mib;
        ends.push(in_child(
            || set_limit(libc::RLIMIT_AS, bytes),
            || attach(topology(64 * mib)),
        ));
    }
    assert_eq!(ends[0], End::TypedError, "{ends:?}");
    assert_eq!(ends[9], End::Attached, "{ends:?}");
    let first = ends.iter().position(|end| *end == End::Attached).unwrap();
    assert!(first >= 3, "four mappings of 64 MiB: {ends:?}");
}

#[test]
fn on_a_full_file_system_the_mapping_fails_by_name_and_nothing_ends_by_a_signal() {
    // SAFETY: tells the own user.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("SKIP on_a_full_file_system: mounting a small tmpfs needs root");
        return;
    }
    let end = in_child(small_tmpfs, || {
        let mut files = std::fs::File::options();
        files.read(true).write(true).create(true).truncate(true);
        let file = files.open("/tmp/segment").map_err(|e| e.to_string())?;
        file.set_len(1 << 20).map_err(|e| e.to_string())?;
        assert!(file.as_raw_fd() > 2);
        let error = Mapping::new(&file, 1 << 20, true, 1 << 20).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::OutOfMemory, "{error}");
        // What was granted at the attach can be used, whatever happens elsewhere.
        file.set_len(0).map_err(|e| e.to_string())?;
        file.set_len(1 << 20).map_err(|e| e.to_string())?;
        let granted = 32 << 10;
        let mapping = Mapping::new(&file, 1 << 20, true, granted).unwrap();
        let mut filler = files.open("/tmp/filler").map_err(|e| e.to_string())?;
        let full = io::copy(&mut io::repeat(1).take(1 << 20), &mut filler).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        for at in (0..granted).step_by(8) {
            mapping
                .word(at)
                .store(1, std::sync::atomic::Ordering::SeqCst);
        }
        Ok(())
    });
    assert_eq!(end, End::Attached);
}

/// 64 KiB at /tmp, in a mount namespace of the own.
fn small_tmpfs() {
    // SAFETY: system calls about the own process with constant strings.
    unsafe {
        let none = std::ptr::null();
        let private = libc::MS_REC | libc::MS_PRIVATE;
        let made = libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(none, c"/".as_ptr(), none, private, none.cast()) == 0
            && libc::mount(
                c"t".as_ptr(),
                c"/tmp".as_ptr(),
                c"tmpfs".as_ptr(),
                0,
                c"size=64k".as_ptr().cast(),
            ) == 0;
        if !made {
            exit(4);
        }
    }
}

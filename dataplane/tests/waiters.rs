//! One suite for the three waiters: each test runs on io_uring, futex and spin.
#![allow(unsafe_code, reason = "fork, for children whose end is awaited")]

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use sandpipe::futex;
use sandpipe::wait::{Loop, Waiter, WaiterKind, Watched};

/// Far more than anything here takes: a wait that lasts so long has missed something.
const WATCHDOG: Duration = Duration::from_secs(20);
const SOON: Duration = Duration::from_millis(5);

/// Each kind that this machine has.
fn waiters() -> impl Iterator<Item = Box<dyn Waiter>> {
    WaiterKind::ALL.into_iter().filter_map(|kind| {
        let opened = kind.open(Loop::Own);
        if let (WaiterKind::IoUring, Err(error)) = (kind, &opened) {
            eprintln!("SKIP waiters on io_uring: {error}");
            return None;
        }
        Some(opened.unwrap())
    })
}

fn watched(word: &AtomicU64, seen: u32) -> Watched<'_> {
    Watched { word, seen }
}

/// Waits once; what was ready, whether a word was, and whether it came before the watchdog.
fn wait_once(waiter: &mut dyn Waiter, words: &[Watched<'_>]) -> (Vec<u64>, bool) {
    let mut ready = Vec::new();
    let begin = Instant::now();
    let rung = loop {
        let rung = waiter.wait(words, WATCHDOG, &mut ready).unwrap();
        if rung || !ready.is_empty() {
            break rung;
        }
        assert!(
            begin.elapsed() < WATCHDOG,
            "{:?} has slept on",
            waiter.kind()
        );
    };
    (ready, rung)
}

/// Moves a word and wakes its sleeper, a little later.
fn ring_later(word: &Arc<AtomicU64>) -> thread::JoinHandle<()> {
    let word = Arc::clone(word);
    thread::spawn(move || {
        thread::sleep(SOON);
        word.fetch_add(1, Ordering::SeqCst);
        futex::wake(&word, 1);
    })
}

fn pair() -> (OwnedFd, OwnedFd) {
    let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
    (one.into(), other.into())
}

/// A child that ends with `code` once the returned descriptor is closed or written.
fn child(code: i32) -> (i32, OwnedFd) {
    let (theirs, ours) = pair();
    // SAFETY: the child makes system calls only, and ends without running anything of this
    // process.
    match unsafe { libc::fork() } {
        0 => {
            let mut byte = [0];
            drop(ours);
            let _ = rustix::io::read(&theirs, &mut byte);
            // SAFETY: ends the process.
            unsafe { libc::_exit(code) }
        }
        pid => {
            assert!(pid > 0);
            (pid, ours)
        }
    }
}

fn exit_code_of(pid: i32) -> i32 {
    let id = WaitId::Pid(Pid::from_raw(pid).unwrap());
    let status = waitid(id, WaitIdOptions::EXITED).unwrap().unwrap();
    status.exit_status().unwrap()
}

#[test]
fn a_word_that_has_moved_already_ends_the_wait() {
    for mut waiter in waiters() {
        let word = AtomicU64::new(7);
        assert_eq!(
            wait_once(&mut *waiter, &[watched(&word, 6)]),
            (vec![], true)
        );
    }
}

#[test]
fn a_ring_ends_the_wait_for_any_of_several_words() {
    for mut waiter in waiters() {
        for count in 1..=4 {
            for rung in 0..count {
                let words: Vec<_> = (0..count).map(|_| Arc::new(AtomicU64::new(0))).collect();
                let thread = ring_later(&words[rung]);
                let all: Vec<_> = words.iter().map(|word| watched(word, 0)).collect();
                assert_eq!(wait_once(&mut *waiter, &all), (vec![], true));
                thread.join().unwrap();
            }
        }
    }
}

#[test]
fn a_wait_ends_when_its_time_is_up() {
    for mut waiter in waiters() {
        let word = AtomicU64::new(0);
        let (fd, _other) = pair();
        waiter.watch(fd.as_fd(), 1).unwrap();
        for words in [&[watched(&word, 0)][..], &[]] {
            let mut ready = Vec::new();
            let begin = Instant::now();
            while begin.elapsed() < SOON {
                assert!(!waiter.wait(words, SOON, &mut ready).unwrap());
            }
            assert_eq!(ready, []);
            assert!(begin.elapsed() < WATCHDOG);
        }
    }
}

#[test]
fn a_descriptor_is_reported_as_long_as_it_is_readable() {
    for mut waiter in waiters() {
        let word = AtomicU64::new(0);
        let (fd, other) = pair();
        waiter.watch(fd.as_fd(), 9).unwrap();
        let writer = thread::spawn(move || {
            thread::sleep(SOON);
            rustix::io::write(&other, b"x").unwrap();
            other
        });
        let words = [watched(&word, 0)];
        for words in [&words[..], &words[..], &[]] {
            assert_eq!(wait_once(&mut *waiter, words), (vec![9], false));
        }
        rustix::io::read(&fd, &mut [0; 8]).unwrap();
        let mut ready = Vec::new();
        // What was on its way may still be told once.
        waiter.wait(&words, SOON, &mut ready).unwrap();
        ready.clear();
        waiter.wait(&words, SOON, &mut ready).unwrap();
        assert_eq!(ready, [], "{:?}", waiter.kind());
        drop(writer.join().unwrap());
        assert_eq!(wait_once(&mut *waiter, &words), (vec![9], false), "closed");
    }
}

#[test]
fn what_is_forgotten_is_reported_no_more_and_its_peer_sees_it_closed() {
    for mut waiter in waiters() {
        let word = AtomicU64::new(0);
        let words = [watched(&word, 0)];
        let (fd, other) = pair();
        waiter.watch(fd.as_fd(), 1).unwrap();
        let mut ready = Vec::new();
        waiter.wait(&words, SOON, &mut ready).unwrap();
        waiter.forget(1).unwrap();
        rustix::io::write(&other, b"x").unwrap();
        waiter.wait(&words, SOON, &mut ready).unwrap();
        waiter.wait(&[], SOON, &mut ready).unwrap();
        assert_eq!(ready, []);
        drop(fd);
        // Its own data was unread, so the peer hears of a reset.
        let read = rustix::io::read(&other, &mut [0; 8]);
        assert!(
            matches!(read, Ok(0) | Err(rustix::io::Errno::CONNRESET)),
            "{read:?}"
        );
        let (silent, other) = pair();
        waiter.watch(silent.as_fd(), 2).unwrap();
        waiter.wait(&words, SOON, &mut ready).unwrap();
        waiter.forget(2).unwrap();
        drop(silent);
        let mut closed = [PollFd::new(&other, PollFlags::IN)];
        let limit = Timespec::try_from(WATCHDOG).unwrap();
        assert_eq!(poll(&mut closed, Some(&limit)), Ok(1), "still open");
    }
}

#[test]
fn the_end_of_a_child_is_reported_once_and_the_child_is_not_reaped() {
    for mut waiter in waiters() {
        let word = AtomicU64::new(0);
        let words = [watched(&word, 0)];
        let (first, end_first) = child(3);
        let (second, end_second) = child(4);
        waiter.watch_child(first, 1).unwrap();
        waiter.watch_child(second, 2).unwrap();
        let mut ready = Vec::new();
        waiter.wait(&words, SOON, &mut ready).unwrap();
        assert_eq!(ready, []);
        drop(end_second);
        assert_eq!(wait_once(&mut *waiter, &words).0, [2]);
        assert_eq!(exit_code_of(second), 4);
        drop(end_first);
        assert_eq!(wait_once(&mut *waiter, &[]).0, [1]);
        waiter.wait(&words, SOON, &mut ready).unwrap();
        assert_eq!(ready, []);
        assert_eq!(exit_code_of(first), 3);
    }
}

#[test]
fn queue_children_socket_and_time_end_one_wait_each_in_any_order() {
    for mut waiter in waiters() {
        let (fd, other) = pair();
        waiter.watch(fd.as_fd(), 1000).unwrap();
        for round in 0..200_u64 {
            let word = Arc::new(AtomicU64::new(0));
            let (pid, end) = child(0);
            waiter.watch_child(pid, round).unwrap();
            let (bell, line) = (Arc::clone(&word), other.try_clone().unwrap());
            let happen = thread::spawn(move || {
                for step in 0..3 {
                    match (step + round) % 3 {
                        0 => {
                            bell.fetch_add(1, Ordering::SeqCst);
                            futex::wake(&bell, 1);
                        }
                        1 => drop(rustix::io::write(&line, b"x").unwrap()),
                        _ => drop(rustix::io::write(&end, b"x").unwrap()),
                    }
                }
            });
            let (mut rung, mut told, mut ended) = (false, false, false);
            while !(rung && told && ended) {
                let seen = u32::from(rung);
                let (ready, moved) = wait_once(&mut *waiter, &[watched(&word, seen)]);
                rung |= moved;
                if ready.contains(&1000) && !told {
                    told = true;
                    rustix::io::read(&fd, &mut [0; 8]).unwrap();
                }
                ended |= ready.contains(&round);
            }
            happen.join().unwrap();
            assert_eq!(exit_code_of(pid), 0);
        }
    }
}

#[test]
fn a_waiter_that_is_awake_swallows_no_wake_of_another() {
    for mut waiter in waiters() {
        let word = Arc::new(AtomicU64::new(0));
        let (fd, other) = pair();
        waiter.watch(fd.as_fd(), 1).unwrap();
        for _ in 0..50 {
            // Woken by something else than the word.
            rustix::io::write(&other, b"x").unwrap();
            let seen = word.load(Ordering::SeqCst) as u32;
            wait_once(&mut *waiter, &[watched(&word, seen)]);
            rustix::io::read(&fd, &mut [0; 8]).unwrap();
            assert_eq!(futex::wake(&word, 1), 0, "{:?} still sleeps", waiter.kind());
        }
    }
}

fn open_rings() -> usize {
    let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let links = links.filter_map(|fd| std::fs::read_link(fd.path()).ok());
    links
        .filter(|link| link.to_string_lossy().contains("io_uring"))
        .count()
}

#[test]
fn a_forked_child_has_neither_the_ring_nor_its_descriptor() {
    let Ok(mut waiter) = WaiterKind::IoUring.open(Loop::Own) else {
        eprintln!("SKIP a_forked_child_has_neither_the_ring_nor_its_descriptor: no io_uring");
        return;
    };
    // Other tests make rings meanwhile, whose descriptors are open for a moment.
    let end = Instant::now() + WATCHDOG;
    while open_rings() > 0 {
        assert!(Instant::now() < end, "a ring's descriptor is open");
    }
    // SAFETY: as in `child`; the wait in the child refuses before it touches the ring.
    match unsafe { libc::fork() } {
        0 => {
            let word = AtomicU64::new(1);
            let refused = waiter.wait(&[watched(&word, 0)], SOON, &mut Vec::new());
            let code = i32::from(refused.is_ok());
            drop(waiter);
            // SAFETY: ends the process.
            unsafe { libc::_exit(code) }
        }
        pid => assert_eq!(exit_code_of(pid), 0, "a child could use its parent's ring"),
    }
    let word = AtomicU64::new(1);
    assert!(
        waiter
            .wait(&[watched(&word, 0)], WATCHDOG, &mut Vec::new())
            .unwrap()
    );
}

#[test]
fn a_forked_child_closes_what_its_parents_threads_wait_on() {
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    // Epoll, its duplicate and the bell of the thread, what is watched; in a foreign loop the door.
    for (whose, held) in [(Loop::Own, 4), (Loop::Foreign, 5)] {
        let mut waiter = WaiterKind::Futex.open(whose).unwrap();
        let (fd, other) = pair();
        waiter.watch(fd.as_fd(), 7).unwrap();
        let word = AtomicU64::new(1);
        assert!(wait_once(&mut *waiter, &[watched(&word, 0)]).1);
        // SAFETY: as in `child`; beyond that it takes from the allocator, which the C library's
        // handlers have made ready.
        match unsafe { libc::fork() } {
            0 => {
                let before = open();
                drop(waiter);
                let code = i32::from(before - open() != held);
                // SAFETY: ends the process.
                unsafe { libc::_exit(code) }
            }
            pid => assert_eq!(exit_code_of(pid), 0, "{whose:?}: a descriptor stays open"),
        }
        // The parent's threads have felt nothing of it.
        rustix::io::write(&other, b"x").unwrap();
        assert_eq!(wait_once(&mut *waiter, &[watched(&word, 1)]).0, [7]);
    }
}

#[test]
fn many_waiters_of_one_thread_give_their_places_back() {
    // A thread's table of rings has 16 places.
    let kinds: Vec<_> = waiters().map(|waiter| waiter.kind()).collect();
    for _ in 0..100 {
        for kind in &kinds {
            let mut waiter = kind.open(Loop::Own).unwrap();
            let word = AtomicU64::new(1);
            assert!(wait_once(&mut *waiter, &[watched(&word, 0)]).1);
        }
    }
}

#[test]
fn what_a_ring_has_armed_interrupts_no_other_system_call() {
    let Ok(mut waiter) = WaiterKind::IoUring.open(Loop::Own) else {
        eprintln!("SKIP what_a_ring_has_armed_interrupts_no_other_system_call: no io_uring");
        return;
    };
    let word = AtomicU64::new(0);
    let (quiet, _open) = pair();
    let name = rustix::net::sockopt::Timeout::Recv;
    rustix::net::sockopt::set_socket_timeout(&quiet, name, Some(SOON * 4)).unwrap();
    // Other things may interrupt a call once; completions at once would do so each time.
    let interrupted = (0..5).filter(|&token| {
        let (armed, trigger) = pair();
        waiter.watch(armed.as_fd(), token).unwrap();
        let words = [watched(&word, 0)];
        waiter.wait(&words, SOON, &mut vec![]).unwrap();
        let writer = thread::spawn(move || {
            thread::sleep(SOON);
            rustix::io::write(&trigger, b"x").unwrap();
            trigger
        });
        // It becomes readable while this thread waits for something else.
        let received = rustix::io::read(&quiet, &mut [0; 1]);
        writer.join().unwrap();
        assert_eq!(wait_once(&mut *waiter, &words).0, [token]);
        waiter.forget(token).unwrap();
        received == Err(rustix::io::Errno::INTR)
    });
    let interrupted = interrupted.count();
    assert!(interrupted < 5, "{interrupted} of 5 calls were interrupted");
}

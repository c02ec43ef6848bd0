//! Calls that block, on a thread whose ring completes at once and so interrupts them (EINTR).

use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use sandpipe::socket;
use sandpipe::wait::{Loop, Waiter, WaiterKind};

const SOON: Duration = Duration::from_millis(5);
/// A call that lasts so long was neither answered nor interrupted.
const WATCHDOG: Duration = Duration::from_secs(20);
const ROUNDS: u64 = 10;

fn pair() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
}

/// A socket whose receives have a time limit: the kernel does not go on with them by itself.
fn limited() -> (OwnedFd, OwnedFd) {
    let (ours, theirs) = pair();
    set_socket_timeout(&ours, Timeout::Recv, Some(WATCHDOG)).unwrap();
    (ours, theirs)
}

/// A ring as it is opened for foreign event loops, which cannot put its completions off.
fn ring(test: &str) -> Option<Box<dyn Waiter>> {
    let opened = WaiterKind::IoUring.open(Loop::Foreign);
    if let Err(error) = &opened {
        eprintln!("SKIP {test}: {error}");
    }
    opened.ok()
}

/// Runs `call` while something that the ring has armed completes; `answer` comes a little later.
fn interrupt<R>(
    ring: &mut dyn Waiter,
    answer: impl FnOnce() + Send,
    call: impl FnOnce() -> R,
) -> R {
    let (armed, trigger) = pair();
    ring.watch(armed.as_fd(), 1).unwrap();
    ring.arm(&[], WATCHDOG).unwrap();
    let returned = thread::scope(|scope| {
        scope.spawn(move || {
            thread::sleep(SOON);
            rustix::io::write(&trigger, b"x").unwrap();
            thread::sleep(SOON);
            answer();
        });
        call()
    });
    let mut ready = Vec::new();
    ring.disarm(&mut ready).unwrap();
    assert_eq!(ready, [1], "the ring has told");
    ring.forget(1).unwrap();
    returned
}

#[test]
fn a_receive_goes_on_when_a_ring_of_its_thread_interrupts_it() {
    let name = "a_receive_goes_on_when_a_ring_of_its_thread_interrupts_it";
    let Some(mut ring) = ring(name) else { return };
    let (ours, theirs) = limited();
    let send = || socket::send(&theirs, b"answer", &[]).unwrap();
    let mut interrupted = 0;
    for _ in 0..ROUNDS {
        let plain = interrupt(&mut *ring, send, || rustix::io::read(&ours, &mut [0; 8]));
        match plain {
            // The answer is still to be read.
            Err(Errno::INTR) => interrupted += 1,
            other => {
                assert_eq!(other, Ok(6));
                continue;
            }
        }
        assert_eq!(socket::receive(&ours, true).unwrap().0, b"answer");
    }
    assert!(interrupted > 0, "nothing interrupts here: nothing is shown");
    for _ in 0..ROUNDS {
        let received = interrupt(&mut *ring, send, || socket::receive(&ours, true));
        assert_eq!(received.unwrap().0, b"answer");
    }
}

#[test]
fn a_wait_that_a_ring_of_its_thread_interrupts_ends_early_and_is_no_error() {
    let name = "a_wait_that_a_ring_of_its_thread_interrupts_ends_early_and_is_no_error";
    let Some(mut ring) = ring(name) else { return };
    for kind in [WaiterKind::IoUring, WaiterKind::Futex] {
        let mut waiter = kind.open(Loop::Own).unwrap();
        let (ours, theirs) = pair();
        waiter.watch(ours.as_fd(), 7).unwrap();
        let (mut ready, mut waits) = (Vec::new(), 0);
        for _ in 0..ROUNDS {
            let send = || socket::send(&theirs, b"answer", &[]).unwrap();
            interrupt(&mut *ring, send, || {
                while ready.is_empty() {
                    waiter.wait(&[], WATCHDOG, &mut ready).unwrap();
                    waits += 1;
                }
            });
            assert_eq!(std::mem::take(&mut ready), [7]);
            assert_eq!(socket::receive(&ours, true).unwrap().0, b"answer");
        }
        eprintln!("{}: {waits} waits for {ROUNDS} answers", kind.name());
    }
}

//! A small sandbox init for the crash tests: guardian, handshakes, forked families.
#![allow(unsafe_code, reason = "fork, kill and waitpid of test processes")]
#![allow(dead_code, reason = "each test binary uses a part")]

use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use sandpipe::attach::AttachMessage;
use sandpipe::{
    Bus, FamilyIndex, Guardian, Instance, Mapping, Participant, Reaction, SlotIndex, Topology,
    layout, socket,
};

/// Aborts a test that hangs, which is a bug in the bus; ten times the expectation. Dropped, it is
/// off.
pub struct Watchdog(#[allow(dead_code, reason = "its drop is the sign")] Sender<()>);

impl Watchdog {
    pub fn new(limit: Duration) -> Watchdog {
        let (alive, ended) = channel();
        std::thread::spawn(move || {
            if ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                eprintln!("the test did not end within {limit:?}");
                std::process::abort();
            }
        });
        Watchdog(alive)
    }
}

pub struct Sandbox {
    pub guardian: Guardian,
    sockets: Vec<Option<OwnedFd>>,
    /// Messages about peers that a family has not answered.
    owed: Vec<u32>,
}

impl Sandbox {
    pub fn new(topology: Topology) -> Sandbox {
        let sockets: Vec<_> = topology.families().iter().map(|_| None).collect();
        Sandbox {
            owed: vec![0; sockets.len()],
            guardian: Guardian::new(topology).unwrap(),
            sockets,
        }
    }

    /// Makes the family's next segment, sealed as if a process had mapped it; the hint page.
    pub fn make_sealed(&mut self, family: FamilyIndex) -> Mapping {
        self.guardian.make_family(family).unwrap();
        let hello = AttachMessage::Hello {
            version: layout::LAYOUT_VERSION,
            hash: layout::layout_hash(),
            family,
        };
        let Reaction::Reply(_, fds) = self.guardian.handle(family, &hello.encode()).unwrap() else {
            panic!("the handshake is refused");
        };
        let page = Mapping::new(fds[1].as_fd(), layout::PAGE, false, layout::PAGE).unwrap();
        let mapped = AttachMessage::Mapped.encode();
        self.guardian.handle(family, &mapped).unwrap();
        page
    }

    /// Makes the family's next segment and a socket for its process.
    pub fn admit(&mut self, family: FamilyIndex) -> OwnedFd {
        self.guardian.make_family(family).unwrap();
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        self.sockets[family.index()] = Some(ours);
        self.owed[family.index()] = 0;
        theirs
    }

    /// Attaches the test process itself as a family.
    pub fn join(&mut self, family: FamilyIndex) -> (Participant, Bus<Mapping>) {
        let socket = self.admit(family);
        let thread = std::thread::spawn(move || {
            Participant::attach(socket, family, Duration::from_secs(20)).unwrap()
        });
        while !thread.is_finished() {
            self.serve();
        }
        thread.join().unwrap()
    }

    /// Forks a family: the child attaches and runs `role`.
    pub fn spawn(
        &mut self,
        family: FamilyIndex,
        role: impl FnOnce(Participant, Bus<Mapping>),
    ) -> i32 {
        self.spawn_detached(family, |socket| {
            let attached = Participant::attach(socket, family, Duration::from_secs(20));
            let (participant, bus) = attached.unwrap_or_else(|error| {
                eprintln!("family {} could not attach: {error}", family.0);
                exit(9)
            });
            role(participant, bus);
        })
    }

    /// Forks a family whose child gets the socket to attach with, and runs `role`.
    pub fn spawn_detached(&mut self, family: FamilyIndex, role: impl FnOnce(OwnedFd)) -> i32 {
        let socket = self.admit(family);
        // SAFETY: the child runs test code only and ends with _exit.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: plain system calls of the child about itself.
            unsafe {
                libc::setpgid(0, 0);
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            }
            for inherited in &mut self.sockets {
                *inherited = None;
            }
            // A panic must not unwind into the parent's test harness.
            let role = std::panic::AssertUnwindSafe(|| role(socket));
            exit(if std::panic::catch_unwind(role).is_ok() {
                0
            } else {
                8
            });
        }
        // Both sides set the group: the parent may kill it before the child has run.
        // SAFETY: moves the own child.
        unsafe { libc::setpgid(pid, pid) };
        drop(socket);
        pid
    }

    /// Answers whatever the participants have sent.
    pub fn serve(&mut self) {
        for index in 0..self.sockets.len() {
            let family = FamilyIndex(index as u16);
            while let Some(socket) = &self.sockets[index] {
                match socket::receive(socket, false) {
                    Ok((bytes, _)) if !bytes.is_empty() => self.react(family, &bytes),
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                    _ => self.sockets[index] = None,
                }
            }
        }
        self.look_after_pools();
    }

    fn look_after_pools(&mut self) {
        self.guardian.look_after_pools(Instant::now());
        for family in self.guardian.renewals().collect::<Vec<_>>() {
            let (bytes, fds) = self.guardian.renewal(family);
            if let Some(socket) = &self.sockets[family.index()]
                && socket::send(socket, &bytes, &fds).is_ok()
            {
                self.guardian.renewal_sent(family);
            }
        }
    }

    fn react(&mut self, family: FamilyIndex, bytes: &[u8]) {
        let own = self.sockets[family.index()].as_ref().unwrap();
        match self.guardian.handle(family, bytes).unwrap() {
            Reaction::Reply(bytes, fds) => _ = socket::send(own, &bytes, &fds),
            Reaction::Refuse(bytes) => _ = socket::send(own, &bytes, &[]),
            Reaction::Sealed => self.introduce(family),
            Reaction::Attached => self.answered(family),
            _ => {}
        }
    }

    /// A participant maps what it was sent.
    fn answered(&mut self, family: FamilyIndex) {
        let owed = &mut self.owed[family.index()];
        *owed = owed.saturating_sub(1);
        if *owed == 0 {
            self.guardian.settled(family);
        }
    }

    fn introduce(&mut self, family: FamilyIndex) {
        let owed = &mut self.owed;
        let mut send = |to: FamilyIndex, (bytes, fds): (Vec<u8>, Vec<_>)| {
            if let Some(socket) = &self.sockets[to.index()] {
                let sent = socket::send(socket.as_fd(), &bytes, &fds).is_ok();
                owed[to.index()] += u32::from(sent);
            }
        };
        send(family, self.guardian.peers_message(family));
        for other in self.guardian.others(family) {
            send(other, self.guardian.update_message(family));
        }
    }

    /// Kills every process of a family and repairs what it left.
    pub fn kill_family(&mut self, family: FamilyIndex, group: i32) -> sandpipe::recover::Repair {
        kill_group(group);
        self.sockets[family.index()] = None;
        self.guardian.repair_family(family)
    }
}

/// Kills a process group and waits until nobody of it is left.
pub fn kill_group(group: i32) {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        // SAFETY: signals and reaps processes of this test only.
        let gone = unsafe {
            libc::kill(-group, libc::SIGKILL);
            libc::waitpid(-group, std::ptr::null_mut(), 0) < 0
        };
        if gone {
            return;
        }
        assert!(Instant::now() < until, "process group {group} does not end");
    }
}

pub fn exit(code: i32) -> ! {
    // SAFETY: ends the process at once, without the parent's exit handlers.
    unsafe { libc::_exit(code) }
}

/// Whole-process setting: orphaned instances come to the test, which reaps them.
pub fn become_subreaper() {
    // SAFETY: sets a flag of this process.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
}

/// Deterministic payload of a message at a hop: its length varies, every byte depends on both.
pub fn payload(id: u128, hop: u64) -> Vec<u8> {
    let len = [8, 60, 200, 3000][(id % 4) as usize];
    let mut state = (id as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ hop << 56 | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

/// A small deterministic random number generator.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

pub fn hold(bus: &Bus<Mapping>, slot: SlotIndex) -> Instance<Mapping> {
    bus.hold_slot(slot, std::process::id());
    let _ = sandpipe::lease::Lease::hold(bus, slot);
    bus.instance(slot)
}

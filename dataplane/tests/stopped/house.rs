//! An agent in the test's own process, and a grain whose instances are the test's children.

use std::time::{Duration, Instant};

use sandpipe::{
    Ack, Bus, ChunkClass, Claimer, Delivery, FamilyIndex, FamilySpec, Instance, Kind, Mapping,
    MessageHeader, MessageId, Participant, Payload, Receiver, SlotIndex, StageError, Target,
    Topology, TraceStamps, monotonic_ns,
};

use crate::sandbox::{Sandbox, exit, payload};
use crate::steps::{step, stop_traced};

pub const AGENT: FamilyIndex = FamilyIndex::AGENT;
pub const GRAIN: FamilyIndex = FamilyIndex(1);
pub const S0: SlotIndex = SlotIndex(0);
pub const S1: SlotIndex = SlotIndex(1);
pub const S2: SlotIndex = SlotIndex(2);

/// Messages that the lane to the grain holds.
pub const LANE: u64 = 8;

/// Far more than anything here takes.
pub const WATCHDOG: Duration = Duration::from_secs(20);

/// How long a process stays stopped where time is the matter.
pub fn stop_time() -> Duration {
    let full = std::env::var_os("SANDPIPE_FULL").is_some();
    Duration::from_secs(if full { 10 } else { 2 })
}

/// The message after which an instance ends.
pub const LAST: MessageId = MessageId(1 << 60);

/// The id of the message with this number; no id is 0.
pub fn id(number: u64) -> MessageId {
    MessageId(u128::from(number) + 1)
}

fn topology() -> Topology {
    let family = |slots: u16, queue: FamilyIndex, lane_slots: u64| FamilySpec {
        slots,
        targets: vec![Target {
            queue,
            lane_slots: lane_slots as u32,
        }],
        chunks: vec![ChunkClass {
            bytes: 3072,
            count: 64,
        }],
    };
    Topology::new(vec![family(1, GRAIN, LANE), family(3, AGENT, 2 * LANE)]).unwrap()
}

pub struct House {
    pub agent: Bus<Mapping>,
    pub grain: Bus<Mapping>,
    pub receiver: Receiver<Mapping>,
    producer: Instance<Mapping>,
    _participant: Participant,
    _sandbox: Sandbox,
}

impl House {
    pub fn new() -> House {
        let mut sandbox = Sandbox::new(topology());
        sandbox.make_sealed(AGENT);
        let (participant, grain) = sandbox.join(GRAIN);
        let agent = sandbox.guardian.view(AGENT).unwrap();
        House {
            receiver: agent.receiver(),
            producer: agent.instance(S0),
            agent,
            grain,
            _participant: participant,
            _sandbox: sandbox,
        }
    }

    /// The agent sends one message to the grain; false if the lane is full.
    pub fn send(&mut self, id: MessageId) -> bool {
        let bytes = payload(id.0, u64::from(S0.0));
        publish_bytes(&mut self.producer, GRAIN, (id, MessageId::NONE), S0, &bytes)
    }

    /// Every answer that is there: the id of what it answers, and the slot that made it.
    pub fn answers(&mut self) -> Vec<(MessageId, SlotIndex)> {
        let mut answers = Vec::new();
        while let Some((delivery, place)) = self.receiver.receive() {
            answers.push(read(&self.agent, &delivery));
            self.receiver.acknowledge(place);
        }
        answers
    }

    /// Nobody holds anything any more.
    pub fn assert_at_rest(&self, what: &str) {
        // A consumer lets go of chunks when its lane is empty; whoever loans sees that.
        for family in [AGENT, GRAIN] {
            let audit = self.agent.audit(family);
            assert!(audit.queued.is_empty(), "{what}: queued {:?}", audit.queued);
            assert!(
                audit.in_flight.is_empty(),
                "{what}: in flight {:?}",
                audit.in_flight
            );
            let chunks = (audit.chunks_loaned, audit.chunks_published);
            assert_eq!(chunks, (0, 0), "{what}: family {}", family.0);
        }
    }
}

/// Publishes a message (id, parent) as `slot`; false if the lane to `queue` is full.
pub fn publish_bytes(
    instance: &mut Instance<Mapping>,
    queue: FamilyIndex,
    ids: (MessageId, MessageId),
    slot: SlotIndex,
    bytes: &[u8],
) -> bool {
    let staged = stage(instance, queue, ids, slot, bytes);
    if staged {
        instance.commit(Ack::NOTHING);
    }
    staged
}

/// Stages a message whose root is the slot that makes it.
fn stage(
    instance: &mut Instance<Mapping>,
    queue: FamilyIndex,
    (id, parent): (MessageId, MessageId),
    slot: SlotIndex,
    bytes: &[u8],
) -> bool {
    let loan = (bytes.len() > 64).then(|| {
        let loan = instance.loan(bytes.len()).expect("a chunk is free");
        instance.write(&loan, 0, bytes);
        loan
    });
    let mut header = MessageHeader::event(id, MessageId(slot.0.into()), parent, queue);
    if queue == AGENT {
        header.kind = Kind::Final; // the agent is woken for an answer
    }
    let body = loan
        .as_ref()
        .map_or(Payload::Inline(bytes), Payload::Loaned);
    let staged = instance.stage(queue, &header, body, TraceStamps::default());
    assert!(matches!(staged, Ok(()) | Err(StageError::Full(_))));
    if let (Err(_), Some(loan)) = (&staged, loan) {
        instance.give_back(loan);
    }
    staged.is_ok()
}

/// Checks a message; its id, and the slot that made it.
pub fn read(bus: &Bus<Mapping>, delivery: &Delivery) -> (MessageId, SlotIndex) {
    let header = delivery.message.header;
    let slot = SlotIndex(header.root.0 as u16);
    let bytes = bus.payload(delivery).unwrap();
    assert_eq!(bytes, payload(header.id.0, u64::from(slot.0)), "torn");
    assert_eq!(delivery.attempt, 1, "{:?} comes again", header.id);
    (header.id, slot)
}

/// One instance of the grain.
pub struct Worker {
    pub bus: Bus<Mapping>,
    slot: SlotIndex,
    pub claimer: Claimer<Mapping>,
    pub instance: Instance<Mapping>,
}

impl Worker {
    pub fn new(bus: &Bus<Mapping>, slot: SlotIndex) -> Worker {
        Worker {
            bus: bus.clone(),
            slot,
            claimer: bus.claimer(slot),
            instance: bus.instance(slot),
        }
    }

    pub fn take(&mut self) -> Option<Delivery> {
        self.claimer.claim(monotonic_ns)
    }

    /// Answers a message to the agent, with its own id.
    pub fn answer(&mut self, delivery: &Delivery) -> MessageId {
        let (id, _) = read(&self.bus, delivery);
        let until = Instant::now() + WATCHDOG;
        let bytes = payload(id.0, u64::from(self.slot.0));
        while !stage(&mut self.instance, AGENT, (id, id), self.slot, &bytes) {
            assert!(Instant::now() < until, "nobody reads the answers");
            std::thread::yield_now();
        }
        self.instance.commit(delivery.ack);
        self.claimer.finish();
        id
    }

    pub fn handle_one(&mut self) -> Option<MessageId> {
        let delivery = self.take()?;
        Some(self.answer(&delivery))
    }

    /// Handles and parks as a grain's instance does, until the last message.
    pub fn run(mut self) {
        let bell = self.bus.bell(GRAIN);
        loop {
            match self.handle_one() {
                Some(LAST) => return,
                Some(_) => {}
                None => {
                    let parking = bell.prepare();
                    if self.claimer.has_message() {
                        parking.cancel();
                    } else {
                        parking.sleep(Duration::MAX);
                    }
                }
            }
        }
    }
}

/// A child of the test; killed when the test ends early.
pub struct Child(i32);

impl Child {
    /// Forks a child that runs `role`.
    pub fn spawn(role: impl FnOnce()) -> Child {
        // SAFETY: the child runs test code only and ends with _exit.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: a plain system call of the child about itself.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            let role = std::panic::AssertUnwindSafe(role);
            exit(i32::from(std::panic::catch_unwind(role).is_err()));
        }
        Child(pid)
    }

    /// Forks a child that runs `prepare`, then `work`, and stays stopped `steps` instructions into
    /// the latter; false if the work stopped itself before.
    pub fn stopped_at<P>(
        steps: u64,
        prepare: impl FnOnce() -> P,
        work: impl FnOnce(P),
    ) -> (Child, bool) {
        let child = Child::spawn(|| {
            let prepared = prepare();
            stop_traced();
            work(prepared);
        });
        let mut status = 0;
        // SAFETY: waits for the own child.
        unsafe { libc::waitpid(child.0, &raw mut status, 0) };
        assert!(libc::WIFSTOPPED(status), "{status:x}");
        let reached = (0..steps).all(|_| step(child.0));
        let signal = if reached { libc::SIGSTOP } else { 0 };
        // SAFETY: lets go of the own tracee, which goes on with this signal.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, child.0, 0, signal) };
        if reached {
            child.await_state('T');
        }
        (child, reached)
    }

    /// Stops it, wherever it is.
    pub fn stop(&self) {
        self.signal(libc::SIGSTOP);
        self.await_state('T');
    }

    pub fn go_on(&self) {
        self.signal(libc::SIGCONT);
    }

    fn signal(&self, signal: i32) {
        // SAFETY: signals the own child, which is not reaped before the end.
        assert_eq!(unsafe { libc::kill(self.0, signal) }, 0);
    }

    /// Waits until the kernel says that it is in a state: T stopped, S asleep.
    pub fn await_state(&self, wanted: char) {
        let until = Instant::now() + WATCHDOG;
        loop {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0)).unwrap();
            let (_, behind) = stat.rsplit_once(") ").unwrap();
            if behind.starts_with(wanted) {
                return;
            }
            assert!(Instant::now() < until, "not {wanted} but {behind}");
            std::thread::yield_now();
        }
    }

    /// Waits for its end, which must be a good one; lets it go on after stops of its own.
    pub fn join(mut self) {
        let mut status = 0;
        let until = Instant::now() + WATCHDOG;
        // SAFETY: waits for the own child.
        while unsafe { libc::waitpid(self.0, &raw mut status, libc::WUNTRACED | libc::WNOHANG) }
            == 0
            || libc::WIFSTOPPED(status)
        {
            if libc::WIFSTOPPED(status) {
                self.go_on();
                status = 0;
            }
            assert!(Instant::now() < until, "a child does not end");
            std::thread::yield_now();
        }
        self.0 = 0;
        assert_eq!(status, 0, "a child ends badly");
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.0 != 0 {
            // SAFETY: kills and reaps the own child.
            unsafe {
                libc::kill(self.0, libc::SIGKILL);
                libc::waitpid(self.0, std::ptr::null_mut(), 0);
            }
        }
    }
}

//! Death at every single instruction of receive + loan + commit.
//!
//! A grain that has one message waiting is stepped (ptrace) through handling it. After each
//! instruction the shared memory is copied, which is what a death at that instruction would leave,
//! and recovery runs twice on the copy; at a sample of the instructions it is really killed.
//! Wherever it dies: the agent's copy, the next grain's message and the acknowledgement are all
//! there, or none is; a payload is whole; no chunk, claim or entry is left over once the messages
//! are handled.
#![allow(
    unsafe_code,
    reason = "fork, ptrace, kill and waitpid of test processes"
)]

mod sandbox;

use std::sync::atomic::Ordering;
use std::time::Duration;

use sandbox::{Sandbox, exit, payload};
use sandpipe::attach::AttachMessage;
use sandpipe::{
    Ack, Audit, Bus, ChunkClass, Claimer, Delivery, FamilyIndex, FamilySpec, Instance, Mapping,
    Memory, MessageHeader, MessageId, Payload, Receiver, SlotIndex, Target, Topology, TraceStamps,
};

const AGENT: FamilyIndex = FamilyIndex::AGENT;
const GRAIN: FamilyIndex = FamilyIndex(1);
const NEXT: FamilyIndex = FamilyIndex(2);
const S0: SlotIndex = SlotIndex(0);

/// Builds that take many more instructions are swept in larger steps.
const SLOW_BUILD: bool = cfg!(debug_assertions) || cfg!(feature = "pauses");

/// Instructions between two copies: every one in the build that matters.
const COPY_STRIDE: u64 = if SLOW_BUILD { 101 } else { 1 };

/// Instructions between two real kills; each steps from the start again.
const KILL_STRIDE: u64 = if SLOW_BUILD { 9001 } else { 97 };

/// How the grain receives.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    /// Through the in-flight table, shared with other instances.
    Claim,
    /// In place, alone.
    Exclusive,
}

fn topology() -> Topology {
    let chunks = vec![ChunkClass {
        bytes: 256,
        count: 8,
    }];
    let family = |queues: &[FamilyIndex]| FamilySpec {
        slots: 1,
        targets: queues
            .iter()
            .map(|&queue| Target {
                queue,
                lane_slots: 8,
            })
            .collect(),
        chunks: chunks.clone(),
    };
    Topology::new(vec![
        family(&[GRAIN]),
        family(&[AGENT, NEXT]),
        family(&[AGENT]),
    ])
    .unwrap()
}

/// A grain with everything made beforehand, so that only the bus's own steps are swept.
struct Grain {
    instance: Instance<Mapping>,
    claimer: Claimer<Mapping>,
    receiver: Receiver<Mapping>,
    bytes: Vec<u8>,
}

impl Grain {
    fn new(bus: &Bus<Mapping>, root: u64) -> Grain {
        Grain {
            instance: bus.instance(S0),
            claimer: bus.claimer(S0),
            receiver: bus.receiver(),
            bytes: payload(root.into(), 1),
        }
    }

    /// The work on one message: what is stepped through.
    fn handle_one(&mut self, mode: Mode) {
        match mode {
            Mode::Claim => {
                let delivery = self.claimer.claim(|| 1).expect("a message waits");
                self.answer(&delivery);
                self.claimer.finish();
            }
            Mode::Exclusive => {
                let (delivery, place) = self.receiver.receive().expect("a message waits");
                self.answer(&delivery);
                self.receiver.acknowledged(place);
            }
        }
    }

    fn answer(&mut self, delivery: &Delivery) {
        let input = delivery.message.header;
        let header = MessageHeader::event(CHILD, input.root, input.id, NEXT);
        send(
            &mut self.instance,
            header,
            &[AGENT, NEXT],
            &self.bytes,
            delivery.ack,
        );
    }
}

/// Every output has this id: deriving one is not the bus's work.
const CHILD: MessageId = MessageId(1);

fn send(
    instance: &mut Instance<Mapping>,
    header: MessageHeader,
    queues: &[FamilyIndex],
    bytes: &[u8],
    ack: Ack,
) {
    let loan = instance.loan(bytes.len()).expect("a chunk is free");
    instance.write(&loan, 0, bytes);
    for &queue in queues {
        let payload = Payload::Loaned(&loan);
        instance
            .stage(queue, &header, payload, TraceStamps::default())
            .expect("there is room");
    }
    instance.commit(ack);
}

/// Root of the message that waits after `before` others; its payload has 60 bytes.
fn root_of(number: u64) -> u64 {
    number * 4 + 1
}

/// A sandbox whose segments are made and sealed.
fn empty() -> Sandbox {
    let mut sandbox = Sandbox::new(topology());
    for family in [AGENT, GRAIN, NEXT] {
        sandbox.guardian.make_family(family).unwrap();
        let mapped = AttachMessage::Mapped.encode();
        sandbox.guardian.handle(family, &mapped).unwrap();
    }
    sandbox
}

/// A sandbox in which `before` messages went all the way and one waits for the grain.
fn prepared(before: u64, mode: Mode) -> Sandbox {
    let sandbox = empty();
    for number in 0..=before {
        let root = MessageId(root_of(number).into());
        let header = MessageHeader::event(root, root, MessageId::NONE, GRAIN);
        let mut agent = sandbox.guardian.view(AGENT).unwrap().instance(S0);
        let bytes = payload(root.0, 0);
        send(&mut agent, header, &[GRAIN], &bytes, Ack::NOTHING);
        if number < before {
            let bus = sandbox.guardian.view(GRAIN).unwrap();
            Grain::new(&bus, root_of(number)).handle_one(mode);
            assert_eq!(consume(&sandbox), (1, 1));
        }
    }
    sandbox
}

/// Takes everything that reached the agent and the next grain; checks each payload.
fn consume(sandbox: &Sandbox) -> (usize, usize) {
    let count = |family: FamilyIndex| {
        let bus = sandbox.guardian.view(family).unwrap();
        let mut receiver = bus.receiver();
        let mut seen = 0;
        while let Some((delivery, place)) = receiver.receive() {
            let root = delivery.message.header.root;
            assert_eq!(delivery.message.header.id, CHILD, "invented");
            assert_eq!(bus.payload(&delivery).unwrap(), payload(root.0, 1), "torn");
            receiver.acknowledge(place);
            seen += 1;
        }
        seen
    };
    (count(AGENT), count(NEXT))
}

/// A grain in the sandbox, stopped right before it handles its message.
fn stopped_grain(sandbox: &mut Sandbox, root: u64, mode: Mode) -> i32 {
    let pid = sandbox.spawn(GRAIN, |_, bus| {
        let mut grain = Grain::new(&bus, root);
        // SAFETY: asks to be traced by the parent, which waits for this stop.
        unsafe {
            libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
            libc::raise(libc::SIGSTOP);
        }
        grain.handle_one(mode);
        // SAFETY: the second stop ends the sweep.
        unsafe { libc::raise(libc::SIGSTOP) };
        exit(0);
    });
    let mut status = 0;
    // SAFETY: waits for a child of this test.
    while unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } == 0 {
        sandbox.serve();
        std::thread::yield_now();
    }
    assert!(
        libc::WIFSTOPPED(status),
        "the grain did not reach its first stop: {status:x}"
    );
    pid
}

/// One instruction further; false once the message is handled.
fn step(pid: i32) -> bool {
    let mut status = 0;
    // SAFETY: steps and waits for a traced child of this test.
    unsafe {
        libc::ptrace(libc::PTRACE_SINGLESTEP, pid, 0, 0);
        libc::waitpid(pid, &raw mut status, 0);
    }
    libc::WIFSTOPPED(status) && libc::WSTOPSIG(status) != libc::SIGSTOP
}

/// A sandbox whose segments hold what those of another hold at this moment.
fn copy_of(sandbox: &Sandbox) -> Sandbox {
    let copy = empty();
    for family in [AGENT, GRAIN, NEXT] {
        let [from, to] = [sandbox, &copy].map(|of| of.guardian.view(family).unwrap());
        let [from, to] = [&from, &to].map(|bus| bus.segment(family).unwrap());
        for at in (0..from.len()).step_by(8) {
            let word = from.word(at).load(Ordering::Relaxed);
            to.word(at).store(word, Ordering::Relaxed);
        }
    }
    copy
}

/// Repairs what a dead grain left and checks it; whether its commit had become a fact.
fn judge(sandbox: &mut Sandbox, before: u64, mode: Mode, steps: u64) -> bool {
    sandbox.guardian.repair_family(GRAIN);
    sandbox.guardian.repair_family(GRAIN);
    let bus = sandbox.guardian.view(GRAIN).unwrap();
    let audit = bus.audit(GRAIN);
    assert_eq!(
        audit.chunks_loaned, 0,
        "step {steps}: a loan was not given back"
    );
    let left = match mode {
        Mode::Claim => audit.queued.len() + audit.in_flight.len(),
        Mode::Exclusive => usize::from(bus.receiver().has_message()),
    };
    let (copies, messages) = consume(sandbox);
    assert_eq!(copies, messages, "step {steps}: half a commit");
    assert_eq!(
        left,
        1 - copies,
        "step {steps}: outputs {copies}, inputs left {left}"
    );
    if left == 1 {
        Grain::new(&bus, root_of(before)).handle_one(mode);
        assert_eq!(
            consume(sandbox),
            (1, 1),
            "step {steps}: the input is not handled again"
        );
    }
    sandbox.guardian.repair_family(GRAIN);
    for family in [AGENT, GRAIN, NEXT] {
        let audit = bus.audit(family);
        assert_eq!(audit, Audit::default(), "step {steps}: family {}", family.0);
    }
    copies == 1
}

/// Copies at every instruction; how many there are, and how often the commit was a fact.
fn sweep_copies(before: u64, mode: Mode) -> (u64, u64) {
    let mut sandbox = prepared(before, mode);
    let pid = stopped_grain(&mut sandbox, root_of(before), mode);
    let (mut steps, mut facts) = (0, 0);
    loop {
        if steps % COPY_STRIDE == 0 {
            facts += u64::from(judge(&mut copy_of(&sandbox), before, mode, steps));
        }
        if !step(pid) {
            break;
        }
        steps += 1;
    }
    sandbox.kill_family(GRAIN, pid);
    assert!(
        judge(&mut sandbox, before, mode, steps),
        "a handled message is a fact"
    );
    (steps, facts)
}

fn sweep(before: u64, mode: Mode) {
    let (steps, facts) = sweep_copies(before, mode);
    let mut kills = 0;
    for at in (0..steps).step_by(KILL_STRIDE as usize) {
        let mut sandbox = prepared(before, mode);
        let pid = stopped_grain(&mut sandbox, root_of(before), mode);
        (0..at).for_each(|_| assert!(step(pid)));
        sandbox.kill_family(GRAIN, pid);
        judge(&mut sandbox, before, mode, at);
        kills += 1;
    }
    let copies = steps / COPY_STRIDE + 1;
    println!(
        "{mode:?}, {before} messages before: {steps} instructions, {copies} deaths on copies and \
         {kills} real ones: nothing or everything, in between 0 (copies: everything {facts})"
    );
    assert!(
        facts > 0 && facts < copies,
        "the sweep did not cross the commit"
    );
}

#[test]
fn a_grain_killed_at_any_instruction_has_done_all_or_nothing() {
    sandbox::watchdog(Duration::from_secs(600));
    // Every step is a switch between this process and the grain: far cheaper on one core.
    let cpus = rustix::thread::sched_getaffinity(None).unwrap();
    let first = (0..rustix::thread::CpuSet::MAX_CPU).find(|&cpu| cpus.is_set(cpu));
    let mut one = rustix::thread::CpuSet::new();
    one.set(first.unwrap());
    rustix::thread::sched_setaffinity(None, &one).unwrap();
    // Ring empty, part full, wrapped, and long-lived.
    for mode in [Mode::Claim, Mode::Exclusive] {
        for before in [0, 5, 8, 1000] {
            sweep(before, mode);
        }
    }
}

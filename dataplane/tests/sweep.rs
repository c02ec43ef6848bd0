//! Killed at every single instruction of receive + loan + commit.
//!
//! For k = 0, 1, 2, …: a grain has one message waiting, is stepped k instructions (ptrace) into
//! handling it and killed there. Recovery runs twice. Whatever k: the agent's copy, the next
//! grain's message and the acknowledgement are all there, or none is; a payload is whole; no
//! chunk, claim or entry is left over once the messages are handled.
#![allow(
    unsafe_code,
    reason = "fork, ptrace, kill and waitpid of test processes"
)]

mod sandbox;

use std::time::Duration;

use sandbox::{Sandbox, exit, payload};
use sandpipe::attach::AttachMessage;
use sandpipe::{
    Ack, Audit, Bus, ChunkClass, Claimer, Delivery, FamilyIndex, FamilySpec, Instance, Mapping,
    MessageHeader, MessageId, Payload, Receiver, SlotIndex, Target, Topology, TraceStamps,
};

const AGENT: FamilyIndex = FamilyIndex::AGENT;
const GRAIN: FamilyIndex = FamilyIndex(1);
const NEXT: FamilyIndex = FamilyIndex(2);
const S0: SlotIndex = SlotIndex(0);

/// Instructions between two kills: every one in the build that matters. Other builds take so many
/// more that they get a sample (`cargo test --release --test sweep` is the sweep).
const STRIDE: u64 = if cfg!(debug_assertions) || cfg!(feature = "pauses") {
    2003
} else {
    1
};

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

/// A sandbox in which `before` messages went all the way and one waits for the grain.
fn prepared(before: u64, mode: Mode) -> Sandbox {
    let mut sandbox = Sandbox::new(topology());
    for family in [AGENT, GRAIN, NEXT] {
        sandbox.guardian.make_family(family).unwrap();
        let mapped = AttachMessage::Mapped.encode();
        sandbox.guardian.handle(family, &mapped).unwrap();
    }
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

/// Steps a fresh grain `steps` instructions and kills it; true if it had finished by then.
fn kill_after(sandbox: &mut Sandbox, steps: u64, root: u64, mode: Mode) -> bool {
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
    // SAFETY: waits for, steps and reaps a child of this test.
    unsafe {
        while libc::waitpid(pid, &raw mut status, libc::WNOHANG) == 0 {
            sandbox.serve();
            std::thread::yield_now();
        }
        assert!(
            libc::WIFSTOPPED(status),
            "the grain did not reach its first stop: {status:x}"
        );
        for _ in 0..steps {
            libc::ptrace(libc::PTRACE_SINGLESTEP, pid, 0, 0);
            libc::waitpid(pid, &raw mut status, 0);
            if !libc::WIFSTOPPED(status) || libc::WSTOPSIG(status) == libc::SIGSTOP {
                sandbox.kill_family(GRAIN, pid);
                return true;
            }
        }
    }
    sandbox.kill_family(GRAIN, pid);
    false
}

/// One kill; whether the commit had become a fact, and whether the grain had finished.
fn one_kill(before: u64, mode: Mode, steps: u64) -> (bool, bool) {
    let mut sandbox = prepared(before, mode);
    let finished = kill_after(&mut sandbox, steps, root_of(before), mode);
    sandbox.guardian.repair_family(GRAIN);
    let bus = sandbox.guardian.view(GRAIN).unwrap();
    let left = {
        let audit = bus.audit(GRAIN);
        assert_eq!(
            audit.chunks_loaned, 0,
            "step {steps}: a loan was not given back"
        );
        match mode {
            Mode::Claim => audit.queued.len() + audit.in_flight.len(),
            Mode::Exclusive => usize::from(bus.receiver().has_message()),
        }
    };
    let (copies, messages) = consume(&sandbox);
    assert_eq!(copies, messages, "step {steps}: half a commit");
    assert_eq!(
        left,
        1 - copies,
        "step {steps}: outputs {copies}, inputs left {left}"
    );
    if left == 1 {
        Grain::new(&bus, root_of(before)).handle_one(mode);
        assert_eq!(
            consume(&sandbox),
            (1, 1),
            "step {steps}: the input could not be handled again"
        );
    }
    sandbox.guardian.repair_family(GRAIN);
    for family in [AGENT, GRAIN, NEXT] {
        assert_eq!(
            bus.audit(family),
            Audit::default(),
            "step {steps}: family {} ",
            family.0
        );
    }
    (copies == 1, finished)
}

fn sweep(before: u64, mode: Mode) {
    let (mut steps, mut nothing, mut everything) = (0, 0, 0);
    loop {
        let (happened, finished) = one_kill(before, mode, steps);
        everything += u64::from(happened);
        nothing += u64::from(!happened);
        if finished {
            break;
        }
        steps += STRIDE;
    }
    println!(
        "{mode:?}, {before} messages before: {steps} instructions, a kill every {STRIDE}: \
         nothing happened {nothing}, everything {everything}, in between 0"
    );
    assert!(
        STRIDE > 1 || nothing > 50 && everything > 50,
        "the sweep did not cross the commit"
    );
}

#[test]
fn a_grain_killed_at_any_instruction_has_done_all_or_nothing() {
    sandbox::watchdog(Duration::from_secs(600));
    let full = std::env::var_os("SANDPIPE_FULL").is_some();
    // A sweep takes about a minute: ring wrapped and empty here, every state with the full count.
    let sweeps: &[(Mode, u64)] = if full {
        &[
            (Mode::Claim, 0),
            (Mode::Claim, 5),
            (Mode::Claim, 8),
            (Mode::Claim, 1000),
            (Mode::Exclusive, 0),
            (Mode::Exclusive, 8),
        ]
    } else {
        &[(Mode::Claim, 8), (Mode::Exclusive, 0)]
    };
    for &(mode, before) in sweeps {
        sweep(before, mode);
    }
}

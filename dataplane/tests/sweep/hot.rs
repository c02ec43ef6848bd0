//! The operations of every message: really killed after each instruction, in every state of the
//! ring, in both roles.

use std::time::Duration;

use sandpipe::{Ack, Bus, Mapping, MessageHeader, MessageId, Participant};

use crate::HOT_STRIDE;
use crate::sandbox;
use crate::stage::{
    AGENT, CHILD, Carry, GRAIN, Grain, LANE, Mode, NEXT, Taken, World, answer_to, root_of,
};
use crate::steps::{stay_on_one_core, step, stopped};

/// What the grain is killed in.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Operation {
    /// Stage and commit, without an input: the producer's role.
    Publish,
    /// The same while both consumers are parked: two wakes.
    Wake,
    /// Take a message.
    Take(Mode),
    /// Commit a staged answer and the acknowledgement of its input.
    Commit(Mode),
    /// Acknowledge without an output.
    Acknowledge(Mode),
    /// After the commit: slot, entry and lane go on.
    Release(Mode),
    /// Announce, look again, sleep or cancel.
    Park,
}

use Operation::{Acknowledge, Commit, Park, Publish, Release, Take, Wake};

impl Operation {
    fn mode(self) -> Mode {
        match self {
            Take(mode) | Commit(mode) | Acknowledge(mode) | Release(mode) => mode,
            Publish | Wake | Park => Mode::Claim,
        }
    }

    fn needs_input(self) -> bool {
        matches!(self, Commit(_) | Acknowledge(_) | Release(_))
    }
}

/// State of the ring that the operation works on.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ring {
    Empty,
    One,
    Full,
    Wrapping,
}

/// One operation in one state.
#[derive(Clone, Copy, Debug)]
struct Case {
    operation: Operation,
    ring: Ring,
}

/// What the operation publishes without an input.
const PUBLISHED: MessageId = MessageId(401);

impl Case {
    fn before(self) -> u64 {
        if self.ring == Ring::Wrapping {
            LANE - 2
        } else {
            0
        }
    }

    fn filled(self) -> u64 {
        match self.ring {
            Ring::Empty => 0,
            Ring::One => 1,
            Ring::Full => LANE,
            Ring::Wrapping => LANE / 2,
        }
    }

    /// Outputs that nobody has read yet.
    fn unread(self) -> u64 {
        match self.operation {
            Publish | Wake => self.filled(),
            // An answer must still fit.
            Commit(_) => self.filled().min(LANE - 1),
            _ => 0,
        }
    }

    /// Inputs that wait for the grain.
    fn waiting(self) -> u64 {
        match self.operation {
            Publish | Wake => 0,
            _ if self.operation.needs_input() => self.filled().max(1),
            _ => self.filled(),
        }
    }

    fn prepared(self) -> World {
        let mode = self.operation.mode();
        World::prepared(
            self.before(),
            self.unread(),
            self.waiting(),
            mode,
            Carry::Inline,
        )
    }

    /// Roots of the outputs that are unread, and of the inputs.
    fn roots(self) -> (Vec<MessageId>, Vec<MessageId>) {
        let first = self.before() + self.unread();
        let roots = |from: u64, count: u64| (from..from + count).map(root_of).collect();
        (
            roots(self.before(), self.unread()),
            roots(first, self.waiting()),
        )
    }
}

/// The grain's process, ready for the operation.
struct Ready {
    grain: Grain,
    taken: Option<Taken>,
    bytes: Vec<u8>,
    bus: Bus<Mapping>,
    _participant: Participant,
}

fn prepare(case: Case, participant: Participant, bus: Bus<Mapping>) -> Ready {
    let mut grain = Grain::new(&bus, case.operation.mode(), Carry::Inline);
    let taken = case
        .operation
        .needs_input()
        .then(|| grain.take().expect("a message waits"));
    let mut bytes = answer_to(PUBLISHED);
    if let (Some((delivery, _)), Commit(_) | Release(_)) = (&taken, case.operation) {
        bytes = answer_to(delivery.message.header.root);
        grain.stage(delivery.message.header, &bytes);
        if matches!(case.operation, Release(_)) {
            grain.instance.commit(delivery.ack);
        }
    }
    Ready {
        grain,
        taken,
        bytes,
        bus,
        _participant: participant,
    }
}

/// What is stepped through.
fn work(case: Case, ready: &mut Ready) {
    let grain = &mut ready.grain;
    match case.operation {
        Publish | Wake => publish(grain, &ready.bytes),
        Take(_) => assert_eq!(grain.take().is_some(), case.waiting() > 0),
        Commit(_) => grain.instance.commit(ready.taken.as_ref().unwrap().0.ack),
        Acknowledge(Mode::Exclusive) => {
            let place = ready.taken.as_ref().unwrap().1.unwrap();
            grain.receiver.acknowledge(place);
        }
        Acknowledge(Mode::Claim) => grain.instance.commit(ready.taken.as_ref().unwrap().0.ack),
        Release(_) => {
            grain.finish(ready.taken.as_ref().unwrap());
            if case.operation.mode() == Mode::Exclusive {
                // An empty look lets the heads catch up.
                let _ = grain.receiver.receive();
            }
        }
        Park => {
            let bell = ready.bus.bell(GRAIN);
            let parking = bell.prepare();
            if grain.claimer.has_message() {
                parking.cancel();
            } else {
                parking.sleep(Duration::from_micros(20));
            }
        }
    }
}

fn publish(grain: &mut Grain, bytes: &[u8]) {
    let mut header = MessageHeader::event(CHILD, PUBLISHED, MessageId::NONE, NEXT);
    header.kind = sandpipe::Kind::Final; // for an answer the agent is woken, too
    for queue in [AGENT, NEXT] {
        let body = sandpipe::Payload::Inline(bytes);
        let trace = sandpipe::TraceStamps::default();
        if grain.instance.stage(queue, &header, body, trace).is_err() {
            return grain.instance.discard();
        }
    }
    grain.instance.commit(Ack::NOTHING);
}

/// Repairs what the dead grain left and checks everything; whether the operation was a fact.
fn judge(world: &mut World, case: Case, what: &str) -> bool {
    let operation = case.operation;
    world.sandbox.guardian.repair_family(GRAIN);
    world.sandbox.guardian.repair_family(GRAIN);
    assert_eq!(world.view(GRAIN).audit(GRAIN).chunks_loaned, 0, "{what}");
    let (mut outputs, next) = world.consume();
    assert_eq!(outputs, next, "{what}: half a commit");
    let (unread, mut inputs) = case.roots();
    let done = outputs.len() > unread.len();
    let mut expected = unread;
    if done && matches!(operation, Publish | Wake) {
        expected.push(PUBLISHED);
    }
    // A survivor handles what is left.
    let bus = world.view(GRAIN);
    let mut grain = Grain::new(&bus, operation.mode(), Carry::Inline);
    let mut handled = 0;
    while grain.handle_one() {
        handled += 1;
    }
    let (rest, next) = world.consume();
    assert_eq!(rest, next, "{what}: half a commit of the survivor");
    outputs.extend(rest);
    let acknowledged = matches!(operation, Acknowledge(_)) && handled + 1 == inputs.len();
    if acknowledged {
        inputs.remove(0);
    }
    expected.extend(inputs);
    assert_eq!(
        outputs, expected,
        "{what}: lost, doubled, invented or out of order"
    );
    world.sandbox.guardian.repair_family(GRAIN);
    world.assert_at_rest(what);
    for queue in [AGENT, GRAIN, NEXT] {
        assert!(
            world.hint(queue).1 <= 1,
            "{what}: queue {} counts sleepers",
            queue.0
        );
    }
    assert_rings(world, operation.mode(), what);
    world.assert_goes_on(operation.mode(), Carry::Inline, what);
    world.sandbox.guardian.repair_family(GRAIN);
    world.assert_at_rest(what);
    done || acknowledged
}

/// A survivor that parks is woken by the next message.
fn assert_rings(world: &World, mode: Mode, what: &str) {
    let bus = world.view(GRAIN);
    let bell = bus.bell(GRAIN);
    let parking = bell.prepare();
    let seen = world.hint(GRAIN).0;
    assert!(world.send(root_of(1 << 41)));
    assert_ne!(world.hint(GRAIN).0, seen, "{what}: the bell is silent");
    parking.cancel();
    assert!(Grain::new(&bus, mode, Carry::Inline).handle_one());
    assert_eq!(world.consume().0.len(), 1, "{what}");
}

/// Instructions of the operation, and how many deaths left it done.
fn sweep(case: Case) -> (u64, u64) {
    let (mut at, mut facts) = (0, 0);
    loop {
        let what = format!("{case:?}, instruction {at}");
        let mut world = case.prepared();
        let parked = case.operation == Wake;
        for queue in [AGENT, NEXT].into_iter().filter(|_| parked) {
            let _parked_for_good = world.view(queue).bell(queue).prepare();
        }
        let bells = [AGENT, NEXT].map(|queue| world.hint(queue).0);
        let pid = stopped(
            &mut world.sandbox,
            GRAIN,
            |participant, bus| prepare(case, participant, bus),
            |ready| work(case, ready),
        );
        let all = (0..at).all(|_| step(pid));
        world.sandbox.kill_family(GRAIN, pid);
        for (queue, before) in [AGENT, NEXT].into_iter().zip(bells) {
            assert_ne!(world.hint(queue).0, before, "{what}: nobody is woken");
        }
        let fact = judge(&mut world, case, &what);
        assert!(
            fact || facts == 0,
            "{what}: what was a fact is none any more"
        );
        facts += u64::from(fact);
        if !all {
            return (at, facts);
        }
        at += HOT_STRIDE;
    }
}

fn sweep_all(operations: &[Operation]) {
    let (mut deaths, mut cases) = (0, 0);
    for &operation in operations {
        for ring in [Ring::Empty, Ring::One, Ring::Full, Ring::Wrapping] {
            if operation.needs_input() && ring == Ring::Empty {
                continue; // there is nothing to commit, acknowledge or release
            }
            let (instructions, facts) = sweep(Case { operation, ring });
            println!("{operation:?}, ring {ring:?}: {instructions} instructions, done in {facts}");
            let publishes = matches!(operation, Publish | Wake) && ring != Ring::Full;
            if publishes || matches!(operation, Commit(_) | Acknowledge(_)) {
                assert!(facts > 0, "the sweep did not cross the commit");
            }
            deaths += instructions / HOT_STRIDE + 1;
            cases += 1;
        }
    }
    println!("{cases} sweeps, {deaths} processes killed: lost 0, torn 0, doubled 0, left over 0");
}

#[test]
fn a_producer_killed_at_any_instruction_of_publish_park_or_wake_leaves_all_or_nothing() {
    let _watchdog = sandbox::Watchdog::new(Duration::from_secs(1200));
    stay_on_one_core(1);
    sweep_all(&[Publish, Wake, Park]);
}

#[test]
fn a_consumer_killed_at_any_instruction_of_take_commit_or_release_loses_nothing() {
    let _watchdog = sandbox::Watchdog::new(Duration::from_secs(1200));
    stay_on_one_core(0);
    for mode in [Mode::Claim, Mode::Exclusive] {
        sweep_all(&[Take(mode), Commit(mode), Acknowledge(mode), Release(mode)]);
    }
}

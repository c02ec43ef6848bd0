//! SIGKILL at random moments while pools grow and shrink all the time: of instances, and of whole
//! families. Nothing is lost, torn or done twice, and nothing that the pools grew by stays behind.
#![allow(unsafe_code, reason = "fork and kill of test processes")]

mod sandbox;

use core::mem::offset_of;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sandbox::{Random, Sandbox, Watchdog, exit};
use sandpipe::layout::{InstanceSlot, SlotState};
use sandpipe::recover::recover_slot;
use sandpipe::{
    Ack, Bus, ChunkClass, Delivery, FamilyIndex, FamilySpec, Instance, Mapping, Memory,
    MessageHeader, MessageId, Participant, Payload, PayloadError, Receiver, SlotIndex, Target,
    Topology, TraceStamps, derive_child,
};

const AGENT: FamilyIndex = FamilyIndex::AGENT;
const GRAIN: FamilyIndex = FamilyIndex(1);
const S0: SlotIndex = SlotIndex(0);
const S1: SlotIndex = SlotIndex(1);
const CHUNKS: u32 = 4;
const LEN: usize = 4096;
/// Messages under way at once: more than one family's pool and one extension hold.
const BURST: u128 = 10;
const KILLS: u64 = 200;
const IDLE: Duration = Duration::from_millis(4);
const PATIENCE: Duration = Duration::from_secs(30);
/// An instance whose view is too old.
const STALE: i32 = 75;

/// Agent to grain and back, with room for three extensions in all.
fn topology() -> Topology {
    let family = |slots: u16, next: FamilyIndex| FamilySpec {
        slots,
        targets: vec![Target {
            queue: next,
            lane_slots: 32,
        }],
        chunks: vec![ChunkClass {
            bytes: LEN as u64,
            count: CHUNKS,
        }],
    };
    let topology = Topology::new(vec![family(1, GRAIN), family(2, AGENT)]).unwrap();
    topology.with_growth(3 * u64::from(CHUNKS) * LEN as u64)
}

fn bytes_of(root: MessageId) -> Vec<u8> {
    (0..LEN)
        .map(|at| (root.0 as usize * 7 + at / 64) as u8)
        .collect()
}

/// Publishes to the only target; false if there is no chunk.
fn send(instance: &mut Instance<Mapping>, header: &MessageHeader, ack: Ack) -> bool {
    let Ok(loan) = instance.loan(LEN) else {
        return false;
    };
    instance.write(&loan, 0, &bytes_of(header.root));
    let payload = Payload::Loaned(&loan);
    let staged = instance.stage(header.queue, header, payload, TraceStamps::default());
    staged.expect("the lanes are longer than what is under way");
    instance.commit(ack);
    true
}

/// An instance: passes every message on, until its mappings are too old.
fn instance(bus: &Bus<Mapping>) -> ! {
    let (mut claimer, mut instance) = (bus.claimer(S1), bus.instance(S1));
    loop {
        if bus.is_stale() {
            exit(STALE);
        }
        let Some(input) = claimer.claim(|| 1) else {
            std::thread::sleep(Duration::from_micros(100));
            continue;
        };
        match bus.payload(&input) {
            Ok(bytes) => assert_eq!(bytes, bytes_of(input.message.header.root), "torn"),
            Err(PayloadError::Outdated(_)) => {
                claimer.hand_back(&input);
                exit(STALE);
            }
            Err(error) => panic!("{error}"),
        }
        pass_on(bus, &mut instance, &input);
        claimer.finish();
    }
}

fn pass_on(bus: &Bus<Mapping>, instance: &mut Instance<Mapping>, input: &Delivery) {
    let before = input.message.header;
    let id = derive_child(before.id, 0);
    let header = MessageHeader::event(id, before.root, before.id, AGENT);
    while !send(instance, &header, input.ack) {
        if bus.is_stale() {
            exit(STALE);
        }
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// The grain's worker: one instance, whose slot it recovers when it is gone.
fn worker(mut participant: Participant, mut bus: Bus<Mapping>) {
    let mut child = 0;
    loop {
        if participant.update(&mut bus).unwrap_or_else(|_| exit(0)) {
            bus.bump_attach_epoch();
        }
        participant.ask_to_grow(&bus).unwrap_or_else(|_| exit(0));
        // SAFETY: reaps a child of this process.
        let gone = child == 0 || unsafe { libc::waitpid(child, &raw mut child, libc::WNOHANG) } > 0;
        if gone {
            recover_slot(&bus, S1);
            // SAFETY: the child runs test code only and ends with _exit.
            child = unsafe { libc::fork() };
            if child == 0 {
                let run = std::panic::AssertUnwindSafe(|| instance(&bus));
                let _ = std::panic::catch_unwind(run);
                std::process::abort();
            }
            bus.hold_slot(S1, child.cast_unsigned());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// The agent, in the test's own process.
struct Agent {
    participant: Participant,
    bus: Bus<Mapping>,
    receiver: Receiver<Mapping>,
    sent: u128,
    answered: u128,
}

impl Agent {
    fn serve(&mut self, sandbox: &mut Sandbox) {
        sandbox.serve();
        if self.participant.update(&mut self.bus).unwrap() {
            self.receiver.rebind(&self.bus);
        }
    }

    fn send(&mut self) {
        let id = MessageId(self.sent + 1);
        let header = MessageHeader::event(id, id, MessageId::NONE, GRAIN);
        if send(&mut self.bus.instance(S0), &header, Ack::NOTHING) {
            self.sent += 1;
        } else {
            self.participant.ask_to_grow(&self.bus).unwrap();
        }
    }

    fn read(&mut self) {
        while let Some((delivery, place)) = self.receiver.receive() {
            self.answered += 1;
            let root = delivery.message.header.root;
            assert_eq!(root, MessageId(self.answered), "in order, each once");
            let payload = self
                .bus
                .payload(&delivery)
                .expect("a payload that is there");
            assert_eq!(payload, bytes_of(root), "torn");
            self.receiver.acknowledge(place);
        }
    }
}

/// The grain's instance at the moment, 0 if there is none.
fn instance_of(sandbox: &Sandbox) -> i32 {
    let bus = sandbox.guardian.view(GRAIN).unwrap();
    let state = bus.own_layout().slot_at(S1) + offset_of!(InstanceSlot, state);
    let word = bus
        .segment(GRAIN)
        .unwrap()
        .word(state + offset_of!(SlotState, pid));
    word.load(Ordering::Relaxed) as i32
}

struct Killer {
    random: Random,
    group: i32,
    next: Instant,
    kills: u64,
}

impl Killer {
    /// Kills the instance or the whole family when it is time; the family comes back at once.
    fn strike(&mut self, sandbox: &mut Sandbox) {
        if Instant::now() < self.next || self.kills == KILLS {
            return;
        }
        self.next = Instant::now() + Duration::from_micros(500 + self.random.below(15_000));
        self.kills += 1;
        let instance = instance_of(sandbox);
        if self.kills.is_multiple_of(4) {
            sandbox.kill_family(GRAIN, self.group);
            self.group = sandbox.spawn(GRAIN, worker);
        } else if instance > 0 {
            // SAFETY: a process of the group of this test's child, which reaps it.
            unsafe { libc::kill(instance, libc::SIGKILL) };
        }
    }
}

/// A test that fails leaves no instance behind, which would keep its output open.
impl Drop for Killer {
    fn drop(&mut self) {
        sandbox::kill_group(self.group);
    }
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn kills_while_pools_grow_and_shrink_leave_nothing_behind() {
    let _watchdog = Watchdog::new(Duration::from_secs(300));
    sandbox::become_subreaper();
    let mut sandbox = Sandbox::new(topology());
    sandbox.guardian.retire_after(IDLE);
    let (participant, bus) = sandbox.join(AGENT);
    let group = sandbox.spawn(GRAIN, worker);
    let mut agent = Agent {
        receiver: bus.receiver(),
        participant,
        bus,
        sent: 0,
        answered: 0,
    };
    let mut killer = Killer {
        random: Random(0x9e37),
        group,
        next: Instant::now(),
        kills: 0,
    };
    let before = open_files();
    let mut last_news = Instant::now();
    while killer.kills < KILLS || agent.answered < agent.sent || agent.sent == 0 {
        // A burst that nobody reads until it is whole, its answers, and a rest for the pools.
        let (burst, until) = (agent.answered + BURST, Instant::now() + 3 * IDLE);
        while agent.sent < burst || Instant::now() < until {
            if agent.sent < burst && killer.kills < KILLS {
                agent.send();
            } else if agent.sent < burst {
                break;
            }
            agent.serve(&mut sandbox);
            killer.strike(&mut sandbox);
            let (sent, answered) = (agent.sent, agent.answered);
            // Unread for a while, so that kills meet extensions that hold something.
            if last_news.elapsed() > 2 * IDLE {
                agent.read();
            }
            if (sent, answered) != (agent.sent, agent.answered) || sent < agent.sent {
                last_news = Instant::now();
            }
            assert!(
                last_news.elapsed() < PATIENCE,
                "{answered} of {sent} answered"
            );
        }
        let (until, answered) = (Instant::now() + 3 * IDLE, agent.answered);
        while agent.answered < agent.sent || Instant::now() < until {
            agent.serve(&mut sandbox);
            killer.strike(&mut sandbox);
            agent.read();
            if agent.answered != answered {
                last_news = Instant::now();
            }
            assert!(until.elapsed() < PATIENCE, "answers are missing");
        }
    }
    nothing_is_left(&mut sandbox, &mut agent, &killer);
    assert!(
        open_files() <= before,
        "{} files, {before} before",
        open_files()
    );
}

fn nothing_is_left(sandbox: &mut Sandbox, agent: &mut Agent, killer: &Killer) {
    let grown = [AGENT, GRAIN].map(|family| agent.bus.counters(family).grown);
    println!(
        "{} messages, {} kills, grown {grown:?}",
        agent.sent, killer.kills
    );
    assert!(
        grown.iter().all(|&grown| grown >= 10),
        "hardly any growth: {grown:?}"
    );
    let until = Instant::now() + PATIENCE;
    while !sandbox.guardian.is_whole() {
        agent.serve(sandbox);
        assert!(Instant::now() < until, "an extension stays open");
    }
    sandbox.kill_family(GRAIN, killer.group);
    for family in [AGENT, GRAIN] {
        let audit = sandbox.guardian.view(family).unwrap().audit(family);
        assert_eq!(audit, sandpipe::Audit::default(), "{family:?}");
    }
}

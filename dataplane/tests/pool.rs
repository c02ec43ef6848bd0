//! The payload pool between real processes: a full chain, and what a pool costs in memory.
#![allow(unsafe_code, reason = "fork and kill of test processes")]

mod sandbox;

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use sandbox::{Sandbox, Watchdog, exit};
use sandpipe::{
    Ack, Bus, ChunkClass, Delivery, FamilyIndex, FamilySpec, Instance, Loan, LoanError, Mapping,
    MessageHeader, MessageId, Participant, Payload, Receiver, SlotIndex, Target, Topology,
    TraceStamps, derive_child, layout,
};

const AGENT: FamilyIndex = FamilyIndex::AGENT;
const GRAINS: [FamilyIndex; 3] = [FamilyIndex(1), FamilyIndex(2), FamilyIndex(3)];
const S0: SlotIndex = SlotIndex(0);
const MESSAGES: u128 = 50;
const LEN: usize = 1000;
const PATIENCE: Duration = Duration::from_secs(20);
const CLASS: ChunkClass = ChunkClass {
    bytes: 1024,
    count: 1,
};
/// Each of a page.
const EXTENSIONS: u64 = 2;

/// The agent and three grains in a ring, one slot each, with one pool each.
fn ring(chunks: &[ChunkClass]) -> Topology {
    let family = |next: u16| FamilySpec {
        slots: 1,
        targets: vec![Target {
            queue: FamilyIndex(next),
            lane_slots: 8,
        }],
        chunks: chunks.to_vec(),
    };
    Topology::new([1, 2, 3, 0].map(family).to_vec()).unwrap()
}

fn byte_of(root: MessageId) -> u8 {
    root.0 as u8
}

fn send(instance: &mut Instance<Mapping>, loan: &Loan, header: &MessageHeader, ack: Ack) {
    instance.write(loan, 0, &[byte_of(header.root); LEN]);
    let payload = Payload::Loaned(loan);
    instance
        .stage(header.queue, header, payload, TraceStamps::default())
        .expect("the lanes are longer than the pools");
    instance.commit(ack);
}

/// A grain: passes every message on, and waits while its pool is exhausted.
fn grain(mut participant: Participant, mut bus: Bus<Mapping>) {
    let next = FamilyIndex((bus.family().0 + 1) % 4);
    loop {
        if participant.update(&mut bus).unwrap_or_else(|_| exit(0)) {
            bus.bump_attach_epoch();
        }
        if let Some(input) = bus.claimer(S0).claim(|| 1) {
            pass_on(&mut participant, &mut bus, next, &input);
            bus.claimer(S0).finish();
        } else {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

fn pass_on(
    participant: &mut Participant,
    bus: &mut Bus<Mapping>,
    next: FamilyIndex,
    input: &Delivery,
) {
    let before = input.message.header;
    assert_eq!(bus.payload(input).unwrap(), [byte_of(before.root); LEN]);
    let id = derive_child(before.id, 0);
    let header = MessageHeader::event(id, before.root, before.id, next);
    let mut instance = bus.instance(S0);
    loop {
        match instance.loan(LEN) {
            Ok(loan) => return send(&mut instance, &loan, &header, input.ack),
            Err(LoanError::Exhausted { .. }) => {
                participant.ask_to_grow(bus).unwrap_or_else(|_| exit(0));
            }
            Err(error) => panic!("{error}"),
        }
        std::thread::sleep(Duration::from_micros(100));
        // A consumer that was made anew releases in its new segment.
        if participant.update(bus).unwrap_or_else(|_| exit(0)) {
            bus.bump_attach_epoch();
            instance = bus.instance(S0);
        }
    }
}

/// The test as the agent: feeds the first grain and reads what the last one answers.
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

    /// Sends the next message; false if the pool is exhausted.
    fn send(&mut self) -> bool {
        let mut instance = self.bus.instance(S0);
        let Ok(loan) = instance.loan(LEN) else {
            self.participant.ask_to_grow(&self.bus).unwrap();
            return false;
        };
        self.sent += 1;
        let id = MessageId(self.sent);
        let header = MessageHeader::event(id, id, MessageId::NONE, GRAINS[0]);
        send(&mut instance, &loan, &header, Ack::NOTHING);
        true
    }

    fn read(&mut self) {
        while let Some((delivery, place)) = self.receiver.receive() {
            self.answered += 1;
            let root = delivery.message.header.root;
            assert_eq!(root, MessageId(self.answered), "in order, each once");
            let payload = self.bus.payload(&delivery).unwrap();
            assert_eq!(payload, [byte_of(root); LEN]);
            self.receiver.acknowledge(place);
        }
    }
}

fn published(agent: &Agent) -> [u64; 3] {
    GRAINS.map(|family| agent.bus.counters(family).published)
}

/// Feeds the chain while nobody reads the answers, until every grain waits for a chunk: one message
/// lies in the agent's lane, and one in each grain's hands.
fn fill(sandbox: &mut Sandbox, agent: &mut Agent) {
    let until = Instant::now() + PATIENCE;
    while (agent.sent, published(agent)) != (4, [3, 2, 1]) {
        agent.send();
        agent.serve(sandbox);
        assert!(Instant::now() < until, "the chain does not fill");
    }
    let tries = |agent: &Agent| GRAINS.map(|family| agent.bus.counters(family).exhausted);
    let before = tries(agent);
    while tries(agent)
        .iter()
        .zip(before)
        .any(|(&now, then)| now == then)
    {
        assert!(!agent.send(), "one chunk a family holds more");
        agent.serve(sandbox);
        assert!(Instant::now() < until, "not every grain waits");
    }
    assert_eq!((agent.sent, published(agent)), (4, [3, 2, 1]));
    assert!(agent.bus.counters(AGENT).exhausted > 0);
}

/// The same with pools that may grow by `EXTENSIONS` in all: whoever asks first gets them, and then
/// everybody waits.
fn fill_grown(sandbox: &mut Sandbox, agent: &mut Agent) {
    let all = [AGENT, GRAINS[0], GRAINS[1], GRAINS[2]];
    let tries = |agent: &Agent| all.map(|family| agent.bus.counters(family).exhausted);
    let until = Instant::now() + PATIENCE;
    let (mut before, mut since) = ((0, [0; 3]), tries(agent));
    // Nothing has moved while everybody has tried many times.
    while tries(agent)
        .iter()
        .zip(since)
        .any(|(&now, then)| now < then + 50)
    {
        agent.send();
        agent.serve(sandbox);
        let now = (agent.sent, published(agent));
        if now != before {
            (before, since) = (now, tries(agent));
        }
        assert!(Instant::now() < until, "not every grain waits: {now:?}");
    }
    let grown = all.map(|family| agent.bus.counters(family).grown);
    assert_eq!(grown.iter().sum::<u64>(), EXTENSIONS, "{grown:?}");
}

#[test]
fn a_chain_whose_every_grain_waits_for_a_chunk_goes_on_when_the_agent_reads() {
    a_full_chain_goes_on(ring(&[CLASS]), fill);
}

#[test]
fn a_chain_whose_every_grain_waits_for_an_extension_goes_on_when_the_agent_reads() {
    let topology = ring(&[CLASS]).with_growth(EXTENSIONS * layout::PAGE as u64);
    a_full_chain_goes_on(topology, fill_grown);
}

fn a_full_chain_goes_on(topology: Topology, fill: fn(&mut Sandbox, &mut Agent)) {
    let _watchdog = Watchdog::new(Duration::from_secs(120));
    let mut sandbox = Sandbox::new(topology);
    sandbox.guardian.retire_after(Duration::from_millis(50));
    let (participant, bus) = sandbox.join(AGENT);
    let receiver = bus.receiver();
    let (sent, answered) = (0, 0);
    let mut agent = Agent {
        participant,
        bus,
        receiver,
        sent,
        answered,
    };
    let mut groups = GRAINS.map(|family| sandbox.spawn(family, grain));
    fill(&mut sandbox, &mut agent);
    // The one in the middle dies while it waits, and comes back.
    sandbox.kill_family(GRAINS[1], groups[1]);
    groups[1] = sandbox.spawn(GRAINS[1], grain);
    let until = Instant::now() + PATIENCE;
    while agent.answered < MESSAGES {
        agent.serve(&mut sandbox);
        agent.read();
        if agent.sent < MESSAGES {
            agent.send();
        }
        assert!(
            Instant::now() < until,
            "{} of {} answered",
            agent.answered,
            agent.sent
        );
    }
    for (&family, group) in GRAINS.iter().zip(groups) {
        sandbox.kill_family(family, group);
    }
    // Exact: recovery moves a tail that its owner did not come to move.
    assert_eq!(published(&agent), [MESSAGES as u64; 3]);
    for family in [AGENT, GRAINS[0], GRAINS[1], GRAINS[2]] {
        let audit = sandbox.guardian.view(family).unwrap().audit(family);
        assert_eq!(audit.chunks_loaned + audit.chunks_published, 0);
    }
}

/// Bytes of memory that a segment has, not the bytes that it could have.
fn resident(fd: BorrowedFd<'_>) -> i64 {
    rustix::fs::fstat(fd).unwrap().st_blocks * 512
}

#[test]
fn a_payload_costs_its_pages_and_a_restart_gives_back_what_nobody_holds() {
    let huge = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    let huge = std::fs::read_to_string(huge).unwrap_or_default();
    if huge.contains("[always]") || huge.contains("[force]") {
        eprintln!("SKIP a_payload_costs_its_pages: this host gives huge pages unasked");
        return;
    }
    let class = ChunkClass {
        bytes: (1 << 20) + 64,
        count: 8,
    };
    let mut sandbox = Sandbox::new(ring(&[class]));
    for family in [AGENT, GRAINS[0], GRAINS[1], GRAINS[2]] {
        sandbox.make_sealed(family);
    }
    let bytes = |sandbox: &Sandbox| resident(sandbox.guardian.update_message(GRAINS[0]).1[0]);
    let bus = sandbox.guardian.view(GRAINS[0]).unwrap();
    let mut instance = bus.instance(S0);
    let before = bytes(&sandbox);
    let mut held = Vec::new();
    for (number, len) in [100, 4096, 10_000, 1 << 20].into_iter().enumerate() {
        let at_first = bytes(&sandbox);
        let loan = instance.loan(len).unwrap();
        instance.write(&loan, 0, &vec![1; len]);
        let pages = (len.div_ceil(4096) + 1) as i64;
        let cost = bytes(&sandbox) - at_first;
        assert!(
            cost <= pages * 4096,
            "{len} bytes cost {cost}, chunk {number}"
        );
        held.push(loan);
    }
    assert!(bytes(&sandbox) - before > 1 << 20);
    held.into_iter().for_each(|loan| instance.give_back(loan));
    sandbox.guardian.repair_family(GRAINS[0]);
    sandbox.make_sealed(GRAINS[0]);
    let after = bytes(&sandbox);
    assert!(after <= before, "{after} of {before}");
}

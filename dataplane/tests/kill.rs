//! Random SIGKILLs under load, judged by an independent checker.
//!
//! A source feeds a chain of two grains, each a worker with two instances; every hop is copied to
//! the agent, who is the checker. Victims are instances, whole workers with their instances, and
//! the source. Nothing committed may be lost, torn, invented or doubled, the agent's copy must
//! be there before the answer, and in the end every slot, entry and chunk must be back.
//! With `--features pauses` the steps of a commit are apart far enough to be hit.
#![allow(unsafe_code, reason = "fork, kill and waitpid of test processes")]

mod sandbox;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use sandbox::{Random, Sandbox, exit, hold, payload};
use sandpipe::{
    Ack, Bus, ChunkClass, Delivery, FamilyIndex, FamilySpec, Instance, Kind, Mapping, Memory,
    MessageHeader, MessageId, Participant, Payload, Receiver, SlotIndex, Target, Topology,
    TraceStamps, derive_child, monotonic_ns, segment,
};

const AGENT: FamilyIndex = FamilyIndex::AGENT;
const SOURCE: FamilyIndex = FamilyIndex(1);
const FIRST: FamilyIndex = FamilyIndex(2);
const SECOND: FamilyIndex = FamilyIndex(3);
const INSTANCES: u16 = 2;

fn topology() -> Topology {
    let chunks = vec![
        ChunkClass {
            bytes: 256,
            count: 24,
        },
        ChunkClass {
            bytes: 4096,
            count: 24,
        },
    ];
    let family = |slots: u16, queues: &[FamilyIndex]| FamilySpec {
        slots,
        targets: queues
            .iter()
            .map(|&queue| Target {
                queue,
                lane_slots: 16,
            })
            .collect(),
        chunks: chunks.clone(),
    };
    Topology::new(vec![
        family(1, &[SOURCE]),
        family(1, &[AGENT, FIRST]),
        family(1 + INSTANCES, &[AGENT, SECOND]),
        family(1 + INSTANCES, &[AGENT]),
    ])
    .unwrap()
}

/// The words that the test and its processes share outside the bus.
#[derive(Clone)]
struct Control(Mapping);

impl Control {
    fn new() -> Control {
        let fd = segment::create("kill-test-control", 4096).unwrap();
        Control(Mapping::new(fd, 4096, true, 4096).unwrap())
    }

    fn word(&self, index: usize) -> &std::sync::atomic::AtomicU64 {
        self.0.word(index * 8)
    }

    /// The source stops after this message.
    fn limit(&self) -> u64 {
        self.word(0).load(std::sync::atomic::Ordering::SeqCst)
    }

    fn set_limit(&self, limit: u64) {
        self.word(0)
            .store(limit, std::sync::atomic::Ordering::SeqCst);
    }

    fn count(&self, what: Counter) {
        self.word(what as usize)
            .fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }

    fn counted(&self, what: Counter) -> u64 {
        self.word(what as usize)
            .load(std::sync::atomic::Ordering::SeqCst)
    }
}

#[derive(Clone, Copy)]
enum Counter {
    Torn = 1,
    Redelivered = 2,
    RolledForward = 3,
}

/// Stages an output for the agent and for `next` (or as the answer) and commits.
fn publish(
    instance: &mut Instance<Mapping>,
    header: MessageHeader,
    next: Option<FamilyIndex>,
    hop: u64,
    ack: Ack,
) {
    let bytes = payload(header.root.0, hop);
    let loan = (bytes.len() > 64).then(|| {
        loop {
            match instance.loan(bytes.len()) {
                Ok(loan) => break loan,
                Err(_) => std::thread::yield_now(),
            }
        }
    });
    if let Some(loan) = &loan {
        instance.write(loan, 0, &bytes);
    }
    loop {
        let body = loan
            .as_ref()
            .map_or(Payload::Inline(&bytes), Payload::Loaned);
        let queues = [Some(AGENT), next];
        let staged = queues
            .into_iter()
            .flatten()
            .try_for_each(|queue| instance.stage(queue, &header, body, TraceStamps::default()));
        if staged.is_ok() {
            return instance.commit(ack);
        }
        instance.discard();
        std::thread::yield_now();
    }
}

fn source(control: &Control, mut participant: Participant, mut bus: Bus<Mapping>) {
    let mut instance = hold(&bus, SlotIndex(0));
    loop {
        if participant.update(&mut bus).unwrap_or_else(|_| exit(0)) {
            instance = bus.instance(SlotIndex(0));
        }
        let number = instance.commits() + 1;
        if number > control.limit() {
            std::thread::sleep(Duration::from_micros(500));
            continue;
        }
        let root = MessageId(number.into());
        let header = MessageHeader::event(root, root, MessageId::NONE, FIRST);
        publish(&mut instance, header, Some(FIRST), 0, Ack::NOTHING);
    }
}

/// A worker: forks its instances, recovers the dead, maps restarted peers.
fn worker(control: &Control, hop: u64, mut participant: Participant, mut bus: Bus<Mapping>) {
    let _held = hold(&bus, SlotIndex(0));
    let mut pids = HashMap::new();
    for slot in 1..=INSTANCES {
        pids.insert(
            fork_instance(control, hop, &bus, SlotIndex(slot)),
            SlotIndex(slot),
        );
    }
    loop {
        if participant.update(&mut bus).unwrap_or_else(|_| exit(0)) {
            bus.bump_attach_epoch();
            bus.bell(bus.family()).ring_all();
        }
        // SAFETY: reaps children of this process.
        let pid = unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) };
        let Some(slot) = pids.remove(&pid) else {
            std::thread::sleep(Duration::from_micros(300));
            continue;
        };
        let repair = sandpipe::recover::recover_slot(&bus, slot);
        (0..repair.rolled_forward).for_each(|_| control.count(Counter::RolledForward));
        bus.ring_after_recovery();
        pids.insert(fork_instance(control, hop, &bus, slot), slot);
    }
}

fn fork_instance(control: &Control, hop: u64, bus: &Bus<Mapping>, slot: SlotIndex) -> i32 {
    let parent = std::process::id();
    // SAFETY: the child runs test code only and ends with _exit; the worker has one thread.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: asks for a signal at the parent's death, then makes sure that it still lives.
        let parent_now = unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::getppid()
        };
        if parent_now.cast_unsigned() == parent {
            instance(control, hop, bus, slot);
        }
        exit(0);
    }
    pid
}

fn instance(control: &Control, hop: u64, bus: &Bus<Mapping>, slot: SlotIndex) {
    let mut instance = hold(bus, slot);
    let mut claimer = bus.claimer(slot);
    let bell = bus.bell(bus.family());
    while !bus.is_stale() {
        let Some(delivery) = claimer.claim(monotonic_ns) else {
            let parking = bell.prepare();
            if claimer.has_message() || bus.is_stale() {
                parking.cancel();
            } else {
                parking.sleep(Duration::from_millis(5));
            }
            continue;
        };
        handle(control, hop, bus, &mut instance, &delivery);
        claimer.finish();
    }
}

fn handle(
    control: &Control,
    hop: u64,
    bus: &Bus<Mapping>,
    instance: &mut Instance<Mapping>,
    delivery: &Delivery,
) {
    let input = delivery.message.header;
    if delivery.attempt > 1 {
        control.count(Counter::Redelivered);
    }
    if bus.payload(delivery).ok() != Some(payload(input.root.0, hop - 1)) {
        control.count(Counter::Torn);
    }
    let next = (bus.family() == FIRST).then_some(SECOND);
    let id = derive_child(input.id, 0);
    let mut header = MessageHeader::event(id, input.root, input.id, next.unwrap_or(AGENT));
    header.last = true;
    header.kind = if next.is_some() {
        Kind::Event
    } else {
        Kind::Final
    };
    publish(instance, header, next, hop, delivery.ack);
}

/// What the agent has seen: for each hop, how often each root's copy came.
struct Checker {
    bus: Bus<Mapping>,
    participant: Participant,
    receiver: Receiver<Mapping>,
    seen: [Vec<u8>; 3],
    unconfirmed: Vec<usize>,
    torn: u64,
    invented: u64,
    early_answers: u64,
}

impl Checker {
    fn drain(&mut self) {
        if self.participant.update(&mut self.bus).unwrap() {
            self.receiver.rebind(&self.bus);
        }
        for _ in 0..256 {
            let Some((delivery, place)) = self.receiver.receive() else {
                // Every lane was looked at since the answer came: its copies must be there.
                for root in self.unconfirmed.drain(..) {
                    let copies = self
                        .seen
                        .iter()
                        .all(|hop| hop.get(root).is_some_and(|n| *n > 0));
                    self.early_answers += u64::from(!copies);
                }
                return;
            };
            self.check(&delivery);
            self.receiver.acknowledge(place);
        }
    }

    fn check(&mut self, delivery: &Delivery) {
        let header = delivery.message.header;
        let hop = usize::from(delivery.source.0 - 1);
        let root = header.root.0;
        let mut expected = MessageId(root);
        (0..hop).for_each(|_| expected = derive_child(expected, 0));
        if header.id != expected || root == 0 || root > 1 << 40 {
            self.invented += 1;
            return;
        }
        if self.bus.payload(delivery).ok() != Some(payload(root, hop as u64)) {
            self.torn += 1;
        }
        let seen = &mut self.seen[hop];
        if seen.len() <= root as usize {
            seen.resize(root as usize * 2 + 64, 0);
        }
        seen[root as usize] = seen[root as usize].saturating_add(1);
        if header.kind == Kind::Final {
            self.unconfirmed.push(root as usize);
        }
    }

    fn answers(&self) -> usize {
        self.seen[2].iter().filter(|&&count| count > 0).count()
    }

    /// Messages of the first `limit` roots that are (missing, doubled), over all hops.
    fn verdict(&self, limit: usize) -> (usize, usize) {
        let counts = self
            .seen
            .iter()
            .flat_map(|hop| (1..=limit).map(|root| hop.get(root).copied().unwrap_or(0)));
        counts.fold((0, 0), |(lost, doubled), count| match count {
            0 => (lost + 1, doubled),
            1 => (lost, doubled),
            _ => (lost, doubled + 1),
        })
    }
}

struct Chain {
    sandbox: Sandbox,
    control: Control,
    groups: HashMap<FamilyIndex, i32>,
}

impl Chain {
    fn start(&mut self, family: FamilyIndex) {
        let control = self.control.clone();
        let pid = self.sandbox.spawn(family, |participant, bus| match family {
            SOURCE => source(&control, participant, bus),
            _ => worker(&control, u64::from(family.0 - 1), participant, bus),
        });
        self.groups.insert(family, pid);
    }

    fn restart(&mut self, family: FamilyIndex) {
        let repair = self.sandbox.kill_family(family, self.groups[&family]);
        (0..repair.rolled_forward).for_each(|_| self.control.count(Counter::RolledForward));
        self.start(family);
    }

    /// One SIGKILL: mostly an instance, sometimes a whole worker or the source.
    fn kill_something(&mut self, random: &mut Random, view: &Bus<Mapping>) {
        let family = [SOURCE, FIRST, SECOND][random.below(3) as usize];
        if family == SOURCE || random.below(4) == 0 {
            return self.restart(family);
        }
        let slot = SlotIndex(1 + random.below(INSTANCES.into()) as u16);
        if let Some(sandpipe::lease::LeaseState::Held(pid)) =
            sandpipe::lease::lease_state(view, family, slot)
        {
            // SAFETY: the lease names a process of this test; a stale one belongs to its group,
            // so a reused number of a foreign process is excluded by the group check.
            unsafe {
                let pid = pid.cast_signed();
                if libc::getpgid(pid) == self.groups[&family] {
                    libc::kill(pid, libc::SIGKILL);
                }
            }
        }
    }
}

fn kill_test(kills: u64) {
    sandbox::watchdog(Duration::from_secs(60 + kills / 5));
    sandbox::become_subreaper();
    let mut chain = Chain {
        sandbox: Sandbox::new(topology()),
        control: Control::new(),
        groups: HashMap::new(),
    };
    chain.control.set_limit(u64::MAX);
    let (participant, bus) = chain.sandbox.join(AGENT);
    let receiver = bus.receiver();
    let mut checker = Checker {
        bus,
        participant,
        receiver,
        seen: Default::default(),
        unconfirmed: Vec::new(),
        torn: 0,
        invented: 0,
        early_answers: 0,
    };
    for family in [SOURCE, FIRST, SECOND] {
        chain.start(family);
    }
    let mut random = Random(monotonic_ns() | 1);
    for _ in 0..kills {
        let until = Instant::now() + Duration::from_micros(100 + random.below(1500));
        while Instant::now() < until {
            chain.sandbox.serve();
            checker.drain();
            std::thread::yield_now();
        }
        let view = checker.bus.clone();
        chain.kill_something(&mut random, &view);
    }
    // Everything that the source has committed must arrive.
    let stop = Instant::now() + Duration::from_secs(20);
    chain.control.set_limit(0);
    chain.restart(SOURCE);
    let limit = chain
        .sandbox
        .guardian
        .view(SOURCE)
        .unwrap()
        .instance(SlotIndex(0))
        .commits();
    while checker.answers() < limit as usize && Instant::now() < stop {
        chain.sandbox.serve();
        checker.drain();
    }
    checker.drain();
    if checker.answers() < limit as usize {
        for family in [AGENT, SOURCE, FIRST, SECOND] {
            let audit = chain.sandbox.guardian.view(family).unwrap().audit(family);
            eprintln!("stuck: family {} holds {audit:?}", family.0);
        }
        let groups = chain
            .groups
            .values()
            .map(i32::to_string)
            .collect::<Vec<_>>()
            .join(",");
        let state = std::process::Command::new("ps")
            .args(["-o", "pid,ppid,pgid,stat,wchan:20,cmd", "-g", &groups])
            .output()
            .unwrap();
        eprintln!("{groups}: {}", String::from_utf8_lossy(&state.stdout));
    }
    judge(&mut chain, &checker, limit, kills);
}

fn judge(chain: &mut Chain, checker: &Checker, limit: u64, kills: u64) {
    for family in [SOURCE, FIRST, SECOND] {
        chain.sandbox.kill_family(family, chain.groups[&family]);
    }
    let (lost, doubled) = checker.verdict(limit as usize);
    let control = &chain.control;
    println!(
        "{kills} kills, {limit} messages x 3 hops: lost {lost}, doubled {doubled}, torn {} + {}, \
         invented {}, answers before their copies {}; redelivered {}, rolled forward {}",
        checker.torn,
        control.counted(Counter::Torn),
        checker.invented,
        checker.early_answers,
        control.counted(Counter::Redelivered),
        control.counted(Counter::RolledForward),
    );
    assert_eq!((lost, doubled), (0, 0));
    assert_eq!((checker.torn, control.counted(Counter::Torn)), (0, 0));
    assert_eq!((checker.invented, checker.early_answers), (0, 0));
    assert!(
        limit > kills / 4,
        "the chain has hardly run: {limit} messages"
    );
    assert!(
        control.counted(Counter::Redelivered) > 0,
        "no kill ever hit a message in flight"
    );
    for family in [SOURCE, FIRST, SECOND] {
        let audit = chain.sandbox.guardian.view(family).unwrap().audit(family);
        assert_eq!(
            audit,
            sandpipe::Audit::default(),
            "family {} keeps something",
            family.0
        );
    }
    if cfg!(feature = "pauses") && kills >= 1000 {
        let rolled = control.counted(Counter::RolledForward);
        assert!(
            rolled > 0,
            "no kill ever hit the window between a commit and its last step"
        );
    }
}

#[test]
fn nothing_is_lost_torn_or_invented_under_random_kills() {
    let full = std::env::var_os("SANDPIPE_FULL").is_some();
    kill_test(if full { 20_000 } else { 2_000 });
}

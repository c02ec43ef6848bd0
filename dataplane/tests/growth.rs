//! Pools that grow and shrink, between real processes: a burst, the limit, and memory that comes
//! back.
#![allow(unsafe_code, reason = "fork, stop and kill of test processes")]

mod sandbox;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use sandbox::{Sandbox, Watchdog, exit};
use sandpipe::attach::AttachMessage;
use sandpipe::recover::recover_slot;
use sandpipe::{
    Ack, Bus, ChunkClass, FamilyIndex, FamilySpec, LoanError, Mapping, MessageHeader, MessageId,
    Participant, Payload, PayloadError, Reaction, SlotIndex, Target, Topology, TraceStamps,
};

const AGENT: FamilyIndex = FamilyIndex::AGENT;
const GRAIN: FamilyIndex = FamilyIndex(1);
const S0: SlotIndex = SlotIndex(0);
const S1: SlotIndex = SlotIndex(1);
const CHUNKS: u128 = 8;
const LEN: usize = 64 << 10;
const EXTENSION: u64 = CHUNKS as u64 * LEN as u64;
const PATIENCE: Duration = Duration::from_secs(20);
const IDLE: Duration = Duration::from_millis(100);

/// The agent sends to one grain, from a pool that may grow by two extensions.
fn sandbox() -> Sandbox {
    let agent = FamilySpec {
        slots: 1,
        targets: vec![Target {
            queue: GRAIN,
            lane_slots: 64,
        }],
        chunks: vec![ChunkClass {
            bytes: LEN as u64,
            count: CHUNKS as u32,
        }],
    };
    let grain = FamilySpec {
        slots: 2,
        targets: vec![],
        chunks: vec![],
    };
    let topology = Topology::new(vec![agent, grain]).unwrap();
    let mut sandbox = Sandbox::new(topology.with_growth(2 * EXTENSION));
    sandbox.guardian.retire_after(IDLE);
    sandbox
}

fn bytes_of(id: MessageId) -> Vec<u8> {
    vec![id.0 as u8; LEN]
}

/// The sending end, in the test's own process.
struct Agent {
    participant: Participant,
    bus: Bus<Mapping>,
    sent: u128,
}

impl Agent {
    fn join(sandbox: &mut Sandbox) -> Agent {
        let (participant, bus) = sandbox.join(AGENT);
        Agent {
            participant,
            bus,
            sent: 0,
        }
    }

    fn serve(&mut self, sandbox: &mut Sandbox) {
        sandbox.serve();
        self.participant.update(&mut self.bus).unwrap();
    }

    /// Sends the next message, or asks for more room.
    fn send(&mut self) -> Result<(), LoanError> {
        let mut instance = self.bus.instance(S0);
        let id = MessageId(self.sent + 1);
        match instance.loan(LEN) {
            Ok(loan) => {
                instance.write(&loan, 0, &bytes_of(id));
                let header = MessageHeader::event(id, id, MessageId::NONE, GRAIN);
                let payload = Payload::Loaned(&loan);
                let staged = instance.stage(GRAIN, &header, payload, TraceStamps::default());
                staged.expect("the lane is longer than the pool can be");
                instance.commit(Ack::NOTHING);
                self.sent += 1;
                Ok(())
            }
            Err(error) => {
                self.participant.ask_to_grow(&self.bus).unwrap();
                Err(error)
            }
        }
    }

    /// Sends until `sent` messages are sent.
    fn send_until(&mut self, sandbox: &mut Sandbox, sent: u128) {
        let until = Instant::now() + PATIENCE;
        while self.sent < sent {
            let _ = self.send();
            self.serve(sandbox);
            assert!(Instant::now() < until, "{} of {sent} sent", self.sent);
        }
    }

    /// Waits until the pool is as small as it was made.
    fn await_small(&mut self, sandbox: &mut Sandbox) {
        let until = Instant::now() + PATIENCE;
        while self.bus.pool_size(AGENT) != (EXTENSION, 0)
            || sandbox.guardian.renewals().next().is_some()
            || !sandbox.guardian.is_whole()
        {
            self.serve(sandbox);
            assert!(Instant::now() < until, "the pool stays large");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The receiving end: reads everything, and says how far it is by its head.
fn read_all(mut participant: Participant, mut bus: Bus<Mapping>) {
    let mut read = 0;
    loop {
        if participant.update(&mut bus).unwrap_or_else(|_| exit(0)) {
            bus.bump_attach_epoch();
        }
        let mut claimer = bus.claimer(S0);
        if let Some(delivery) = claimer.claim(|| 1) {
            read += 1;
            assert_eq!(delivery.message.header.id, MessageId(read), "in order");
            let payload = bus.payload(&delivery).expect("a payload that is there");
            assert_eq!(payload, bytes_of(MessageId(read)));
            bus.instance(S0).commit(delivery.ack);
            claimer.finish();
        } else {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

fn signal(pid: i32, signal: i32) {
    // SAFETY: signals a child of this test.
    unsafe { libc::kill(pid, signal) };
}

fn await_read(agent: &mut Agent, sandbox: &mut Sandbox) {
    let until = Instant::now() + PATIENCE;
    // Acknowledged too: a grain that is stopped in between would hold a chunk.
    let held = |agent: &Agent| agent.bus.audit(AGENT).chunks_published;
    while u128::from(agent.bus.counters(GRAIN).received) < agent.sent || held(agent) != 0 {
        agent.serve(sandbox);
        assert!(Instant::now() < until, "not everything is read");
    }
}

/// Inodes of the extensions' files, as the guardian has them now.
fn files(sandbox: &Sandbox) -> BTreeSet<u64> {
    let (_, fds) = sandbox.guardian.update_message(AGENT);
    let stats = fds[1..].iter().map(|fd| rustix::fs::fstat(fd).unwrap());
    stats.map(|stat| stat.st_ino).collect()
}

/// Which of the files a process maps or has open.
fn users(pid: u32, inodes: &BTreeSet<u64>) -> Vec<String> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let inode = |line: &str| line.split_whitespace().nth(4)?.parse().ok();
    let memfds = maps.lines().filter(|line| line.contains("sandpipe-ext"));
    let mapped = memfds.filter(|line| inode(line).is_some_and(|inode| inodes.contains(&inode)));
    let mut users: Vec<_> = mapped.map(str::to_owned).collect();
    for fd in std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .flatten()
    {
        let stat = rustix::fs::stat(fd.path());
        if stat.is_ok_and(|stat| inodes.contains(&stat.st_ino)) {
            users.push(format!("{fd:?}"));
        }
    }
    users
}

#[test]
fn a_burst_of_three_pools_passes_and_its_memory_comes_back() {
    let _watchdog = Watchdog::new(Duration::from_secs(120));
    let mut sandbox = sandbox();
    // First: a child made later would have what this process has as the agent.
    let grain = sandbox.spawn(GRAIN, read_all);
    let mut agent = Agent::join(&mut sandbox);
    agent.send_until(&mut sandbox, 1);
    await_read(&mut agent, &mut sandbox);
    for round in 1..=3 {
        signal(grain, libc::SIGSTOP);
        let before = files(&sandbox);
        let burst = agent.sent + 3 * CHUNKS;
        agent.send_until(&mut sandbox, burst);
        assert_eq!(agent.bus.pool_size(AGENT), (3 * EXTENSION, 2));
        assert_eq!(agent.bus.counters(AGENT).grown, 2 * round);
        // The limit: told and counted at each try, however long it lasts.
        let refused = agent.bus.counters(AGENT).exhausted;
        for tries in 1..=100 {
            assert_eq!(agent.send(), Err(LoanError::Exhausted { len: LEN as u64 }));
            agent.serve(&mut sandbox);
            assert_eq!(agent.bus.counters(AGENT).exhausted, refused + tries);
        }
        assert_eq!(agent.bus.pool_size(AGENT), (3 * EXTENSION, 2));
        // What somebody holds does not go back, however long it lasts.
        let later = Instant::now() + 3 * IDLE;
        while Instant::now() < later {
            agent.serve(&mut sandbox);
        }
        assert_eq!(files(&sandbox), before);
        signal(grain, libc::SIGCONT);
        await_read(&mut agent, &mut sandbox);
        agent.await_small(&mut sandbox);
        let after = files(&sandbox);
        assert!(before.is_disjoint(&after), "the files are new");
        let used: Vec<_> = [std::process::id(), grain.cast_unsigned()]
            .iter()
            .flat_map(|&pid| users(pid, &before))
            .collect();
        assert_eq!(used, Vec::<String>::new(), "nobody has the old files");
        let (_, fds) = sandbox.guardian.update_message(AGENT);
        for fd in &fds[1..] {
            assert_eq!(
                rustix::fs::fstat(fd).unwrap().st_blocks,
                0,
                "they are empty"
            );
        }
    }
    sandbox.kill_family(GRAIN, grain);
}

#[test]
fn a_process_with_older_files_hands_the_message_back_and_a_newer_one_reads_it() {
    let _watchdog = Watchdog::new(Duration::from_secs(120));
    let mut sandbox = sandbox();
    let mut agent = Agent::join(&mut sandbox);
    let (mut participant, mut bus) = sandbox.join(GRAIN);
    let read = |bus: &Bus<Mapping>| {
        let mut claimer = bus.claimer(S0);
        while let Some(delivery) = claimer.claim(|| 1) {
            bus.payload(&delivery).unwrap();
            bus.instance(S0).commit(delivery.ack);
            claimer.finish();
        }
    };
    agent.serve(&mut sandbox);
    participant.update(&mut bus).unwrap();
    agent.send_until(&mut sandbox, 2 * CHUNKS);
    read(&bus);
    // What an instance has that was forked now.
    let older = bus.clone();
    let until = Instant::now() + PATIENCE;
    while !sandbox.guardian.is_whole() || agent.bus.pool_size(AGENT).1 != 0 {
        agent.serve(&mut sandbox);
        if participant.update(&mut bus).unwrap() {
            bus.bump_attach_epoch();
        }
        assert!(Instant::now() < until, "the pool stays large");
    }
    assert!(older.is_stale());
    agent.send_until(&mut sandbox, 3 * CHUNKS + 1);
    // The segment's own chunks are readable with the older files too.
    let mut claimer = older.claimer(S1);
    for _ in 0..CHUNKS {
        let delivery = claimer.claim(|| 1).unwrap();
        assert_eq!(
            older.payload(&delivery).unwrap(),
            bytes_of(delivery.message.header.id)
        );
        older.instance(S1).commit(delivery.ack);
        claimer.finish();
    }
    let delivery = claimer.claim(|| 1).unwrap();
    assert_eq!(
        older.payload(&delivery),
        Err(PayloadError::Outdated(AGENT.0))
    );
    assert_eq!(older.counters(GRAIN).quarantined, 0, "nobody is to blame");
    claimer.hand_back(&delivery);
    // It ends, and its worker recovers its slot.
    assert_eq!(recover_slot(&bus, S1).orphaned, 1);
    assert_eq!(
        older.claimer(S1).claim(|| 1),
        None,
        "not to an older process again"
    );
    let again = bus.claimer(S0).claim(|| 1).unwrap();
    assert_eq!(again.message, delivery.message);
    assert_eq!(again.attempt, 1, "nobody has tried it");
    assert_eq!(
        bus.payload(&again).unwrap(),
        bytes_of(again.message.header.id)
    );
}

/// Waits for a child's next stop or end; its exit code once it has ended.
fn wait_for(pid: i32) -> Option<i32> {
    let mut status = 0;
    // SAFETY: waits for a child of this test.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, libc::WUNTRACED) };
    assert_eq!(waited, pid);
    libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status))
}

#[test]
fn a_process_with_older_files_does_not_loan_from_newer_ones() {
    let _watchdog = Watchdog::new(Duration::from_secs(120));
    let mut sandbox = sandbox();
    let mut agent = Agent::join(&mut sandbox);
    // What an instance has that was forked before the extensions were renewed.
    // SAFETY: the child runs the lines below only and ends with _exit.
    let older = unsafe { libc::fork() };
    if older == 0 {
        // SAFETY: stops this process until its parent goes on.
        unsafe { libc::raise(libc::SIGSTOP) };
        let loan = agent.bus.instance(S0).loan(LEN);
        exit(i32::from(loan.is_ok()));
    }
    assert_eq!(wait_for(older), None);
    let grow = AttachMessage::Grow.encode();
    sandbox.guardian.handle(AGENT, &grow).unwrap();
    agent.await_small(&mut sandbox);
    sandbox.guardian.retire_after(PATIENCE);
    agent.send_until(&mut sandbox, CHUNKS);
    sandbox.guardian.handle(AGENT, &grow).unwrap();
    assert_eq!(agent.bus.pool_size(AGENT).1, 1);
    signal(older, libc::SIGCONT);
    assert_eq!(
        wait_for(older),
        Some(0),
        "it has loaned from a file that nobody else maps"
    );
    assert_eq!(agent.send(), Ok(()), "who maps it has");
}

/// An extension of the agent's pool that was opened and closed again: its next file is made.
fn going_back() -> Sandbox {
    let mut sandbox = sandbox();
    sandbox.guardian.retire_after(Duration::ZERO);
    for family in [AGENT, GRAIN] {
        let _ = sandbox.make_sealed(family);
    }
    let grow = AttachMessage::Grow.encode();
    sandbox.guardian.handle(AGENT, &grow).unwrap();
    assert!(sandbox.guardian.renewals().next().is_none() && !sandbox.guardian.is_whole());
    sandbox.guardian.look_after_pools(Instant::now());
    assert_eq!(sandbox.guardian.renewals().collect::<Vec<_>>(), [AGENT]);
    sandbox
}

fn say_mapped(sandbox: &mut Sandbox) {
    sandbox.guardian.renewal_sent(AGENT);
    let mapped = AttachMessage::Mapped.encode();
    let reaction = sandbox.guardian.handle(AGENT, &mapped).unwrap();
    assert!(matches!(reaction, Reaction::Sealed), "{reaction:?}");
}

#[test]
fn a_death_at_each_step_of_going_back_leaves_a_closed_extension() {
    let dies = |sandbox: &mut Sandbox, family: FamilyIndex| {
        sandbox.guardian.repair_family(family);
        let _ = sandbox.make_sealed(family);
    };
    // The owner: before the file is sent, before it is mapped, before it says that all is well.
    let mut unsent = going_back();
    dies(&mut unsent, AGENT);
    let mut sent = going_back();
    sent.guardian.renewal_sent(AGENT);
    assert!(sent.guardian.renewals().next().is_none(), "sent once");
    dies(&mut sent, AGENT);
    let mut mapped = going_back();
    say_mapped(&mut mapped);
    mapped.guardian.settled(GRAIN);
    assert!(!mapped.guardian.is_whole());
    dies(&mut mapped, AGENT);
    // The reader: before it maps the new file, with and without a successor.
    let mut reader = going_back();
    say_mapped(&mut reader);
    reader.guardian.settled(AGENT);
    assert!(
        !reader.guardian.is_whole(),
        "until the reader has mapped it too"
    );
    reader.guardian.repair_family(GRAIN);
    for mut sandbox in [unsent, sent, mapped, reader] {
        assert!(sandbox.guardian.is_whole());
        let grow = AttachMessage::Grow.encode();
        sandbox.guardian.handle(AGENT, &grow).unwrap();
        let bus = sandbox.guardian.view(AGENT).unwrap();
        assert_eq!(
            bus.pool_size(AGENT),
            (2 * EXTENSION, 1),
            "it can be opened again"
        );
    }
}

#[test]
fn what_an_extension_holds_outlives_its_owner() {
    let mut sandbox = sandbox();
    for family in [AGENT, GRAIN] {
        let _ = sandbox.make_sealed(family);
    }
    let grow = AttachMessage::Grow.encode();
    sandbox.guardian.handle(AGENT, &grow).unwrap();
    let bus = sandbox.guardian.view(AGENT).unwrap();
    let mut instance = bus.instance(S0);
    for id in (1..=2 * CHUNKS).map(MessageId) {
        let loan = instance.loan(LEN).unwrap();
        instance.write(&loan, 0, &bytes_of(id));
        let header = MessageHeader::event(id, id, MessageId::NONE, GRAIN);
        let payload = Payload::Loaned(&loan);
        instance
            .stage(GRAIN, &header, payload, TraceStamps::default())
            .unwrap();
        instance.commit(Ack::NOTHING);
    }
    // One more is on loan when the owner dies: there is no chunk left but in the next extension.
    sandbox.guardian.handle(AGENT, &grow).unwrap();
    let _loan = instance.loan(LEN).unwrap();
    let repair = sandbox.guardian.repair_family(AGENT);
    assert_eq!(repair.freed_chunks, 1);
    let _ = sandbox.make_sealed(AGENT);
    let grain = sandbox.guardian.view(GRAIN).unwrap();
    let mut claimer = grain.claimer(S0);
    for id in (1..=2 * CHUNKS).map(MessageId) {
        let delivery = claimer.claim(|| 1).unwrap();
        assert_eq!(delivery.message.header.id, id);
        assert_eq!(grain.payload(&delivery).unwrap(), bytes_of(id));
        grain.instance(S0).commit(delivery.ack);
        claimer.finish();
    }
    let audit = sandbox.guardian.view(AGENT).unwrap().audit(AGENT);
    assert_eq!((audit.chunks_loaned, audit.chunks_published), (0, 0));
}

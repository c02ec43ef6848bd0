//! A tree of forks over busy rings: children that end without detaching, grandchildren that
//! outlive them and write.
#![allow(unsafe_code, reason = "fork and waitpid of test processes")]

mod sandbox;

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sandbox::{Sandbox, become_subreaper, exit, hold, payload};
use sandpipe::lease::{LeaseState, lease_state};
use sandpipe::{
    Ack, Audit, Bus, ChunkClass, FamilyIndex, FamilySpec, Instance, Mapping, Memory, MessageHeader,
    MessageId, Payload, Receiver, SlotIndex, Target, Topology, TraceStamps, recover, segment,
};

const AGENT: FamilyIndex = FamilyIndex::AGENT;
const GRAIN: FamilyIndex = FamilyIndex(1);
const S0: SlotIndex = SlotIndex(0);
const SLOTS: u64 = 3;

/// One fork in so many dies with its message unanswered, or leaves a grandchild behind.
const DIES: u64 = 7;
const LEAVES: u64 = 50;

fn topology() -> Topology {
    let family = |slots: u16, queue: FamilyIndex| FamilySpec {
        slots,
        targets: vec![Target {
            queue,
            lane_slots: 16,
        }],
        chunks: vec![ChunkClass {
            bytes: 4096,
            count: 16,
        }],
    };
    Topology::new(vec![family(1, GRAIN), family(1 + SLOTS as u16, AGENT)]).unwrap()
}

/// Publishes a message whose payload takes a chunk; false if there is no room or no chunk.
fn publish(
    instance: &mut Instance<Mapping>,
    root: MessageId,
    queue: FamilyIndex,
    ack: Ack,
) -> bool {
    let bytes = payload(root.0, u64::from(queue.0));
    let Ok(loan) = instance.loan(bytes.len()) else {
        return false;
    };
    instance.write(&loan, 0, &bytes);
    let header = MessageHeader::event(root, root, MessageId::NONE, queue);
    let body = Payload::Loaned(&loan);
    if instance
        .stage(queue, &header, body, TraceStamps::default())
        .is_err()
    {
        instance.discard();
        instance.give_back(loan);
        return false;
    }
    instance.commit(ack);
    true
}

/// (descriptors, mappings) of this process.
fn resources() -> (u64, u64) {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let segments = maps.lines().filter(|line| line.contains("sandpipe-"));
    (fds, segments.count() as u64)
}

/// The child's work: at most one message, then an end without a word to anybody.
fn child(bus: &Bus<Mapping>, slot: SlotIndex, number: u64) -> ! {
    // What an instance does right after the fork: who is forked from it maps nothing.
    let own = bus.segment(bus.family()).unwrap();
    own.do_not_fork();
    let mut instance = hold(bus, slot);
    if number.is_multiple_of(LEAVES) {
        // SAFETY: the grandchild only sleeps, writes, and ends.
        if unsafe { libc::fork() } == 0 {
            let none = libc::rlimit {
                rlim_cur: 0,
                rlim_max: 0,
            };
            // SAFETY: no core file for the death that is expected.
            unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) };
            std::thread::sleep(Duration::from_millis(5));
            let word = own.word(bus.own_layout().slot_at(slot));
            word.store(u64::MAX, Ordering::SeqCst);
            exit(0);
        }
    }
    if let Some(delivery) = bus.claimer(slot).claim(|| 1) {
        if number.is_multiple_of(DIES) {
            exit(1);
        }
        let root = delivery.message.header.root;
        assert_eq!(bus.payload(&delivery).unwrap(), payload(root.0, 1), "torn");
        while !publish(&mut instance, root, AGENT, delivery.ack) {
            std::thread::yield_now();
        }
    }
    exit(0)
}

/// Forks and repairs until the count is reached, then as long as messages are left.
fn worker(bus: &Bus<Mapping>, control: &Mapping, forks: u64) {
    let _held = hold(bus, S0);
    let before = resources();
    let mut slots = HashMap::new();
    let mut number = 0;
    while number < forks || control.word(0).load(Ordering::SeqCst) == 0 {
        let free = (1..=SLOTS as u16).find(|slot| !slots.values().any(|taken| taken == slot));
        if let Some(slot) = free {
            number += 1;
            // SAFETY: the child runs test code only and ends with _exit; one thread.
            match unsafe { libc::fork() } {
                0 => child(bus, SlotIndex(slot), number),
                pid => slots.insert(pid, slot),
            };
            control.word(8).store(number, Ordering::SeqCst);
        }
        let flags = if free.is_some() { libc::WNOHANG } else { 0 };
        reap(bus, &mut slots, flags);
    }
    while !slots.is_empty() {
        reap(bus, &mut slots, 0);
    }
    let after = resources();
    control
        .word(16)
        .store(u64::from(before == after) + 1, Ordering::SeqCst);
    std::thread::sleep(Duration::from_secs(600));
}

fn reap(bus: &Bus<Mapping>, slots: &mut HashMap<i32, u16>, flags: i32) {
    // SAFETY: reaps children of this process.
    let pid = unsafe { libc::waitpid(-1, std::ptr::null_mut(), flags) };
    if let Some(slot) = slots.remove(&pid) {
        recover::recover_slot(bus, SlotIndex(slot));
    }
}

/// How the grandchildren that were handed to this process ended: (by a fault, otherwise).
fn grandchildren(worker: i32) -> (u64, u64) {
    let mut ended = (0, 0);
    loop {
        // SAFETY: plain data; the kernel fills it.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let look = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: looks at ended children of this process; the worker's own end is left alone.
        let pid = unsafe {
            libc::waitid(libc::P_ALL, 0, &raw mut info, look);
            info.si_pid()
        };
        if pid == 0 || pid == worker {
            return ended;
        }
        let mut status = 0;
        // SAFETY: reaps the child that was just seen.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        if libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSEGV {
            ended.0 += 1;
        } else {
            ended.1 += 1;
        }
    }
}

fn receive(receiver: &mut Receiver<Mapping>, bus: &Bus<Mapping>, seen: &mut Vec<u32>) {
    while let Some((delivery, place)) = receiver.receive() {
        let root = delivery.message.header.root.0;
        assert_eq!(bus.payload(&delivery).unwrap(), payload(root, 0), "torn");
        seen.resize(seen.len().max(root as usize + 1), 0);
        seen[root as usize] += 1;
        receiver.acknowledge(place);
    }
}

#[test]
fn ten_thousand_forks_over_busy_rings_leak_nothing() {
    let full = std::env::var_os("SANDPIPE_FULL").is_some();
    let forks = match (full, cfg!(debug_assertions)) {
        (true, _) => 1_000_000,
        (false, true) => 1_000,
        (false, false) => 10_000,
    };
    let _watchdog = sandbox::Watchdog::new(Duration::from_secs(120 + forks / 100));
    become_subreaper();
    let control = segment::create("fork-test-control", 4096).unwrap();
    let control = Mapping::new(control, 4096, true, 4096).unwrap();
    let mut sandbox = Sandbox::new(topology());
    let (mut agent, mut bus) = sandbox.join(AGENT);
    let pid = sandbox.spawn(GRAIN, |_, bus| worker(&bus, &control, forks));
    while lease_state(&bus, GRAIN, S0).is_none_or(|lease| lease == LeaseState::Free) {
        sandbox.serve();
        agent.update(&mut bus).unwrap();
    }
    let (mut instance, mut receiver) = (bus.instance(S0), bus.receiver());
    let (mut sent, mut seen, mut ended) = (0_u64, Vec::new(), (0, 0));
    let held = LeaseState::Held(pid.cast_unsigned());
    while control.word(16).load(Ordering::SeqCst) == 0 {
        let last = control.word(8).load(Ordering::SeqCst) >= forks;
        if !last
            && publish(
                &mut instance,
                MessageId((sent + 1).into()),
                GRAIN,
                Ack::NOTHING,
            )
        {
            sent += 1;
        }
        receive(&mut receiver, &bus, &mut seen);
        let answered = seen.iter().filter(|&&count| count > 0).count() as u64;
        if last && answered == sent {
            control.word(0).store(1, Ordering::SeqCst);
        }
        assert_eq!(lease_state(&bus, GRAIN, S0), Some(held), "a false death");
        let (faults, others) = grandchildren(pid);
        ended = (ended.0 + faults, ended.1 + others);
    }
    assert_eq!(
        control.word(16).load(Ordering::SeqCst),
        2,
        "descriptors or maps leaked"
    );
    let forked = control.word(8).load(Ordering::SeqCst);
    while ended.0 + ended.1 < forked / LEAVES {
        let (faults, others) = grandchildren(pid);
        ended = (ended.0 + faults, ended.1 + others);
        std::thread::yield_now();
    }
    assert_eq!(ended.1, 0, "a grandchild's write hit something");
    let once = seen.iter().skip(1).filter(|&&count| count == 1).count() as u64;
    assert_eq!(once, sent, "messages answered once");
    sandbox.kill_family(GRAIN, pid);
    for family in [AGENT, GRAIN] {
        let view = sandbox.guardian.view(family).unwrap();
        assert_eq!(view.audit(family), Audit::default(), "family {}", family.0);
    }
    println!(
        "{forked} forks, {sent} messages, {} grandchildren wrote into nothing",
        ended.0
    );
}

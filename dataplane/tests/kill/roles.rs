//! What the processes of the chain do.

use std::collections::HashMap;
use std::time::Duration;

use sandpipe::{
    Ack, Bus, Delivery, FamilyIndex, Instance, Kind, Mapping, MessageHeader, MessageId,
    Participant, Payload, SlotIndex, TraceStamps, derive_child, monotonic_ns,
};

use crate::chain::{AGENT, Control, FIRST, INSTANCES, SECOND, Word};
use crate::sandbox::{exit, hold, payload};

/// Stages an output for the agent and for `next` (or as the answer) and commits; false if there was
/// no room for it. Whoever finds none looks whether a peer has been restarted before it tries
/// again: in a dead consumer's segment nobody ever makes room.
fn publish(
    instance: &mut Instance<Mapping>,
    header: MessageHeader,
    next: Option<FamilyIndex>,
    bytes: &[u8],
    ack: Ack,
) -> bool {
    let mut loan = None;
    if bytes.len() > 64 {
        let Ok(taken) = instance.loan(bytes.len()) else {
            return false;
        };
        instance.write(&taken, 0, bytes);
        loan = Some(taken);
    }
    let body = loan
        .as_ref()
        .map_or(Payload::Inline(bytes), Payload::Loaned);
    let staged = [Some(AGENT), next]
        .into_iter()
        .flatten()
        .try_for_each(|queue| instance.stage(queue, &header, body, TraceStamps::default()));
    if staged.is_ok() {
        instance.commit(ack);
        return true;
    }
    instance.discard();
    if let Some(loan) = loan {
        instance.give_back(loan);
    }
    false
}

pub fn source(control: &Control, mut participant: Participant, mut bus: Bus<Mapping>) {
    let mut instance = hold(&bus, SlotIndex(0));
    let mut closed = false;
    loop {
        if participant.update(&mut bus).unwrap_or_else(|_| exit(0)) {
            instance = bus.instance(SlotIndex(0));
        }
        if closed {
            std::thread::sleep(Duration::from_micros(500));
            continue;
        }
        let last = control.read(Word::Closing) != 0;
        let number = instance.commits() + 1;
        let root = MessageId(number.into());
        let header = MessageHeader::event(root, root, MessageId::NONE, FIRST);
        let bytes = sealed(number, 0, last);
        if publish(&mut instance, header, Some(FIRST), &bytes, Ack::NOTHING) {
            closed = last;
        } else {
            std::thread::yield_now();
        }
    }
}

/// A worker: forks its instances, recovers the dead, maps restarted peers.
pub fn worker(control: &Control, hop: u64, mut participant: Participant, mut bus: Bus<Mapping>) {
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
        (0..repair.rolled_forward).for_each(|_| control.count(Word::RolledForward));
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
        control.count(Word::Redelivered);
    }
    let bytes = bus.payload(delivery).ok();
    let Some((number, last)) = bytes.and_then(|bytes| opened(&bytes, hop - 1)) else {
        return control.count(Word::Torn);
    };
    let next = (bus.family() == FIRST).then_some(SECOND);
    let id = derive_child(input.id, 0);
    let mut header = MessageHeader::event(id, input.root, input.id, next.unwrap_or(AGENT));
    header.last = true;
    header.kind = if next.is_some() {
        Kind::Event
    } else {
        Kind::Final
    };
    let bytes = sealed(number, hop, last);
    while !publish(instance, header, next, &bytes, delivery.ack) {
        if bus.is_stale() {
            exit(0); // the worker's next instance maps the restarted peer
        }
        std::thread::yield_now();
    }
}

/// A payload that can be judged by itself: number, hop, whether it is the last, a filling whose
/// length varies, CRC-32C.
fn sealed(number: u64, hop: u64, last: bool) -> Vec<u8> {
    let words = [number, hop, u64::from(last)];
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend(payload(number.into(), hop));
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    bytes
}

/// Number and last mark of a payload of this hop, if it is whole.
fn opened(bytes: &[u8], hop: u64) -> Option<(u64, bool)> {
    let (content, sum) = bytes.split_last_chunk::<4>()?;
    let (words, _) = content.as_chunks::<8>();
    let &[number, at_hop, last] = words.get(..3)?.as_array::<3>()?;
    let whole = crc32c::crc32c(content) == u32::from_le_bytes(*sum);
    let whole = whole && u64::from_le_bytes(at_hop) == hop;
    whole.then(|| (u64::from_le_bytes(number), u64::from_le_bytes(last) != 0))
}

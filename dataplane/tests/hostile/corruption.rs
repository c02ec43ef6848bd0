//! Random bits flipped in every page that a hostile process may write, a thousand a second, while
//! the others work.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use sandpipe::lease::lease_state;
use sandpipe::{Mapping, Memory};

use crate::house::{AGENT, HOSTILE, House, S0, SPARE};
use crate::sandbox::{Random, exit};

/// Flips a second.
const HZ: u64 = 1000;

/// Flips one bit of one word, `flips` times, then ends. Only system calls and stores: the parent
/// has other threads.
fn flip(segment: &Mapping, hints: &Mapping, flips: u64) -> ! {
    let mut random = Random(0x5eed);
    for flip in 0..flips {
        // Where something is decided, and everywhere.
        let (memory, words) = match flip % 3 {
            0 => (hints, 512),
            1 => (segment, segment.len() as u64 / 8),
            _ => (segment, 4096),
        };
        let at = random.below(words) as usize * 8;
        memory.word(at).fetch_xor(1 << random.below(64), SeqCst);
        // SAFETY: sleeps.
        unsafe { libc::usleep((1_000_000 / HZ) as u32) };
    }
    exit(0)
}

#[test]
fn random_bits_in_every_page_of_one_family_cost_the_others_nothing() {
    let full = std::env::var_os("SANDPIPE_FULL").is_some();
    let seconds = if full { 600 } else { 20 };
    let mut house = House::with_watchdog(Duration::from_secs(seconds * 10));
    // Another application: it shares nothing.
    let mut neighbour = House::with_watchdog(Duration::from_secs(seconds * 10));
    let hints = house.hint_page(SPARE);
    let segment = house.raw().clone();
    // SAFETY: the child only flips bits and ends with _exit.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        flip(&segment, &hints, seconds * HZ);
    }
    let (mut status, mut rounds, mut found_out) = (0, 0_u64, 0_u64);
    // SAFETY: asks for the own child.
    while unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } == 0 {
        house.innocents_lose_nothing();
        neighbour.innocents_lose_nothing();
        house.park(AGENT, Duration::from_millis(1));
        let _ = house.agent.audit(HOSTILE);
        let _ = lease_state(&house.agent, HOSTILE, S0);
        rounds += 1;
        if rounds.is_multiple_of(10) {
            // New readers, as after a restart: those before have found the family out.
            found_out += u64::from(house.renew_readers());
        }
    }
    assert_eq!(
        status,
        0,
        "the vandal did not finish its {} flips",
        seconds * HZ
    );
    assert_eq!(neighbour.receiver.refusals().count(), 0);
    assert!(
        rounds > 10 && found_out > 0,
        "{rounds} rounds, {found_out} times found out"
    );
    house.innocents_lose_nothing();
    house.sandbox.guardian.repair_family(HOSTILE);
    house.sandbox.guardian.make_family(HOSTILE).unwrap();
    house.sandbox.guardian.ring_everybody();
    house.innocents_lose_nothing();
    println!("{rounds} rounds of innocent traffic, found out {found_out} times");
}

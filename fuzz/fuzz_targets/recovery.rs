//! What a dead family left: its guardian repairs any words at all, once and for good.
#![no_main]

#[path = "../house.rs"]
mod house;

use house::{AGENT, GRAIN, House, OTHER};
use libfuzzer_sys::fuzz_target;
use sandpipe::layout::FamilyHeader;
use sandpipe::recover::recover_family;

fuzz_target!(|bytes: &[u8]| {
    let house = House::new();
    house.scribble(GRAIN, bytes);
    let others = [AGENT, OTHER].map(|family| house.words(family));
    recover_family(house.bus(GRAIN));
    let repaired = facts(&house);
    recover_family(house.bus(GRAIN));
    assert!(facts(&house) == repaired, "a second recovery changed something");
    assert!([AGENT, OTHER].map(|family| house.words(family)) == others);
    let _ = house.bus(AGENT).audit(GRAIN);
});

/// The grain's words, but for the number of the hint at orphans: each recovery gives it a new one.
fn facts(house: &House) -> Vec<u64> {
    let mut words = house.words(GRAIN);
    words[std::mem::offset_of!(FamilyHeader, orphans) / 8] &= 1;
    words
}

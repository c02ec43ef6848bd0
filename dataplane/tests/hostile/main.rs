//! A hostile family against the agent and innocent families: every byte that it can write, it
//! writes. `docs/THREAT_MODEL.md` has a row for each attack.
#![allow(
    unsafe_code,
    reason = "fork, rlimits and raw system calls of an attacker"
)]

#[path = "../sandbox/mod.rs"]
mod sandbox;

mod bells;
mod children;
mod chunks;
mod consumers;
mod corruption;
mod exhaustion;
mod growth;
mod handshake;
mod house;
mod lanes;
mod memory_limit;
mod recovery;
mod segments;
mod versions;

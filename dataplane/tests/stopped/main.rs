//! Processes that are stopped (SIGSTOP) in the middle of what the bus does, and go on later: the
//! others go on meanwhile, a full lane says so, and afterwards nothing is lost, torn or doubled.
//!
//! ptrace brings a process to one instruction and leaves it there under a real SIGSTOP.
#![allow(
    unsafe_code,
    reason = "fork, ptrace, kill and waitpid of test processes"
)]

mod house;
mod instances;
mod producers;
#[path = "../sandbox/mod.rs"]
mod sandbox;
#[path = "../sweep/steps.rs"]
#[allow(dead_code, reason = "the sweep uses the other part")]
mod steps;
mod window;

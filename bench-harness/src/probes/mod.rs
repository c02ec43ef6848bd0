//! Floor probes: what the machine itself charges for a hand-over, a wake-up and a fork, with
//! nothing of Sandpipe in between.

pub mod cache_line;
pub mod fork;
pub mod wake;

//! The agent with real processes: requests, wrong input, and kills at every level.

mod attacks;
mod doctor;
mod faults;
mod harness;
mod idle;
mod kills;
mod limits;
mod load;
mod overload;
mod sandboxed;
mod starts;
mod vandal;

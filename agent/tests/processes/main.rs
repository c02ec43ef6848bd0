//! The agent with real processes: requests, wrong input, and kills at every level.

mod doctor;
mod faults;
mod harness;
mod kills;
mod limits;
mod load;
mod starts;
mod vandal;

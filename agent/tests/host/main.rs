//! The long-running agent with real processes: several applications, new versions under load,
//! kills at every moment.

mod bounds;
mod changes;
mod chaos;
mod dead_letters;
mod faults;
mod fleet;
#[allow(dead_code, reason = "the tests of one application use the rest of it")]
#[path = "../processes/harness.rs"]
mod harness;
mod idle;
mod instances;
mod kernel_limits;
mod kills;
mod logs;
mod network;
mod own_rights;
mod rounds;
mod service;
mod shared;
mod slow_death;
mod soak;
mod spin;
mod starts;
mod view;
mod wakes;

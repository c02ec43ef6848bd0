//! Between the two buses: one thread an application reads `LQ(HA)`, drives the core, appends to
//! the global bus and publishes into the grains' queues.

mod appends;
mod bounds;
mod clock;
mod dead_letters;
#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod hostile_tests;
mod limits;
mod local;
mod mailbox;
mod read_ahead;
mod recovery;
mod replace;
#[cfg(test)]
mod replace_tests;
mod sandbox_bus;
mod shared;
mod status;
#[cfg(test)]
mod tests;
mod thread;
mod wakes;

pub use bounds::{Bounds, LimitState, SharedBound};
pub use local::{Attached, LocalBus, LocalError, Publish, QueueLoad, Refused, SandboxSource};
pub use mailbox::{Mailbox, Post, Stop, Waiter};
pub use replace::{NotReplaced, Replaced, Replacement};
pub use sandbox_bus::SandboxBus;
pub use status::{AppStatus, BusCounts, GrainState, RefusedGrain};
pub use thread::{BusThread, End, Settings};

//! What the bus thread knows of a sandbox's local bus.

use std::collections::HashSet;
use std::time::Duration;

use sandpipe::Counters;
use sandpipe_abi::MessageId;

use sandpipe::Violation;

use super::bounds::LimitState;
use super::status::GrainState;
use crate::config::Network;
use crate::core::{Delivery, Local};

/// The agent's side of one sandbox's local bus.
pub trait LocalBus: Send {
    /// Hands up to `limit` messages of `LQ(HA)` to `take`; how many there were. Never blocks.
    /// `take` says what is wrong with a message that its sender cannot have sent in good faith.
    fn poll(&mut self, limit: usize, take: &mut dyn FnMut(Local) -> Result<(), Violation>)
    -> usize;

    /// How many messages `LQ(HA)` can hold.
    fn room(&self) -> usize;

    /// A grain that was found out since the last call. It is not read any more; the others are.
    fn take_refusal(&mut self) -> Option<Refused>;

    /// The message of that number need not be kept any longer. It leaves its lane once all before
    /// it in the lane have been released too.
    fn release(&mut self, number: u64);

    /// Publishes into a grain's queue. Never blocks.
    fn publish(&mut self, delivery: &Delivery) -> Publish;

    /// Messages that some grain of the sandbox still has to handle. May miss some that move just
    /// now; never names one that nobody will handle.
    fn alive(&self) -> HashSet<MessageId>;

    /// What the agent (first) and each grain have counted. Stops nobody.
    fn counters(&self) -> Vec<Counters>;

    /// Bytes of the agent's (first) and each grain's payload pool, and how many extensions are
    /// among them now. Stops nobody.
    fn pool_sizes(&self) -> Vec<(u64, u64)>;

    /// How many messages wait in, and were taken from, the agent's queue (first) and each grain's.
    /// Stops nobody; costs a walk over them.
    fn queues(&self) -> Vec<QueueLoad>;

    /// Takes news of the guardian: workers that were made anew. Never blocks.
    ///
    /// # Errors
    /// [`LocalError::Ended`] if the sandbox is gone or belongs to another agent now.
    fn update(&mut self) -> Result<(), LocalError>;

    /// Sleeps until a message comes, a ring, or `timeout`; not at all once `is_awaited` says that
    /// something has come meanwhile. Whether a ring ended a sleep.
    fn park(&mut self, timeout: Duration, is_awaited: &dyn Fn() -> bool) -> bool;

    /// What wakes [`LocalBus::park`] from another thread.
    fn ringer(&self) -> Box<dyn Fn() + Send + Sync>;
}

/// What is in one queue and in the hands of its readers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueLoad {
    /// Messages that wait.
    pub waiting: usize,
    /// Messages that were taken and are not acknowledged.
    pub taken: usize,
    /// Those of them whose instance died and that wait for their next attempt.
    pub resting: usize,
}

/// A grain that wrote what no honest one writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Index of the grain.
    pub grain: usize,
    /// What it wrote.
    pub violation: Violation,
}

/// How publishing went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Publish {
    /// It is in the queue.
    Done,
    /// No room for now; nothing happened.
    Full,
    /// No room ever, and why; nothing happened.
    Never(String),
}

/// Why a local bus cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocalError {
    /// The sandbox is gone.
    #[error("the sandbox has ended: {0}")]
    Ended(String),
    /// A sandbox cannot be made.
    #[error("{0}")]
    NotMade(String),
    /// Another agent has taken the sandbox over.
    #[error("another agent has taken over the sandbox of {0}; this one stops")]
    TakenOver(String),
}

/// Makes the sandbox, or adopts the one that lives. Blocks for some milliseconds.
pub trait SandboxSource: Send {
    /// A local bus to a living sandbox.
    ///
    /// # Errors
    /// [`LocalError`] says why there is none, and what to do.
    fn attach(&mut self) -> Result<Attached, LocalError>;

    /// Ends the processes of a grain and does not start it again in this sandbox. Blocks for less
    /// than a millisecond.
    fn quarantine(&mut self, grain: usize, reason: &str);

    /// Tells this source from the others of the same application.
    fn number(&self) -> u64;

    /// How the grain workers were when they were last looked at.
    fn workers(&self) -> Vec<GrainState>;

    /// Which network its processes really have; `None` while there is no sandbox.
    fn network(&self) -> Option<Network>;

    /// How its sandbox stands to the limits that the kernel keeps, those that can be told.
    fn kernel_limits(&self) -> Vec<LimitState> {
        Vec::new()
    }

    /// Ends the sandbox, if there is one, and removes what it leaves.
    fn shut_down(&mut self, timeout: Duration);
}

/// A sandbox that this agent has now.
pub struct Attached {
    /// Its local bus.
    pub local: Box<dyn LocalBus>,
    /// It was made by an agent before this one.
    pub adopted: bool,
}

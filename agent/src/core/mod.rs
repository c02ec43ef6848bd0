//! The agent's protocol, without I/O and without a clock: events in, commands out.
//!
//! The rules that it keeps:
//! - Messages are folded by id: what is known or finished already changes nothing.
//! - A request ends when none of its messages is open, or with its first failure.
//! - `finished` follows the acknowledgement of what the message produced, since topics are not
//!   ordered among each other; `LQ(HA)` keeps a message until that is durable too.
//! - Who only waits for the answer does not wait for the disk. Who will come back (202, a key, a
//!   CloudEvent's id) hears nothing before it is durable.
//!
//! A workflow with one final output answers with that output's bytes. Several final outputs (a
//! fan-out) make one JSON batch of CloudEvents, see `batch.rs`.

mod batch;
mod dead;
mod deletion;
mod durable;
mod ids;
mod local;
mod message;
mod recovery;
mod redrive;
mod results;
mod root;
mod submit;
#[cfg(test)]
mod tests;
mod trace;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use sandpipe_abi::MessageId;
use serde::{Deserialize, Serialize};

use dead::DeadLetters;
use durable::After;
use results::Results;
use root::Root;

pub use dead::{DeadLetter, WholeLetter};
pub use ids::root_id;
pub use message::{
    Answer, Cause, Command, Delivery, Failure, Identity, Local, News, Now, Outcome, Reply, Submit,
    Wait,
};
pub use trace::{Hop, Path, Stamps, Trace};

/// Deadlines that are kept whatever has become of their requests.
const DEADLINES_KEPT: usize = 1024;

/// What the core has to know of an application.
#[derive(Clone, Debug)]
pub struct Workflow {
    /// The application.
    pub app: Arc<str>,
    /// Its grains' names, in the order of their indices.
    pub grains: Vec<Arc<str>>,
    /// Index of the grain that requests go to.
    pub entry: usize,
    /// Whether messages are backed up.
    pub backup: bool,
    /// Whether instances copy every output to the agent. Without copies each message has one
    /// successor at the most, so that the first answer or failure ends the request.
    pub copies: bool,
    /// Partition indices of the global bus.
    pub partitions: u32,
    /// The epoch of this agent; greater than that of every agent before it.
    pub epoch: u64,
    /// Requests that may be open at once.
    pub max_in_flight: usize,
    /// How long a caller waits for an answer, in milliseconds.
    pub deadline_ms: u64,
    /// How often a message is tried before it is dead.
    pub max_attempts: u16,
    /// How long an answer can be collected, in milliseconds.
    pub result_ttl_ms: u64,
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Requests that became a message.
    pub accepted: u64,
    /// Requests that joined an earlier one of the same identity.
    pub joined: u64,
    /// Workflows that ended with an output.
    pub answered: u64,
    /// Workflows that ended with a failure.
    pub failed: u64,
    /// Requests refused because the queue was full.
    pub busy: u64,
    /// Those of them that found the first grain's queue full; the others were too many at once.
    #[serde(default)]
    pub queue_full: u64,
    /// Requests refused because the log had reached its limit.
    #[serde(default)]
    pub spool_full: u64,
    /// Callers whose deadline passed.
    pub late: u64,
    /// Messages folded because they were known already.
    pub folded: u64,
    /// Messages published again after a death.
    pub redelivered: u64,
    /// Events whose attempts were used up.
    #[serde(default)]
    pub dead: u64,
    /// Dead letters whose events were sent again.
    #[serde(default)]
    pub redriven: u64,
    /// Dead letters that made place for newer ones.
    #[serde(default)]
    pub dead_dropped: u64,
}

/// The protocol's state for one application. `W` is whom to answer.
#[derive(Debug)]
pub struct Core<W> {
    workflow: Workflow,
    sequence: u64,
    roots: HashMap<MessageId, Box<Root<W>>>,
    results: Results,
    dead: DeadLetters,
    /// Who waits for the deletion of a letter.
    deleting: BTreeMap<MessageId, Vec<W>>,
    /// Number of the newest append, and of the newest one that is durable.
    appended: u64,
    durable: u64,
    after: VecDeque<(u64, After)>,
    /// Deliveries that found their queue full, one queue a grain.
    backlog: Vec<VecDeque<Delivery>>,
    deadlines: VecDeque<(u64, MessageId)>,
    /// Why nothing that must be durable is accepted.
    unavailable: Option<Arc<str>>,
    /// Why nothing that writes a record is accepted.
    spool_full: Option<Arc<str>>,
    recovering: bool,
    counters: Counters,
    out: VecDeque<Command<W>>,
}

impl<W> Core<W> {
    /// An application without any request.
    #[must_use]
    pub fn new(workflow: Workflow) -> Core<W> {
        let backlog = workflow.grains.iter().map(|_| VecDeque::new()).collect();
        Core {
            workflow,
            sequence: 0,
            roots: HashMap::new(),
            results: Results::default(),
            dead: DeadLetters::default(),
            deleting: BTreeMap::new(),
            appended: 0,
            durable: 0,
            after: VecDeque::new(),
            backlog,
            deadlines: VecDeque::new(),
            unavailable: None,
            spool_full: None,
            recovering: false,
            counters: Counters::default(),
            out: VecDeque::new(),
        }
    }

    /// The next thing to do. Carry it out and report back before asking again.
    pub fn next_command(&mut self) -> Option<Command<W>> {
        self.out.pop_front()
    }

    /// Says whether the global bus makes records durable, and if not, why.
    pub fn set_unavailable(&mut self, reason: Option<Arc<str>>) {
        self.unavailable = reason;
    }

    /// Says whether the log has reached its limit, and what to do then. Requests that would write
    /// to it are refused; what is open goes on.
    pub fn set_spool_full(&mut self, reason: Option<Arc<str>>) {
        self.spool_full = reason;
    }

    /// Moves the clock: callers whose deadline has passed hear so, expired answers go.
    pub fn tick(&mut self, now: Now) {
        self.results.expire(now.unix_ms);
        self.drop_deadlines_of_ended();
        while let Some(&(deadline_ms, id)) = self.deadlines.front()
            && deadline_ms <= now.unix_ms
        {
            self.deadlines.pop_front();
            let Some(root) = self.roots.get_mut(&id) else {
                continue;
            };
            for waiter in root.take_late(now.unix_ms) {
                // The caller is told where to collect the answer.
                root.keep = true;
                self.counters.late += 1;
                let reply = Reply::Late(id);
                self.out.push_back(Command::Answer { waiter, reply });
            }
            if !root.promised && root.waiters.is_empty() && root.answer.is_none() {
                let root = self.roots.remove(&id).expect("it was found above");
                self.forget(root);
            }
        }
    }

    /// A deadline may be a day ahead, its request a millisecond long: once most of them are of
    /// requests that have ended, those go.
    fn drop_deadlines_of_ended(&mut self) {
        if self.deadlines.len() > 2 * self.roots.len() + DEADLINES_KEPT {
            self.deadlines.retain(|(_, id)| self.roots.contains_key(id));
        }
    }

    /// When [`Core::tick`] has something to do, in milliseconds of the Unix clock.
    #[must_use]
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.deadlines.front().map(|&(deadline_ms, _)| deadline_ms)
    }

    /// Tries the oldest delivery of each queue that was full again.
    pub fn retry_full(&mut self) {
        for queue in &mut self.backlog {
            if let Some(delivery) = queue.pop_front() {
                self.out.push_back(Command::Publish(delivery));
            }
        }
    }

    /// The name of a grain.
    ///
    /// # Panics
    /// If the application has no such grain.
    #[must_use]
    pub fn grain_name(&self, grain: usize) -> &str {
        &self.workflow.grains[grain]
    }

    /// Whether deliveries wait for room in a queue.
    #[must_use]
    pub fn has_backlog(&self) -> bool {
        self.backlog.iter().any(|queue| !queue.is_empty())
    }

    /// Another version of the application goes on from here. Ids, counts and kept answers stay.
    ///
    /// # Panics
    /// Unless the core [is idle](Core::is_idle): what is open knows its grains by their indices.
    pub fn rewire(&mut self, workflow: Workflow) {
        assert!(self.is_idle(), "only an idle core can be rewired");
        self.backlog = workflow.grains.iter().map(|_| VecDeque::new()).collect();
        // Those of requests that have ended; a later one of theirs would hide an earlier one.
        self.deadlines.clear();
        // This agent's, whatever the other version was started with.
        let (epoch, partitions) = (self.workflow.epoch, self.workflow.partitions);
        self.workflow = Workflow {
            epoch,
            partitions,
            ..workflow
        };
    }

    /// Requests that may be open at once.
    #[must_use]
    pub fn max_in_flight(&self) -> usize {
        self.workflow.max_in_flight
    }

    /// Index of the grain that requests go to.
    #[must_use]
    pub fn entry(&self) -> usize {
        self.workflow.entry
    }

    /// Requests that are open.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.roots.len()
    }

    /// Answers that can be collected.
    #[must_use]
    pub fn kept_results(&self) -> usize {
        self.results.len()
    }

    /// The grains' names, in the order of their indices.
    pub fn grains(&self) -> impl Iterator<Item = &str> {
        self.workflow.grains.iter().map(|grain| &**grain)
    }

    /// Counts since the start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether all is answered, published and durable: nothing is lost by stopping now.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.roots.is_empty() && self.after.is_empty() && !self.has_backlog()
    }
}

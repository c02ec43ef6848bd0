//! A simulated host: queues, lanes, a log and instances, around a real core.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;

use sandpipe_abi::MessageId;
use sandpipe_global_bus::{Flag, RESULTS, Record};

use crate::core::dead::is_letter;
use crate::core::*;

/// A message in a grain's queue.
#[derive(Clone, Debug)]
pub struct Queued {
    pub id: MessageId,
    pub root: MessageId,
    pub payload: Vec<u8>,
}

/// A message in a lane of `LQ(HA)`.
#[derive(Clone, Debug)]
struct Told {
    id: MessageId,
    root: MessageId,
    parent: MessageId,
    news: News,
    last: bool,
    payload: Vec<u8>,
    event: Option<Vec<u8>>,
}

/// One lane of `LQ(HA)`: told messages from `head` on, read up to `cursor`.
#[derive(Default)]
struct Lane {
    told: Vec<Told>,
    head: usize,
    cursor: usize,
    released: HashSet<usize>,
}

/// A request without anything but its payload.
pub fn request(identity: Identity, wait: Wait, waiter: u64, payload: &[u8]) -> Submit<u64> {
    Submit {
        identity,
        wait,
        waiter,
        payload: payload.to_vec(),
        content_type: Arc::default(),
        traceparent: Arc::default(),
        attributes: Arc::default(),
        traced_since_ns: None,
        shows_trace: false,
    }
}

pub struct World {
    pub core: Core<u64>,
    workflow: Workflow,
    pub next: Vec<Vec<usize>>,
    pub log: Vec<Record>,
    pub durable: usize,
    /// Appends of agents before this one.
    base: usize,
    pub queues: Vec<VecDeque<Queued>>,
    pub capacity: usize,
    lanes: Vec<Lane>,
    numbers: BTreeMap<u64, (usize, usize)>,
    number: u64,
    pub replies: BTreeMap<u64, Vec<Reply>>,
    waiter: u64,
    pub now: Now,
    pub handled: usize,
    /// What killed instances kills none any more.
    pub cured: bool,
    pub paths: Vec<Path>,
}

pub fn workflow(grains: usize, backup: bool) -> Workflow {
    Workflow {
        app: "app".into(),
        grains: (0..grains)
            .map(|index| Arc::from(format!("g{index}")))
            .collect(),
        entry: 0,
        backup,
        copies: backup,
        partitions: 4,
        epoch: 1,
        max_in_flight: 64,
        deadline_ms: 1_000,
        max_attempts: 3,
        result_ttl_ms: 10_000,
    }
}

/// The id of output `index` of a message, as the data plane derives it (by another hash).
fn child(parent: MessageId, index: usize) -> MessageId {
    let mixed =
        (parent.0 ^ (index as u128 + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    MessageId(mixed ^ mixed >> 61)
}

impl World {
    pub fn new(next: &[&[usize]], backup: bool) -> World {
        let workflow = workflow(next.len(), backup);
        World {
            core: Core::new(workflow.clone()),
            workflow,
            next: next.iter().map(|next| next.to_vec()).collect(),
            log: Vec::new(),
            durable: 0,
            base: 0,
            queues: next.iter().map(|_| VecDeque::new()).collect(),
            capacity: 1000,
            lanes: next.iter().map(|_| Lane::default()).collect(),
            numbers: BTreeMap::new(),
            number: 0,
            replies: BTreeMap::new(),
            waiter: 0,
            now: Now {
                unix_ms: 1_000_000,
                mono_ns: 1,
            },
            handled: 0,
            cured: false,
            paths: Vec::new(),
        }
    }

    pub fn submit(&mut self, identity: Identity, wait: Wait, payload: &[u8]) -> u64 {
        self.waiter += 1;
        self.replies.insert(self.waiter, Vec::new());
        let request = request(identity, wait, self.waiter, payload);
        self.core.submit(self.now, request);
        self.carry_out();
        self.waiter
    }

    /// Sends a dead letter again; the only reply.
    pub fn redrive(&mut self, letter: &str) -> Reply {
        self.waiter += 1;
        let event = MessageId::parse(letter).unwrap();
        self.core.redrive(self.now, event, self.waiter);
        self.carry_out();
        self.flush();
        self.replies
            .remove(&self.waiter)
            .expect("it is durable")
            .remove(0)
    }

    /// The ids of the dead letters, the oldest first.
    pub fn letters(&self) -> Vec<String> {
        self.core
            .dead_letters()
            .into_iter()
            .map(|letter| letter.id)
            .collect()
    }

    /// The dead letters that a replay hands out.
    pub fn stored_letters(&self) -> usize {
        self.unfinished()
            .iter()
            .filter(|record| is_letter(record))
            .count()
    }

    /// What lies in `LQ(HA)` goes with the sandbox, before any agent has read it again.
    pub fn lose_what_was_told(&mut self) {
        self.lanes
            .iter_mut()
            .for_each(|lane| *lane = Lane::default());
        self.queues.iter_mut().for_each(VecDeque::clear);
    }

    pub fn collect(&mut self, id: MessageId) -> Reply {
        self.waiter += 1;
        self.core.collect(id, self.waiter);
        self.carry_out();
        self.replies
            .remove(&self.waiter)
            .expect("collect answers at once")
            .remove(0)
    }

    pub fn tick(&mut self, ms: u64) {
        self.now.unix_ms += ms;
        self.core.tick(self.now);
        self.core.retry_full();
        self.carry_out();
    }

    /// Does what the core wants.
    pub fn carry_out(&mut self) {
        while let Some(command) = self.core.next_command() {
            match command {
                Command::Append { number, record } => {
                    self.log.push(record);
                    assert_eq!(number as usize, self.log.len() - self.base);
                }
                Command::Publish(delivery) => {
                    if self.queues[delivery.grain].len() >= self.capacity {
                        self.core.full(delivery);
                        continue;
                    }
                    self.queues[delivery.grain].push_back(Queued {
                        id: delivery.id,
                        root: delivery.root,
                        payload: delivery.payload.clone(),
                    });
                    self.core.published(self.now, delivery);
                }
                Command::Release(number) => self.release(number),
                Command::Traced(path) => self.paths.push(path),
                Command::Answer { waiter, reply } => {
                    self.replies.entry(waiter).or_default().push(reply);
                }
            }
        }
    }

    fn release(&mut self, number: u64) {
        let (lane, index) = self
            .numbers
            .remove(&number)
            .expect("each number is released once");
        let lane = &mut self.lanes[lane];
        lane.released.insert(index);
        while lane.released.remove(&lane.head) {
            lane.head += 1;
        }
    }

    /// A grain's instance handles its next message: appends the grain's letter; a payload with an
    /// `F` and the grain's digit fails there, with a `D` it kills every instance.
    pub fn handle(&mut self, grain: usize) -> bool {
        let Some(message) = self.queues[grain].pop_front() else {
            return false;
        };
        self.handled += 1;
        let mut payload = message.payload;
        let fails = payload.ends_with(&[b'F', b'0' + grain as u8]);
        let dies = !self.cured && payload.ends_with(&[b'D', b'0' + grain as u8]);
        let data = payload.clone();
        payload.insert(0, b'a' + grain as u8);
        let parent = message.id;
        let mut told = Vec::new();
        let mut tell = |id, news, payload: &[u8]| {
            told.push(Told {
                id,
                root: message.root,
                parent,
                news,
                last: false,
                payload: payload.to_vec(),
                event: None,
            });
        };
        if dies {
            tell(child(parent, 99), News::Failed(Cause::Crashed), b"it died");
        } else if fails {
            tell(
                child(parent, 99),
                News::Failed(Cause::HandlerError),
                b"it fails",
            );
        } else if self.next[grain].is_empty() {
            tell(child(parent, 0), News::Final, &payload);
        }
        let targets = if fails || dies {
            Vec::new()
        } else {
            self.next[grain].clone()
        };
        for (index, &target) in targets.iter().enumerate() {
            let id = child(parent, index);
            tell(id, News::Output { grain: target }, &payload);
            self.queues[target].push_back(Queued {
                id,
                root: message.root,
                payload: payload.clone(),
            });
        }
        let last = told.last_mut().expect("an instance tells something");
        last.last = true;
        last.event = dies.then_some(data);
        told.retain(|told| self.workflow.copies || !matches!(told.news, News::Output { .. }));
        self.lanes[grain].told.extend(told);
        true
    }

    /// The agent reads the next message of a grain's lane.
    pub fn read(&mut self, lane: usize) -> bool {
        let index = self.lanes[lane].cursor;
        let Some(told) = self.lanes[lane].told.get(index).cloned() else {
            return false;
        };
        self.lanes[lane].cursor += 1;
        self.number += 1;
        self.numbers.insert(self.number, (lane, index));
        let local = Local {
            number: self.number,
            id: told.id,
            root: told.root,
            parent: told.parent,
            from: lane,
            news: told.news,
            last: told.last,
            stamps: None,
            payload: told.payload,
            event: told.event,
        };
        self.core.local(self.now, local).unwrap();
        self.carry_out();
        true
    }

    /// The log acknowledges up to `count` more records.
    pub fn acknowledge(&mut self, count: usize) -> bool {
        let before = self.durable;
        self.durable = (self.durable + count).min(self.log.len());
        self.core
            .durable(self.now, (self.durable - self.base) as u64);
        self.carry_out();
        self.durable > before
    }

    pub fn flush(&mut self) {
        while self.acknowledge(usize::MAX / 2) {}
    }

    /// Goes on until nothing moves any more.
    pub fn run(&mut self) {
        loop {
            let mut moved = false;
            for grain in 0..self.next.len() {
                moved |= self.handle(grain) | self.read(grain);
            }
            moved |= self.acknowledge(3);
            moved |= self.core.has_backlog();
            self.core.retry_full();
            self.carry_out();
            if !moved {
                return;
            }
        }
    }

    /// What a replay hands out: the newest records that are no tombstones, then answers.
    pub fn unfinished(&self) -> Vec<Record> {
        let mut newest: BTreeMap<(bool, MessageId), (usize, &Record)> = BTreeMap::new();
        let mut owners: BTreeMap<(&str, u32), u64> = BTreeMap::new();
        for (position, record) in self.log.iter().enumerate() {
            let owner = owners.entry((&record.grain, record.partition)).or_default();
            if record.epoch < *owner {
                continue; // of an older owner after a newer one
            }
            *owner = record.epoch;
            newest.insert((&*record.grain == RESULTS, record.id), (position, record));
        }
        let mut live: Vec<_> = newest
            .into_values()
            .filter(|(_, record)| {
                let until = record.deadline_unix_ms;
                let expired = record.is_result() && until != 0 && until <= self.now.unix_ms;
                record.flag != Flag::Finished && !expired
            })
            .collect();
        live.sort_by_key(|(position, _)| *position);
        live.into_iter().map(|(_, record)| record.clone()).collect()
    }

    /// The agent dies and another one comes. Of the records that were not acknowledged, each
    /// topic partition keeps some prefix, which `cut` chooses.
    pub fn agent_dies(&mut self, know_alive: bool, mut cut: impl FnMut(usize) -> usize) {
        let open: Vec<Record> = self.log.drain(self.durable..).collect();
        let mut kept: BTreeMap<(Arc<str>, u32), usize> = BTreeMap::new();
        for record in &open {
            *kept
                .entry((Arc::clone(&record.grain), record.partition))
                .or_default() += 1;
        }
        kept.values_mut().for_each(|count| *count = cut(*count + 1));
        for record in open {
            let left = kept
                .get_mut(&(Arc::clone(&record.grain), record.partition))
                .unwrap();
            if *left > 0 {
                *left -= 1;
                self.log.push(record);
            }
        }
        self.durable = self.log.len();
        self.base = self.log.len();
        self.workflow.epoch += 1;
        self.core = Core::new(self.workflow.clone());
        self.numbers.clear();
        let alive: HashSet<MessageId> = self.queues.iter().flatten().map(|m| m.id).collect();
        for lane in &mut self.lanes {
            lane.cursor = lane.head;
            lane.released.clear();
        }
        self.recover(if know_alive { alive } else { HashSet::new() });
    }

    /// The sandbox dies with all that is in its queues; the agent lives.
    pub fn sandbox_dies(&mut self) {
        self.queues.iter_mut().for_each(VecDeque::clear);
        for lane in 0..self.lanes.len() {
            while self.read(lane) {}
        }
        self.flush();
        self.recover(HashSet::new());
    }

    fn recover(&mut self, alive: HashSet<MessageId>) {
        self.core.begin_recovery();
        if self.workflow.backup {
            for record in self.unfinished() {
                self.core.recover(record);
            }
        }
        for lane in 0..self.lanes.len() {
            while self.read(lane) {}
        }
        self.core.recovered(self.now, &alive);
        self.carry_out();
    }

    /// The only reply that a waiter got.
    pub fn reply(&self, waiter: u64) -> &Reply {
        let replies = &self.replies[&waiter];
        assert_eq!(replies.len(), 1, "waiter {waiter} got {replies:?}");
        &replies[0]
    }

    pub fn body(&self, waiter: u64) -> String {
        body(self.reply(waiter))
    }
}

pub fn body(reply: &Reply) -> String {
    match reply {
        Reply::Done(answer) => match &answer.outcome {
            Outcome::Output { body, .. } => String::from_utf8(body.clone()).unwrap(),
            Outcome::Failed(failure) => format!("{}: {}", failure.grain, failure.detail),
        },
        other => panic!("no answer but {other:?}"),
    }
}

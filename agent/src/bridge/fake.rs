//! A sandbox without processes, for the tests of the bridge and of the front door. Its grains
//! append their letter; what they do beyond that is set in [`Knobs`].

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use sandpipe::{Counters, Violation};
use sandpipe_abi::MessageId;
use sandpipe_global_bus::{EmbeddedBus, EmbeddedOptions};

use super::*;
use crate::config::Network;
use crate::core::{Cause, Delivery, Local, News, Workflow};
use crate::telemetry::Telemetry;

#[derive(Default)]
pub(crate) struct Knobs {
    /// Instances take nothing.
    pub stalled: bool,
    /// Messages that a queue holds.
    pub capacity: usize,
    /// A grain tells something without an end.
    pub chatters: bool,
    /// Bytes of the largest message that it ever takes; `None` = it takes all.
    pub largest: Option<usize>,
    /// The sandbox is gone, and a new one cannot be made.
    pub dead: bool,
    /// What the last grain answers with, in place of the input and its letters.
    pub answer: Option<Vec<u8>>,
    /// Every message fails so.
    pub failure: Option<Cause>,
    /// Events that were handled.
    pub handled: usize,
    /// It was ended.
    pub shut_down: bool,
    queues: Vec<VecDeque<(MessageId, MessageId, Vec<u8>)>>,
    told: VecDeque<Local>,
    number: u64,
    rung: bool,
    generation: u64,
}

#[derive(Clone)]
pub(crate) struct FakeSandbox {
    pub knobs: Arc<Mutex<Knobs>>,
    bell: Arc<Condvar>,
    grains: usize,
    generation: u64,
    /// Of the source; tests count them themselves.
    pub number: u64,
}

impl FakeSandbox {
    pub(crate) fn chain(grains: usize) -> FakeSandbox {
        let knobs = Knobs {
            capacity: 1000,
            queues: vec![VecDeque::new(); grains],
            ..Knobs::default()
        };
        FakeSandbox {
            knobs: Arc::new(Mutex::new(knobs)),
            bell: Arc::default(),
            grains,
            generation: 0,
            number: 0,
        }
    }

    pub(crate) fn set(&self, change: impl FnOnce(&mut Knobs)) {
        let mut knobs = self.knobs.lock().unwrap();
        change(&mut knobs);
        knobs.rung = true;
        self.bell.notify_all();
    }

    /// Kills the sandbox with all that is in its queues.
    pub(crate) fn kill(&self) {
        self.set(|knobs| {
            knobs.generation += 1;
            knobs.queues.iter_mut().for_each(VecDeque::clear);
        });
    }
}

impl Knobs {
    /// Every queue's next message is handled.
    fn work(&mut self, grains: usize) {
        for grain in (0..grains).rev() {
            let Some((id, root, mut payload)) = self.queues[grain].pop_front() else {
                continue;
            };
            self.handled += 1;
            self.number += 1;
            let child = MessageId(id.0.wrapping_mul(31) + 1);
            let mut news = News::Final;
            if let Some(cause) = self.failure {
                news = News::Failed(cause);
                payload = b"Traceback: it fails".to_vec();
            } else if grain + 1 < grains {
                payload.push(b'a' + grain as u8);
                news = News::Output { grain: grain + 1 };
                self.queues[grain + 1].push_back((child, root, payload.clone()));
            } else {
                payload.push(b'a' + grain as u8);
                payload = self.answer.clone().unwrap_or(payload);
            }
            self.told.push_back(Local {
                number: self.number,
                id: child,
                root,
                parent: id,
                from: grain,
                news,
                last: true,
                stamps: None,
                event: None,
                payload,
            });
        }
    }
}

impl LocalBus for FakeSandbox {
    fn poll(
        &mut self,
        limit: usize,
        take: &mut dyn FnMut(Local) -> Result<(), Violation>,
    ) -> usize {
        let mut told = {
            let mut knobs = self.knobs.lock().unwrap();
            if knobs.chatters {
                return limit; // nothing that the core has to hear
            }
            if !knobs.stalled {
                knobs.work(self.grains);
            }
            std::mem::take(&mut knobs.told)
        };
        let count = told.len().min(limit);
        told.drain(..).for_each(|local| take(local).unwrap());
        count
    }

    fn room(&self) -> usize {
        100
    }

    fn take_refusal(&mut self) -> Option<Refused> {
        None
    }

    fn release(&mut self, _number: u64) {}

    fn publish(&mut self, delivery: &Delivery) -> Publish {
        let mut knobs = self.knobs.lock().unwrap();
        if knobs
            .largest
            .is_some_and(|max| delivery.payload.len() > max)
        {
            return Publish::Never("too large for every chunk".into());
        }
        let capacity = knobs.capacity;
        let queue = &mut knobs.queues[delivery.grain];
        if queue.len() >= capacity {
            return Publish::Full;
        }
        queue.push_back((delivery.id, delivery.root, delivery.payload.clone()));
        Publish::Done
    }

    fn alive(&self) -> HashSet<MessageId> {
        let knobs = self.knobs.lock().unwrap();
        knobs
            .queues
            .iter()
            .flatten()
            .map(|message| message.0)
            .collect()
    }

    fn pool_sizes(&self) -> Vec<(u64, u64)> {
        let families = 0..1 + self.grains as u64;
        families.map(|grown| ((1 + grown) << 20, grown)).collect()
    }

    fn counters(&self) -> Vec<Counters> {
        let of_agent = Counters {
            published: 1,
            ..Counters::default()
        };
        let of_grains = (0..self.grains).map(|grain| Counters {
            published: 10 + grain as u64,
            recovered_messages: grain as u64,
            ..Counters::default()
        });
        std::iter::once(of_agent).chain(of_grains).collect()
    }

    fn queues(&self) -> Vec<QueueLoad> {
        let knobs = self.knobs.lock().unwrap();
        let waiting = knobs.queues.iter().map(VecDeque::len);
        let load = |waiting| QueueLoad {
            waiting,
            ..QueueLoad::default()
        };
        std::iter::once(0).chain(waiting).map(load).collect()
    }

    fn update(&mut self) -> Result<(), LocalError> {
        if self.knobs.lock().unwrap().generation != self.generation {
            return Err(LocalError::Ended("killed by the test".into()));
        }
        Ok(())
    }

    fn park(&mut self, timeout: Duration, is_awaited: &dyn Fn() -> bool) -> bool {
        let mut knobs = self.knobs.lock().unwrap();
        if is_awaited() || std::mem::take(&mut knobs.rung) {
            return false;
        }
        knobs = self.bell.wait_timeout(knobs, timeout).unwrap().0;
        std::mem::take(&mut knobs.rung)
    }

    fn ringer(&self) -> Box<dyn Fn() + Send + Sync> {
        let fake = self.clone();
        Box::new(move || fake.set(|_| {}))
    }
}

impl SandboxSource for FakeSandbox {
    fn attach(&mut self) -> Result<Attached, LocalError> {
        let knobs = self.knobs.lock().unwrap();
        if knobs.dead {
            return Err(LocalError::NotMade("no sandbox in this test".into()));
        }
        self.generation = knobs.generation;
        drop(knobs);
        Ok(Attached {
            local: Box::new(self.clone()),
            adopted: false,
        })
    }

    fn quarantine(&mut self, _grain: usize, _reason: &str) {}

    fn number(&self) -> u64 {
        self.number
    }

    fn network(&self) -> Option<Network> {
        None
    }

    fn workers(&self) -> Vec<GrainState> {
        Vec::new()
    }

    fn shut_down(&mut self, _timeout: Duration) {
        self.set(|knobs| knobs.shut_down = true);
    }
}

pub(crate) fn workflow(grains: usize) -> Workflow {
    Workflow {
        app: "app".into(),
        grains: (0..grains)
            .map(|index| Arc::from(format!("g{index}")))
            .collect(),
        entry: 0,
        backup: true,
        copies: true,
        partitions: 4,
        epoch: 1,
        max_in_flight: 64,
        deadline_ms: 60_000,
        max_attempts: 3,
        result_ttl_ms: 60_000,
    }
}

/// A running bus thread over a fake sandbox and a real log.
pub(crate) struct Running {
    pub fake: FakeSandbox,
    pub mailbox: Arc<Mailbox>,
    thread: Option<std::thread::JoinHandle<End>>,
}

impl Running {
    pub(crate) fn start(directory: &std::path::Path, workflow: Workflow) -> Running {
        let (global, _) = EmbeddedBus::open(directory, EmbeddedOptions::default()).unwrap();
        let fake = FakeSandbox::chain(workflow.grains.len());
        let mailbox = Arc::new(Mailbox::default());
        let thread = BusThread::new(Settings {
            workflow,
            global: Box::new(global),
            sandbox: Box::new(fake.clone()),
            mailbox: Arc::clone(&mailbox),
            max_payload_bytes: 8 << 20,
            telemetry: Telemetry::default(),
            bounds: Bounds::default(),
        });
        let thread = thread.unwrap();
        Running {
            fake,
            mailbox,
            thread: Some(std::thread::spawn(|| thread.run())),
        }
    }

    /// Stops the thread and waits for it.
    pub(crate) fn stop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let patience = Duration::from_secs(10);
            let done = tokio::sync::oneshot::channel().0;
            self.mailbox.post(Post::Stop(Stop { patience, done }));
            thread.join().unwrap();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.set_free();
        if !std::thread::panicking() {
            self.stop();
        }
    }
}

impl Running {
    /// Undoes what would keep requests open.
    fn set_free(&self) {
        self.fake.set(|knobs| {
            knobs.stalled = false;
            knobs.capacity = 1000;
            knobs.dead = false;
        });
    }
}

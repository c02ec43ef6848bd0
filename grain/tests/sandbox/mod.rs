//! A small sandbox for tests: guardian, workers as processes, and the test itself as the agent.
#![allow(dead_code, unused_imports, reason = "each test binary uses a part")]

mod handshake;
mod processes;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use sandpipe::wait::{WAITER_VARIABLE, WaiterKind};
use sandpipe::{
    Bus, ChunkClass, FailureCode, FamilyIndex, FamilySpec, Guardian, Instance, Kind, Mapping,
    MessageHeader, MessageId, Participant, Payload, Receiver, SlotIndex, StageError, Target,
    Topology, TraceStamps, split_dead,
};
use sandpipe_grain::{BackOff, Backup, Mode, NextGrain, Route, WorkerConfig};

use handshake::{Line, admit, join, serve};
pub use processes::{Sleepers, is_alive, pid_of};
use processes::{children, wait_until_gone, wait_until_stopped};

/// Ten times what anything here should take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What the agent was told last about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub kind: Kind,
    pub failure: FailureCode,
    pub text: String,
    pub stamps: Option<TraceStamps>,
    /// The data of an event whose attempts are used up.
    pub event: Option<Vec<u8>>,
}

/// A worker's process.
struct Worker {
    config: WorkerConfig,
    arguments: Vec<String>,
    /// Forced upon it, or probed.
    waiter: Option<WaiterKind>,
    process: Option<Child>,
    log: tempfile::NamedTempFile,
}

pub struct Sandbox {
    guardian: Guardian,
    lines: Vec<Option<Line>>,
    workers: Vec<Worker>,
    participant: Participant,
    bus: Bus<Mapping>,
    receiver: Receiver<Mapping>,
    instance: Instance<Mapping>,
    pub answers: BTreeMap<MessageId, Vec<Answer>>,
    /// Backup copies and answers by their own id: how often each was told.
    pub told: BTreeMap<MessageId, usize>,
    pub traced: bool,
    /// How often the agent has mapped workers' segments anew.
    updates: usize,
}

/// A chain of grains, each with the settings of `like`.
pub fn chain(length: u16, like: &WorkerConfig) -> Vec<WorkerConfig> {
    (1..=length)
        .map(|family| WorkerConfig {
            grain: format!("g{family}"),
            family,
            next: (family < length)
                .then(|| NextGrain {
                    grain: format!("g{}", family + 1),
                    family: family + 1,
                })
                .into_iter()
                .collect(),
            ..like.clone()
        })
        .collect()
}

/// Settings that most tests begin with.
pub fn settings(mode: Mode, concurrency: u16, spares: u16) -> WorkerConfig {
    WorkerConfig {
        app: "test".into(),
        grain: String::new(),
        family: 1,
        mode,
        concurrency,
        spares,
        shared_instances: None,
        time_limit_ms: 10_000,
        max_attempts: 3,
        back_off: BackOff::default(),
        max_payload_bytes: 1 << 20,
        next: Vec::new(),
        route: Route::All,
        handler: "test".into(),
        args: Vec::new(),
        backup: Backup::Async,
    }
}

fn topology(configs: &[WorkerConfig]) -> Topology {
    let chunks = vec![
        ChunkClass {
            bytes: 4096,
            count: 64,
        },
        ChunkClass {
            bytes: 1 << 20,
            count: 4,
        },
    ];
    let lane = |queue: u16, lane_slots: u32| Target {
        queue: FamilyIndex(queue),
        lane_slots,
    };
    let agent = FamilySpec {
        slots: 1,
        targets: configs
            .iter()
            .map(|config| lane(config.family, 64))
            .collect(),
        chunks: chunks.clone(),
    };
    let grains = configs.iter().map(|config| {
        let next = config.next.iter().map(|next| lane(next.family, 8));
        FamilySpec {
            slots: config.slots(),
            targets: [lane(0, 64)].into_iter().chain(next).collect(),
            chunks: chunks.clone(),
        }
    });
    Topology::new([agent].into_iter().chain(grains).collect()).unwrap()
}

impl Sandbox {
    /// Starts a worker for each configuration and waits until all are attached.
    pub fn start(configs: Vec<WorkerConfig>) -> Sandbox {
        Sandbox::start_with(configs, &[], None)
    }

    /// The same, with pools that may grow by so many bytes, and shrink after `idle`.
    pub fn start_growing(configs: Vec<WorkerConfig>, growth_bytes: u64, idle: Duration) -> Sandbox {
        let topology = topology(&configs).with_growth(growth_bytes);
        let mut guardian = Guardian::new(topology).unwrap();
        guardian.retire_after(idle);
        Sandbox::of(guardian, configs, &[], None)
    }

    pub fn start_with(
        configs: Vec<WorkerConfig>,
        arguments: &[&str],
        waiter: Option<WaiterKind>,
    ) -> Sandbox {
        let guardian = Guardian::new(topology(&configs)).unwrap();
        Sandbox::of(guardian, configs, arguments, waiter)
    }

    fn of(
        mut guardian: Guardian,
        configs: Vec<WorkerConfig>,
        arguments: &[&str],
        waiter: Option<WaiterKind>,
    ) -> Sandbox {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
        let mut lines: Vec<Option<Line>> = Vec::new();
        lines.resize_with(configs.len() + 1, || None);
        let (participant, bus) = join(&mut guardian, &mut lines);
        let arguments: Vec<_> = arguments.iter().map(ToString::to_string).collect();
        let workers = configs.into_iter().map(|config| Worker {
            config,
            arguments: arguments.clone(),
            waiter,
            process: None,
            log: tempfile::NamedTempFile::new().unwrap(),
        });
        let mut sandbox = Sandbox {
            guardian,
            lines,
            workers: workers.collect(),
            participant,
            receiver: bus.receiver(),
            instance: bus.instance(SlotIndex(0)),
            bus,
            answers: BTreeMap::new(),
            told: BTreeMap::new(),
            traced: false,
            updates: 0,
        };
        for index in 0..sandbox.workers.len() {
            sandbox.start_worker(index);
        }
        sandbox
    }

    /// Starts a worker over a new segment of its family, and waits until the agent has mapped it.
    pub fn start_worker(&mut self, index: usize) {
        let family = self.workers[index].config.family();
        let theirs = admit(&mut self.guardian, &mut self.lines, family);
        let worker = &mut self.workers[index];
        let log = worker.log.reopen().unwrap();
        // The shell moves the socket to descriptor 3.
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 0</dev/null"])
            .arg(env!("CARGO_BIN_EXE_sandpipe-test-grain"))
            .args(&worker.arguments)
            .env(sandpipe_grain::WORKER_VARIABLE, worker.config.to_json())
            .envs(worker.waiter.map(|kind| (WAITER_VARIABLE, kind.name())))
            .stdin(Stdio::from(theirs))
            .stderr(log)
            .process_group(0);
        worker.process = Some(command.spawn().unwrap());
        let before = self.updates;
        self.until("a worker attaches", |sandbox| sandbox.updates > before);
    }

    /// Pumps until `done`; panics when patience ends.
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Sandbox) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !done(self) {
            if Instant::now() > end {
                self.report();
                panic!("waited {PATIENCE:?} until {what}");
            }
            if !self.pump() {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
    }

    fn report(&self) {
        for worker in &self.workers {
            let family = worker.config.family();
            let held = self.guardian.view(family).map(|view| view.audit(family));
            let log = fs::read_to_string(worker.log.path()).unwrap();
            eprintln!("{}: holds {held:?}; log:\n{log}", worker.config.grain);
        }
    }

    /// Answers the workers' handshakes and maps what is new; counts what the agent mapped.
    fn pump_control(&mut self) {
        serve(&mut self.guardian, &mut self.lines);
        if self.participant.update(&mut self.bus).unwrap() {
            self.updates += 1;
            self.receiver.rebind(&self.bus);
            self.instance = self.bus.instance(SlotIndex(0));
        }
    }

    /// Does what an agent does: handshakes and answers. True if there was a message.
    pub fn pump(&mut self) -> bool {
        self.pump_control();
        let mut any = false;
        while let Some((delivery, place)) = self.receiver.receive() {
            any = true;
            let header = delivery.message.header;
            *self.told.entry(header.id).or_default() += 1;
            if header.kind != Kind::Event {
                let stamps = match delivery.message.body {
                    sandpipe::Body::Traced { trace, .. } => Some(trace),
                    _ => None,
                };
                let mut bytes = self.bus.payload(&delivery).unwrap();
                let mut event = None;
                if header.kind == Kind::Dead {
                    let (reason, data) = split_dead(&bytes).expect("a reason and an event");
                    event = Some(data.to_vec());
                    bytes = reason.to_vec();
                }
                let answer = Answer {
                    kind: header.kind,
                    failure: header.failure,
                    text: String::from_utf8(bytes).unwrap(),
                    stamps,
                    event,
                };
                self.answers.entry(header.root).or_default().push(answer);
            }
            self.receiver.acknowledge(place);
        }
        any
    }

    /// Publishes a request to the first grain, waiting for room.
    pub fn send(&mut self, id: u128, text: &str) {
        let id = MessageId(id);
        let queue = FamilyIndex(1);
        let header = MessageHeader {
            traced: self.traced,
            ..MessageHeader::event(id, id, MessageId::NONE, queue)
        };
        self.until("there is room for a request", |sandbox| {
            sandbox.try_send(queue, &header, text.as_bytes())
        });
    }

    fn try_send(&mut self, queue: FamilyIndex, header: &MessageHeader, data: &[u8]) -> bool {
        let instance = &mut self.instance;
        let stamps = TraceStamps::default();
        let staged = if data.len() <= 64 {
            instance.stage(queue, header, Payload::Inline(data), stamps)
        } else {
            let Ok(loan) = instance.loan(data.len()) else {
                self.participant.ask_to_grow(&self.bus).unwrap();
                return false;
            };
            instance.write(&loan, 0, data);
            let staged = instance.stage(queue, header, Payload::Loaned(&loan), stamps);
            if staged.is_err() {
                instance.discard();
                instance.give_back(loan);
            }
            staged
        };
        match staged {
            Ok(()) => self.instance.commit(sandpipe::Ack::NOTHING),
            Err(StageError::Full(_)) => return false,
            Err(error) => panic!("{error}"),
        }
        true
    }

    /// Publishes a request and reads no answers meanwhile.
    pub fn send_unread(&mut self, id: u128, text: &str) {
        let id = MessageId(id);
        let header = MessageHeader::event(id, id, MessageId::NONE, FamilyIndex(1));
        self.until_unread("there is room for a request", |sandbox| {
            sandbox.try_send(FamilyIndex(1), &header, text.as_bytes())
        });
    }

    /// Does what the guardian and the agent do, but reading, until `done`.
    pub fn until_unread(&mut self, what: &str, mut done: impl FnMut(&mut Sandbox) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !done(self) {
            self.pump_control();
            if Instant::now() > end {
                self.report();
                panic!("waited {PATIENCE:?} until {what}");
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    pub fn counters_of(&self, family: u16) -> sandpipe::Counters {
        self.bus.counters(FamilyIndex(family))
    }

    /// Whether every pool is as large as it was made, and its files are new everywhere.
    pub fn is_small(&self) -> bool {
        self.guardian.is_whole()
    }

    /// Waits until `count` requests are answered.
    pub fn wait_for(&mut self, count: usize) {
        let what = format!("{count} requests are answered");
        self.until(&what, |sandbox| sandbox.answers.len() >= count);
    }

    /// Sends one request and waits for its answer.
    pub fn ask(&mut self, id: u128, text: &str) -> Answer {
        self.send(id, text);
        self.until("the request is answered", |sandbox| {
            sandbox.answers.contains_key(&MessageId(id))
        });
        self.answers[&MessageId(id)][0].clone()
    }

    /// Process ids of a worker's living instances.
    pub fn instances(&self, index: usize) -> Vec<i32> {
        let Some(worker) = &self.workers[index].process else {
            return Vec::new();
        };
        children(worker.id() as i32)
    }

    /// What a worker's family holds.
    pub fn view_of(&self, index: usize) -> sandpipe::Audit {
        let family = self.workers[index].config.family();
        self.guardian.view(family).unwrap().audit(family)
    }

    /// What a grain has counted, as the agent reads it.
    pub fn counters(&self, index: usize) -> sandpipe::Counters {
        self.bus.counters(self.workers[index].config.family())
    }

    /// Closes the guardian's end of a worker's line.
    pub fn hang_up(&mut self, index: usize) {
        self.lines[self.workers[index].config.family().index()] = None;
    }

    pub fn worker_pid(&self, index: usize) -> i32 {
        self.workers[index].process.as_ref().unwrap().id() as i32
    }

    pub fn log(&self, index: usize) -> String {
        fs::read_to_string(self.workers[index].log.path()).unwrap()
    }

    /// Stops a worker that has no instances, so that its family takes nothing.
    pub fn stop_worker(&self, index: usize) {
        let pid = self.worker_pid(index);
        kill_process(pid_of(pid), Signal::STOP).unwrap();
        wait_until_stopped(pid);
        assert!(children(pid).is_empty(), "its instances go on");
    }

    /// Kills a worker, waits until its whole family is gone, repairs, and starts it again.
    pub fn restart_worker(&mut self, index: usize) {
        let family = self.workers[index].config.family();
        let mut worker = self.workers[index].process.take().unwrap();
        let pid = worker.id() as i32;
        // A stopped worker forks no more, so the list of its instances is whole.
        let _ = kill_process(pid_of(pid), Signal::STOP);
        wait_until_stopped(pid);
        let instances = children(pid);
        worker.kill().unwrap();
        worker.wait().unwrap();
        for instance in instances {
            wait_until_gone(instance);
        }
        self.lines[family.index()] = None;
        self.guardian.repair_family(family);
        self.start_worker(index);
    }

    /// Waits for a worker that ends by itself.
    pub fn wait_for_exit(&mut self, index: usize) -> ExitStatus {
        let mut status = None;
        self.until("the worker ends", |sandbox| {
            let worker = sandbox.workers[index].process.as_mut().unwrap();
            status = worker.try_wait().unwrap();
            status.is_some()
        });
        self.workers[index].process = None;
        status.unwrap()
    }

    /// Asks a worker to end.
    pub fn terminate(&self, index: usize) {
        let pid = pid_of(self.worker_pid(index));
        kill_process(pid, Signal::TERM).unwrap();
    }

    /// Ends every worker in good order and checks that nothing is left behind.
    pub fn finish(mut self) {
        for index in 0..self.workers.len() {
            let instances = self.instances(index);
            self.terminate(index);
            let status = self.wait_for_exit(index);
            assert!(
                status.success(),
                "worker {index}: {status}\n{}",
                self.log(index)
            );
            for instance in instances {
                assert!(
                    !is_alive(instance),
                    "instance {instance} outlived its worker"
                );
            }
            let family = self.workers[index].config.family();
            let repair = self.guardian.repair_family(family);
            assert_eq!(repair, Default::default(), "left by worker {index}");
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        for worker in &mut self.workers {
            if let Some(mut process) = worker.process.take() {
                let instances = children(process.id() as i32);
                let _ = process.kill();
                let _ = process.wait();
                instances.into_iter().for_each(wait_until_gone);
            }
        }
    }
}

/// A small deterministic random number generator.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

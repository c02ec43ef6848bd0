//! An application in a real sandbox with real workers, the harness in the host agent's place: what
//! is measured between two grains then contains no front door and no global bus.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{PidfdFlags, getpid, pidfd_open, setsid};
use rustix::time::Timespec;
use sandpipe::{
    Ack, Bus, ChunkClass, FamilyIndex, FamilySpec, Instance, Kind, Mapping, MessageHeader,
    MessageId, Participant, Payload, Receiver, SlotIndex, Target, Topology, TraceStamps,
    split_dead,
};
use sandpipe_grain::{BackOff, Backup, Mode, NextGrain, Route, WORKER_VARIABLE, WorkerConfig};
use sandpipe_sandbox::{
    Files, Isolation, SandboxHandle, SandboxSpec, WorkerSpec, WorkerState, create_or_adopt,
};

use crate::clock::PEER_SILENCE_MAX;
use crate::error::BenchError;
use crate::raw::{Child, fork};

/// Inline payloads only, and a few chunks for failures' words.
const CHUNKS: [ChunkClass; 1] = [ChunkClass {
    bytes: 4096,
    count: 64,
}];
/// Largest payload that fits into a lane slot.
pub const INLINE_BYTES_MAX: usize = 64;
/// How long workers may take to load their code.
const START_MAX: Duration = Duration::from_secs(60);
/// How long a sandbox may take to end before it is killed.
const END_MAX: Duration = Duration::from_secs(2);

/// One grain of the chain.
#[derive(Clone, Debug)]
pub struct Grain {
    /// The worker's program and arguments.
    pub command: Vec<String>,
    /// What it runs, in the runtime's words.
    pub handler: String,
    /// How it makes instances.
    pub mode: Mode,
    /// Instances forked ahead.
    pub spares: u16,
    /// Its environment, besides the worker's configuration.
    pub env: Vec<(String, String)>,
    /// What it reads to start, besides its program and what lies beside that.
    pub reads: Vec<PathBuf>,
}

/// A running chain of grains; ended when it goes out of scope.
#[derive(Debug)]
pub struct Stage {
    app: String,
    handle: SandboxHandle,
    line: Participant,
    bus: Bus<Mapping>,
    instance: Instance<Mapping>,
    receiver: Receiver<Mapping>,
    sent: u128,
    /// Ends the sandbox if the harness is killed; it would live on for the next agent.
    _watch: Child,
    /// Removed last.
    _run: tempfile::TempDir,
}

impl Stage {
    /// Starts a sandbox with a chain of grains and waits until every worker has attached.
    ///
    /// # Errors
    /// If the sandbox cannot be made, or a worker fails (with the end of what it wrote).
    pub fn start(app: &str, grains: &[Grain]) -> Result<Stage, BenchError> {
        let run = tempfile::tempdir().map_err(|e| BenchError::os("a run directory", e))?;
        let wrong = |detail: String| BenchError::peer(format!("sandbox {app}"), detail);
        let topology = topology(grains)?;
        let spec = spec(app, &run.path().join("run"), grains, &topology);
        // Before there is a sandbox, so that there is no moment without a watch.
        let watch = watch(&spec, run.path())?;
        let mut handle = create_or_adopt(&spec).map_err(|e| wrong(e.to_string()))?;
        let socket = handle
            .take_attach_socket()
            .ok_or_else(|| wrong("gave no attach socket".into()))?;
        let attached = Participant::attach(socket, FamilyIndex::AGENT, PEER_SILENCE_MAX);
        let (mut line, mut bus) = attached.map_err(|e| wrong(e.to_string()))?;
        wait_for_workers(&handle, &mut line, &mut bus, grains.len()).map_err(wrong)?;
        Ok(Stage {
            app: app.to_owned(),
            instance: bus.instance(SlotIndex(0)),
            receiver: bus.receiver(),
            handle,
            line,
            bus,
            sent: 0,
            _watch: watch,
            _run: run,
        })
    }

    /// Sends one event to the first grain and waits, parked, for the last grain's answer.
    ///
    /// # Errors
    /// If a grain fails, or nothing comes for a long time.
    pub fn invoke(&mut self, payload: &[u8]) -> Result<Vec<u8>, BenchError> {
        self.follow_restarts()?;
        self.sent += 1;
        let id = MessageId(self.sent);
        let first = FamilyIndex(1);
        let header = MessageHeader::event(id, id, MessageId::NONE, first);
        self.instance
            .stage(
                first,
                &header,
                Payload::Inline(payload),
                TraceStamps::default(),
            )
            .map_err(|e| BenchError::peer(&self.app, e.to_string()))?;
        self.instance.commit(Ack::NOTHING);
        let deadline = Instant::now() + PEER_SILENCE_MAX;
        while Instant::now() < deadline {
            if let Some(answer) = self.next_answer(id)? {
                return Ok(answer);
            }
            let bell = self.bus.bell(FamilyIndex::AGENT);
            let parking = bell.prepare();
            if self.receiver.has_message() {
                parking.cancel();
            } else {
                parking.sleep(Duration::MAX);
            }
        }
        Err(BenchError::peer(
            &self.app,
            "gave no answer; the grains' logs say more",
        ))
    }

    /// Takes what waits in the agent's queue: backup copies are let go, as an agent does once they
    /// are durable.
    fn next_answer(&mut self, root: MessageId) -> Result<Option<Vec<u8>>, BenchError> {
        while let Some((delivery, place)) = self.receiver.receive() {
            let header = delivery.message.header;
            let payload = self.bus.payload(&delivery);
            self.receiver.acknowledge(place);
            if header.root != root {
                continue;
            }
            let payload = payload.map_err(|e| BenchError::peer(&self.app, e.to_string()))?;
            match header.kind {
                Kind::Final => return Ok(Some(payload)),
                Kind::Failed | Kind::Dead => {
                    let dead = (header.kind == Kind::Dead).then(|| split_dead(&payload));
                    let reason = dead.flatten().map_or(&payload[..], |(reason, _)| reason);
                    let said = String::from_utf8_lossy(reason).into_owned();
                    return Err(BenchError::peer(format!("a grain of {}", self.app), said));
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// A worker that was started anew has a new segment.
    fn follow_restarts(&mut self) -> Result<(), BenchError> {
        let changed = self
            .line
            .update(&mut self.bus)
            .map_err(|e| BenchError::peer(&self.app, e.to_string()))?;
        if changed {
            self.receiver.rebind(&self.bus);
            self.instance = self.bus.instance(SlotIndex(0));
        }
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = self.handle.shutdown(END_MAX) {
            eprintln!("sandpipe-bench: {error}");
        }
    }
}

/// Forks a process that outlives a killed harness just long enough to end its sandbox.
fn watch(spec: &SandboxSpec, run: &Path) -> Result<Child, BenchError> {
    let harness = pidfd_open(getpid(), PidfdFlags::empty())
        .map_err(|e| BenchError::os("pidfd_open", e.into()))?;
    fork(|| {
        // Out of the terminal's group: Ctrl-C must not end the watch with the harness.
        let _ = setsid();
        let mut ended = [PollFd::new(&harness, PollFlags::IN)];
        while poll(&mut ended, None) == Err(rustix::io::Errno::INTR) {}
        // Init hears only its current agent, and that was the harness: adopt, then end it.
        let ended = create_or_adopt(spec).and_then(|handle| handle.shutdown(Duration::ZERO));
        let _ = std::fs::remove_dir_all(run);
        i32::from(ended.is_err())
    })
}

fn topology(grains: &[Grain]) -> Result<Topology, BenchError> {
    let lane = |queue: usize| Target {
        queue: family(queue),
        lane_slots: 64,
    };
    let agent = FamilySpec {
        slots: 1,
        targets: vec![lane(1)],
        chunks: CHUNKS.to_vec(),
    };
    let mut families = vec![agent];
    for (index, grain) in grains.iter().enumerate() {
        let next = index + 2;
        let mut targets = vec![lane(0)];
        targets.extend((next <= grains.len()).then(|| lane(next)));
        let slots = worker_config("", grains, index, grain).slots();
        families.push(FamilySpec {
            slots,
            targets,
            chunks: CHUNKS.to_vec(),
        });
    }
    Topology::new(families).map_err(|e| BenchError::peer("the topology", e.to_string()))
}

fn spec(app: &str, run_dir: &Path, grains: &[Grain], topology: &Topology) -> SandboxSpec {
    let workers = grains.iter().enumerate().map(|(index, grain)| {
        let config = worker_config(app, grains, index, grain);
        let mut env = grain.env.clone();
        env.push((WORKER_VARIABLE.to_owned(), config.to_json()));
        WorkerSpec {
            grain: config.grain,
            command: grain.command.clone(),
            env,
            working_dir: Path::new(&grain.command[0]).parent().map(PathBuf::from),
            stderr_log: Some(run_dir.with_file_name(format!("f{}.log", index + 1))),
            ..WorkerSpec::default()
        }
    });
    SandboxSpec {
        app: app.to_owned(),
        run_dir: run_dir.to_owned(),
        topology: topology.encode(),
        workers: workers.collect(),
        isolation: Isolation::default(),
        memory_limit_bytes: None,
        pids_limit: None,
        instances_limit: None,
        cpu_limit_millicores: None,
        files: Files {
            read: grains.iter().flat_map(|it| it.reads.clone()).collect(),
            ..Files::default()
        },
        io_uring: true,
    }
}

fn worker_config(app: &str, grains: &[Grain], index: usize, grain: &Grain) -> WorkerConfig {
    let next = (index + 2 <= grains.len()).then(|| NextGrain {
        grain: grain_name(index + 1),
        family: family(index + 2).0,
    });
    WorkerConfig {
        app: app.to_owned(),
        grain: grain_name(index),
        family: family(index + 1).0,
        mode: grain.mode,
        concurrency: 1,
        spares: grain.spares,
        shared_instances: None,
        time_limit_ms: 30_000,
        max_attempts: 1,
        back_off: BackOff::default(),
        max_payload_bytes: 4096,
        next: next.into_iter().collect(),
        route: Route::All,
        handler: grain.handler.clone(),
        args: vec![],
        backup: Backup::Async,
    }
}

fn grain_name(index: usize) -> String {
    format!("f{}", index + 1)
}

fn family(index: usize) -> FamilyIndex {
    FamilyIndex(u16::try_from(index).expect("a chain has a few grains"))
}

/// Waits until all workers' segments are mapped; the error is what a failed worker said.
fn wait_for_workers(
    handle: &SandboxHandle,
    line: &mut Participant,
    bus: &mut Bus<Mapping>,
    grains: usize,
) -> Result<(), String> {
    let deadline = Instant::now() + START_MAX;
    loop {
        line.update(bus).map_err(|e| e.to_string())?;
        if (1..=grains).all(|index| bus.segment(family(index)).is_some()) {
            return Ok(());
        }
        let status = handle.status().map_err(|e| e.to_string())?;
        for worker in &status.workers {
            match &worker.state {
                WorkerState::Starting | WorkerState::Running | WorkerState::Clearing => {}
                other => return Err(format!("worker {}: {other:?}", worker.grain)),
            }
        }
        if Instant::now() > deadline {
            return Err(format!("its workers are not ready after {START_MAX:?}"));
        }
        let look = Timespec {
            tv_sec: 0,
            tv_nsec: 50_000_000,
        };
        let socket = line.as_fd();
        // A worker that fails is seen by its status only, so the wait is short.
        let _ = poll(
            &mut [PollFd::from_borrowed_fd(socket, PollFlags::IN)],
            Some(&look),
        );
    }
}

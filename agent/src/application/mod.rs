//! One application on this host: its sandbox, its global bus, and its bus thread.

mod global;
mod keepers;
mod kernel_limits;
mod places;
mod programs;
mod sandbox;
mod topology;
mod upgrade;
mod workers;

use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use sandpipe::Topology;
use tokio::sync::oneshot;

use crate::bridge::{Bounds, BusThread, End, Mailbox, Post, Settings, SharedBound, Stop};
use crate::config::{AppSpec, Backup, Route};
use crate::core::Workflow;
use crate::front_door::AppDoor;
use crate::telemetry::Telemetry;

pub use global::{BusChoice, GlobalError};
pub use places::{Places, default_data, run_dir};
pub use sandbox::{Source, files};
pub use topology::{made_bytes, topology};
pub use upgrade::{UpgradeError, end_sandbox};
pub use workers::WorkerError;

/// Partition indices of the global bus.
const PARTITIONS: u32 = 4;

/// Bytes that a record has beside its payload, at the most: attributes, names, trace context.
const RECORD_OVERHEAD_BYTES: u64 = 64 << 10;

/// Records of this size every global bus takes, whatever it was opened for.
const RECORDS_ALWAYS_TAKEN: u64 = 16 << 20;

/// A running application.
#[derive(Debug)]
pub struct Application {
    /// What the front door has to know.
    pub door: AppDoor,
    thread: JoinHandle<End>,
    epoch: u64,
    /// The largest record that its global bus was opened for.
    record_bytes: u64,
}

/// How an application has ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Another agent has taken its sandbox over.
    TakenOver,
    /// Its bus thread has panicked. The sandbox lives; a new start adopts it.
    Panicked,
}

/// Why an application cannot be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The global bus.
    #[error(transparent)]
    Global(#[from] GlobalError),
    /// The sandbox's shape.
    #[error("the application does not fit into a sandbox: {0}")]
    Topology(#[from] sandpipe::TopologyError),
    /// What a worker would be started with.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// There is no thread for it.
    #[error("no thread can be made for the application: {0}; look at the limit of processes")]
    Thread(std::io::Error),
    /// What the global bus holds cannot be read.
    #[error("the messages of the application cannot be recovered: {0}")]
    Replay(#[from] sandpipe_global_bus::ReplayError),
}

impl Application {
    /// Opens the global bus, recovers what it holds, makes or adopts the sandbox and starts the
    /// bus thread. Blocks for as long as that takes.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then. A sandbox that cannot be made is no error: it is tried
    /// again, and requests hear why.
    pub fn start(
        spec: &AppSpec,
        places: &Places,
        bus: &BusChoice,
        telemetry: &Telemetry,
    ) -> Result<Application, StartError> {
        // Before anything else is made that would have to be ended again.
        let (give, take) = mpsc::channel::<BusThread>();
        let name = format!("bus-{}", spec.name);
        let thread = std::thread::Builder::new().name(name);
        let run = move || take.recv().map_or(End::Stopped, BusThread::run);
        let thread = thread.spawn(run).map_err(StartError::Thread)?;
        let record_bytes = record_bytes(spec);
        let (mut global, epoch) = global::open(spec, places, bus, record_bytes, PARTITIONS)?;
        let grains: Vec<&str> = spec
            .grains
            .iter()
            .map(|grain| grain.name.as_str())
            .collect();
        global
            .prepare(&spec.name, &grains)
            .map_err(GlobalError::from)?;
        let mailbox = Arc::new(Mailbox::default());
        let topology = topology(spec)?;
        let workers = workers::workers(spec, places, copies(spec))?;
        let source = Source::new(spec, places, &topology, workers, Arc::clone(&mailbox));
        let bus = BusThread::new(Settings {
            workflow: workflow(spec, epoch),
            global,
            sandbox: Box::new(source),
            mailbox: Arc::clone(&mailbox),
            max_payload_bytes: max_payload_bytes(spec),
            telemetry: telemetry.clone(),
            bounds: bounds(spec, &topology),
        })?;
        give.send(bus).expect("the thread waits for it");
        let door = AppDoor {
            name: spec.name.as_str().into(),
            mailbox,
            max_payload_bytes: max_payload_bytes(spec),
            max_bytes_in_flight: max_bytes_in_flight(spec),
            held_bytes: Arc::default(),
        };
        Ok(Application {
            door,
            thread,
            epoch,
            record_bytes,
        })
    }

    /// Whether the bus thread has ended: another agent has taken the sandbox over.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Begins to end: no request is taken any more. See [`Application::stop`].
    pub fn begin_stop(&self, patience: Duration) -> oneshot::Receiver<usize> {
        let (done, left) = oneshot::channel();
        self.door.mailbox.post(Post::Stop(Stop { patience, done }));
        left
    }

    /// Finishes what is open (for at most `patience`), backs everything up and ends the sandbox;
    /// how many requests are not finished. They stay on the global bus and go on with the next
    /// start. Blocks.
    pub fn stop(self, patience: Duration) -> usize {
        let left = self.begin_stop(patience);
        self.join();
        left.blocking_recv().unwrap_or(0)
    }

    /// Waits for the end of the bus thread; how it ended, if it was not told to. Blocks.
    pub fn join(self) -> Option<Ended> {
        match self.thread.join() {
            Ok(End::Stopped) => None,
            Ok(End::TakenOver) => Some(Ended::TakenOver),
            Err(_) => {
                tracing::error!(app = %self.door.name, "the bus thread has panicked");
                Some(Ended::Panicked)
            }
        }
    }
}

fn record_bytes(spec: &AppSpec) -> u64 {
    spec.limits.max_payload_bytes + RECORD_OVERHEAD_BYTES
}

fn max_bytes_in_flight(spec: &AppSpec) -> usize {
    usize::try_from(spec.limits.max_bytes_in_flight).unwrap_or(usize::MAX)
}

fn bounds(spec: &AppSpec, topology: &Topology) -> Bounds {
    Bounds {
        spool_bytes: spec.limits.spool_bytes,
        queue_length: u64::from(spec.limits.queue_length),
        empty_wakes_per_s: spec.limits.empty_wakes_per_s,
        wakes_per_s: spec.limits.wakes_per_s,
        shared: spec.limits.shared_bytes.map(|limit_bytes| SharedBound {
            limit_bytes,
            made_bytes: made_bytes(topology),
            growth_bytes: Some(topology.growth_bytes())
                .filter(|left| *left < spec.limits.pool_growth_bytes)
                .unwrap_or(u64::MAX),
        }),
    }
}

fn max_payload_bytes(spec: &AppSpec) -> usize {
    usize::try_from(spec.limits.max_payload_bytes).expect("at most 64 MiB")
}

/// Whether instances copy their outputs to the agent. Without backup that is needed only where a
/// request can have several messages at once, to know when all of them are finished.
fn copies(spec: &AppSpec) -> bool {
    let fans_out =
        |grain: &crate::config::GrainSpec| grain.route == Route::Static && grain.next.len() > 1;
    spec.backup == Backup::Async || spec.grains.iter().any(fans_out)
}

fn workflow(spec: &AppSpec, epoch: u64) -> Workflow {
    let ms = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Workflow {
        app: spec.name.as_str().into(),
        grains: spec
            .grains
            .iter()
            .map(|grain| grain.name.as_str().into())
            .collect(),
        entry: spec.entry,
        backup: spec.backup == Backup::Async,
        copies: copies(spec),
        partitions: PARTITIONS,
        epoch,
        max_in_flight: spec.limits.max_in_flight,
        deadline_ms: ms(spec.limits.deadline),
        max_attempts: spec.limits.max_attempts,
        result_ttl_ms: ms(spec.limits.result_ttl),
    }
}

//! Another version of a running application: made and loaded beside the old one, then put into its
//! place.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sandpipe_sandbox::{Files, Isolation, SandboxSpec, clean_up_dead, create_or_adopt};
use tokio::sync::oneshot;

use super::{
    Application, Places, Source, bounds, copies, max_bytes_in_flight, max_payload_bytes,
    record_bytes, topology, workers, workflow,
};
use crate::bridge::{GrainState, LocalError, NotReplaced, Post, Replacement, SandboxSource};
use crate::config::AppSpec;

/// How long the new version's grains may take to load.
const LOAD: Duration = Duration::from_secs(30);

/// How long its processes may take to end.
const END: Duration = Duration::from_secs(3);

/// Why the running version goes on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpgradeError {
    /// The sandbox's shape.
    #[error("the application does not fit into a sandbox: {0}")]
    Topology(#[from] sandpipe::TopologyError),
    /// What a worker would be started with.
    #[error(transparent)]
    Worker(#[from] super::WorkerError),
    /// The new sandbox.
    #[error("no sandbox for the new version: {0}")]
    Sandbox(#[from] LocalError),
    /// A grain that does not load.
    #[error("grain {grain} of the new version does not load: {trouble}")]
    Load {
        /// The grain.
        grain: String,
        /// Its last words.
        trouble: String,
    },
    /// Its records are larger than what the global bus was opened for.
    #[error(
        "max_payload_bytes = {wanted} is more than the running version's global bus takes; \
         undeploy the application, then deploy it"
    )]
    Payload {
        /// Bytes.
        wanted: u64,
    },
    /// The old version.
    #[error(transparent)]
    NotReplaced(#[from] NotReplaced),
    /// The bus thread has ended.
    #[error("the application has ended meanwhile")]
    Ended,
}

impl Application {
    /// Replaces the running version. The new one is made in `places`, whose run directory must be
    /// another than the running one's; `commit` makes it the version that a next agent starts.
    /// Blocks while its grains load and for at most `drain` beyond.
    ///
    /// # Errors
    /// [`UpgradeError`]; the running version goes on then, and nothing is left of the other.
    pub fn replace(
        &mut self,
        spec: &AppSpec,
        places: &Places,
        drain: Duration,
        commit: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> Result<(), UpgradeError> {
        if record_bytes(spec) > self.record_bytes.max(super::RECORDS_ALWAYS_TAKEN) {
            let wanted = spec.limits.max_payload_bytes;
            return Err(UpgradeError::Payload { wanted });
        }
        let topology = topology(spec)?;
        let workers = workers::workers(spec, places, copies(spec))?;
        let mailbox = Arc::clone(&self.door.mailbox);
        let mut source = Source::new(spec, places, &topology, workers, mailbox);
        let local = match source.attach() {
            Ok(attached) => attached.local,
            Err(error) => {
                source.shut_down(END);
                return Err(error.into());
            }
        };
        if let Err(error) = wait_until_loaded(&source, spec.grains.len()) {
            drop(local);
            source.shut_down(END);
            return Err(error);
        }
        let (done, replaced) = oneshot::channel();
        self.door.mailbox.post(Post::Replace(Box::new(Replacement {
            workflow: workflow(spec, self.epoch),
            max_payload_bytes: max_payload_bytes(spec),
            bounds: bounds(spec, &topology),
            sandbox: Box::new(source),
            local,
            deadline: Instant::now() + drain,
            commit: Box::new(commit),
            done,
        })));
        let mut replaced = replaced.blocking_recv().map_err(|_| UpgradeError::Ended)?;
        replaced.unused.shut_down(END);
        replaced.outcome?;
        self.door.max_payload_bytes = max_payload_bytes(spec);
        self.door.max_bytes_in_flight = max_bytes_in_flight(spec);
        Ok(())
    }
}

/// Waits until every worker has loaded its grain.
fn wait_until_loaded(source: &Source, grains: usize) -> Result<(), UpgradeError> {
    let deadline = Instant::now() + LOAD;
    loop {
        let workers = source.workers();
        let loaded = workers.iter().filter(|worker| worker.takes_events());
        if loaded.count() == grains {
            return Ok(());
        }
        if let Some(worker) = workers.iter().find(|worker| worker.broken) {
            return Err(not_loaded(worker));
        }
        if Instant::now() >= deadline {
            let slow = workers.iter().find(|worker| !worker.takes_events());
            return Err(not_loaded(slow.unwrap_or(&GrainState::default())));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn not_loaded(worker: &GrainState) -> UpgradeError {
    let waited = || format!("it is not ready after {} s", LOAD.as_secs());
    UpgradeError::Load {
        grain: worker.grain.clone(),
        trouble: worker.trouble.clone().unwrap_or_else(waited),
    }
}

/// Ends a sandbox of `app` under this run directory, dead or alive, and removes what it leaves: an
/// agent that died during a replacement has left one of two. Blocks.
///
/// # Errors
/// What did not end or could not be removed.
pub fn end_sandbox(run: &Path, app: &str) -> Result<(), sandpipe_sandbox::SandboxError> {
    clean_up_dead(run)?;
    if !run.join(app).join("lock").exists() {
        return Ok(());
    }
    let spec = SandboxSpec {
        app: app.to_owned(),
        run_dir: run.to_path_buf(),
        topology: Vec::new(),
        workers: Vec::new(),
        isolation: Isolation::NONE,
        memory_limit_bytes: None,
        pids_limit: None,
        instances_limit: None,
        cpu_limit_millicores: None,
        files: Files::default(),
        io_uring: false,
    };
    // It lives: adopted, whatever its spec, then ended. Should it end just now, one of nothing
    // cannot be made, and the leftovers are removed all the same.
    match create_or_adopt(&spec) {
        Ok(handle) => handle.shutdown(END),
        Err(_) => clean_up_dead(run).map(drop),
    }
}

//! How a process becomes a grain worker.

use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::Duration;

use sandpipe::{Bus, FamilyIndex, Lease, Mapping, Participant, SlotIndex};

use crate::config::{ATTACH_FD, WorkerConfig};
use crate::event::{Context, Event, HandlerError, Output};
use crate::instance::log;
use crate::process;
use crate::runtime::{Function, Runtime};
use crate::worker::Worker;

/// Exit code of a worker whose handler could not be loaded.
pub const EXIT_LOAD: u8 = 3;

/// Exit code of a worker whose configuration and sandbox do not fit.
pub const EXIT_CONFIG: u8 = 2;

/// How long the guardian may take to answer.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs a Rust handler as a grain: what `main` of a grain's program returns.
///
/// Serves until the sandbox ends the worker. A panic of the handler is reported as its error; with
/// `panic = "abort"` it is a crash, and the event is tried again.
pub fn run<F>(handler: F) -> ExitCode
where
    F: Fn(&Event<'_>, &mut Context<'_>) -> Result<Output, HandlerError>,
{
    run_from_env(|_| Function(handler))
}

/// Runs a runtime with the configuration and the socket that the sandbox left in the environment.
pub fn run_from_env<R: Runtime>(runtime: impl FnOnce(&WorkerConfig) -> R) -> ExitCode {
    let started = WorkerConfig::from_env()
        .map_err(|error| error.to_string())
        .and_then(|config| {
            let socket = process::inherited(ATTACH_FD)
                .map_err(|error| format!("descriptor {ATTACH_FD}, the guardian's: {error}"))?;
            Ok((config, socket))
        });
    match started {
        Ok((config, socket)) => {
            let runtime = runtime(&config);
            run_worker(config, socket, runtime)
        }
        Err(error) => {
            eprintln!("sandpipe: {error}");
            ExitCode::from(EXIT_CONFIG)
        }
    }
}

/// Attaches over `socket`, loads the runtime and serves until SIGTERM or the guardian's end. Call
/// it on the main thread, once in a process; it installs handlers of SIGCHLD, SIGIO and SIGTERM.
pub fn run_worker<R: Runtime>(config: WorkerConfig, socket: OwnedFd, runtime: R) -> ExitCode {
    let family = config.family();
    let attached = Participant::attach(socket, family, ATTACH_TIMEOUT)
        .map_err(|error| error.to_string())
        .and_then(|(participant, bus)| {
            check_topology(&config, &bus)?;
            // The lease is held for this thread's life, whatever becomes of the value.
            let _ = Lease::hold(&bus, SlotIndex(0));
            bus.hold_slot(SlotIndex(0), std::process::id());
            Worker::new(config.clone(), participant, bus, runtime).map_err(|e| e.to_string())
        });
    let mut worker = match attached {
        Ok(worker) => worker,
        Err(error) => {
            log(&config, format_args!("{error}"));
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    if let Err(reason) = worker.load() {
        log(
            &config,
            format_args!("cannot load {}: {reason}", config.handler),
        );
        return ExitCode::from(EXIT_LOAD);
    }
    let code = worker.serve();
    // The line to the guardian is closed by the process's end alone: init kills who hangs up
    // before, and would take an orderly end for a crash.
    std::mem::forget(worker);
    code
}

/// The sandbox was made for this configuration: slots, and a lane to every queue it publishes to.
fn check_topology(config: &WorkerConfig, bus: &Bus<Mapping>) -> Result<(), String> {
    let spec = bus.topology().family(bus.family());
    if spec.slots != config.slots() {
        return Err(format!(
            "the sandbox has {} instance slots for it, its configuration needs {}",
            spec.slots,
            config.slots()
        ));
    }
    let next = config.next.iter().map(|next| FamilyIndex(next.family));
    for queue in next.chain([FamilyIndex::AGENT]) {
        let lane = spec.targets.iter().find(|target| target.queue == queue);
        let Some(lane) = lane else {
            return Err(format!("the sandbox gives it no lane to queue {}", queue.0));
        };
        if (lane.lane_slots as usize) < config.next.len() {
            let slots = lane.lane_slots;
            return Err(format!(
                "its lane to queue {} has {slots} slots, one commit needs {}",
                queue.0,
                config.next.len()
            ));
        }
    }
    Ok(())
}

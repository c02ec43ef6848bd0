//! What each grain worker is started with.

use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use sandpipe::wait::WAITER_VARIABLE;
use sandpipe_grain::{
    Backup as Copies, LOG_MARKS_VARIABLE, Mode as WorkerMode, NextGrain, Route as WorkerRoute,
    WORKER_VARIABLE, WorkerConfig,
};
use sandpipe_sandbox::{LogLimits, WorkerSpec};

use super::Places;
use crate::config::{AppSpec, GrainSpec, Mode, Route, Runtime};

/// Variables of the agent's environment that workers get too: nothing secret, and what programs
/// and interpreters need to start.
const INHERITED: [&str; 8] = [
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "PYTHONPATH",
    WAITER_VARIABLE,
];

/// What a grain may write to its log in the long run.
const LOG_BYTES_PER_S: u64 = 1 << 20;

/// Why a worker cannot be described.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// Where the grains' output would be kept.
    #[error("{}: {source}; make the data directory writable", path.display())]
    Logs {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The agent cannot find itself, which is the worker of `exec` grains.
    #[error("the agent's own program cannot be found: {0}; mount /proc")]
    OwnProgram(std::io::Error),
}

/// The workers in the order of the grains.
pub(super) fn workers(
    spec: &AppSpec,
    places: &Places,
    copies: bool,
) -> Result<Vec<WorkerSpec>, WorkerError> {
    if places.logs.is_some() {
        make_log_dir(places)?;
    }
    let own = std::env::current_exe().map_err(WorkerError::OwnProgram)?;
    let worker = |(index, grain): (usize, &GrainSpec)| {
        let config = config(spec, index, grain, copies);
        let mut env: Vec<(String, String)> = INHERITED
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)))
            .filter(|(name, _)| !grain.env.contains_key(name))
            .collect();
        env.extend(grain.env.clone());
        env.push((WORKER_VARIABLE.to_owned(), config.to_json()));
        if places.logs.is_some() {
            env.push((LOG_MARKS_VARIABLE.to_owned(), "1".to_owned()));
        }
        WorkerSpec {
            grain: grain.name.clone(),
            command: command(grain, &own),
            env,
            working_dir: Some(spec.directory.clone()),
            memory_limit_bytes: grain.memory_limit_bytes,
            stderr_log: places.logs.map(|_| places.log_file(&grain.name)),
            log_limits: places.logs.map(log_limits),
        }
    };
    Ok(spec.grains.iter().enumerate().map(worker).collect())
}

fn make_log_dir(places: &Places) -> Result<(), WorkerError> {
    let path = places.log_dir();
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&path)
        .map_err(|source| WorkerError::Logs { path, source })
}

fn log_limits(limits: crate::config::LogLimits) -> LogLimits {
    LogLimits {
        file_bytes: limits.file_bytes,
        files: limits.files,
        bytes_per_s: LOG_BYTES_PER_S,
    }
}

fn command(grain: &GrainSpec, own: &std::path::Path) -> Vec<String> {
    let text = |path: &PathBuf| path.to_string_lossy().into_owned();
    match &grain.runtime {
        Runtime::Rust { executable } => vec![text(executable)],
        Runtime::Python { interpreter, .. } => {
            vec![text(interpreter), "-m".to_owned(), "sandpipe".to_owned()]
        }
        Runtime::Exec { .. } => vec![own.to_string_lossy().into_owned(), "exec-worker".to_owned()],
    }
}

fn config(spec: &AppSpec, index: usize, grain: &GrainSpec, copies: bool) -> WorkerConfig {
    let family = |index: usize| u16::try_from(index + 1).expect("at most 31 grains");
    let (mode, spares) = match grain.mode {
        Mode::Fork { spares } => (WorkerMode::Fork, spares),
        Mode::Pool => (WorkerMode::Pool, 0),
    };
    let (handler, args) = match &grain.runtime {
        Runtime::Rust { executable } => (executable.to_string_lossy().into_owned(), Vec::new()),
        Runtime::Python { handler, .. } => (handler.clone(), Vec::new()),
        Runtime::Exec { executable, args } => {
            (executable.to_string_lossy().into_owned(), args.clone())
        }
    };
    let next = grain.next.iter().map(|&next| NextGrain {
        grain: spec.grains[next].name.clone(),
        family: family(next),
    });
    WorkerConfig {
        app: spec.name.clone(),
        grain: grain.name.clone(),
        family: family(index),
        mode,
        concurrency: grain.concurrency,
        spares,
        // One of them is each grain's own.
        shared_instances: spec.limits.instances.map(|limit| {
            let shared = limit.saturating_sub(spec.grains.len() as u64);
            u32::try_from(shared).unwrap_or(u32::MAX)
        }),
        time_limit_ms: u64::try_from(grain.time_limit.as_millis()).unwrap_or(u64::MAX),
        max_attempts: spec.limits.max_attempts,
        back_off: spec.limits.back_off,
        max_payload_bytes: spec.limits.max_payload_bytes,
        next: next.collect(),
        route: match grain.route {
            Route::Static => WorkerRoute::All,
            Route::ByOutput => WorkerRoute::ByOutput,
        },
        handler,
        args,
        backup: if copies { Copies::Async } else { Copies::None },
    }
}

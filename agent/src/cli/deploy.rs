//! `sandpipe deploy`, `undeploy`, `ps`: the applications of a running agent.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::bail;

use crate::application::{Places, run_dir};
use crate::bridge::{AppStatus, LimitState};
use crate::config::Network;
use crate::control::{AgentStatus, Answer, Question, ask, order};
use crate::host::DeploymentStatus;

/// Where the agent is.
#[derive(Debug, clap::Args)]
pub(super) struct Where {
    /// Where sockets and locks are
    #[arg(long, value_name = "DIR", env = "SANDPIPE_RUN_DIR")]
    run_dir: Option<PathBuf>,
}

impl Where {
    /// The agent's control socket.
    pub(super) fn socket(&self) -> PathBuf {
        Places::agent_socket(&run_dir(self.run_dir.as_deref()))
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  sandpipe deploy examples/hello/app.toml\n  \
    sandpipe deploy app.toml --drain 60\n\n\
    A new version of a deployed application takes over without losing an event: its grains load\n\
    beside the old ones, then requests wait while the old version finishes what it has open. If\n\
    the file is wrong, a grain does not load or the old version does not finish in time, the old\n\
    version goes on. Exit codes: 0 deployed, 1 not deployed, 2 the file is wrong."
)]
pub(super) struct DeployArgs {
    /// The application's app.toml
    app: PathBuf,
    /// How long the running version may take with what is open [default: the agent's drain_s]
    #[arg(long, value_name = "SECONDS")]
    drain: Option<u64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    agent: Where,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  sandpipe undeploy hello\n  sandpipe undeploy hello --purge\n\n\
    What is open is finished first. What is not finished in time is kept, and goes on when the\n\
    application is deployed again."
)]
pub(super) struct UndeployArgs {
    /// The application's name
    app: String,
    /// How long it may take with what is open [default: the agent's drain_s]
    #[arg(long, value_name = "SECONDS")]
    drain: Option<u64>,
    /// Remove its messages, answers and logs too
    #[arg(long)]
    purge: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    agent: Where,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  sandpipe ps\n  sandpipe ps --json\n\n\
    Exit code 1 if an application is not ready.")]
pub(super) struct PsArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    agent: Where,
}

pub(super) fn deploy(args: &DeployArgs) -> anyhow::Result<ExitCode> {
    let question = Question::Deploy {
        file: std::path::absolute(&args.app)?,
        drain_ms: args.drain.map(|s| s.saturating_mul(1000)),
    };
    match order(&args.agent.socket(), &question)? {
        Answer::Deployed(done) if args.json => println!("{}", serde_json::to_string(&done)?),
        Answer::Deployed(done) => println!(
            "{} version {} is deployed ({} ms)",
            done.app, done.version, done.took_ms
        ),
        other => return refused(other),
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn undeploy(args: &UndeployArgs) -> anyhow::Result<ExitCode> {
    let question = Question::Undeploy {
        app: args.app.clone(),
        drain_ms: args.drain.map(|s| s.saturating_mul(1000)),
        purge: args.purge,
    };
    match order(&args.agent.socket(), &question)? {
        Answer::Undeployed(done) if args.json => println!("{}", serde_json::to_string(&done)?),
        Answer::Undeployed(done) => {
            println!("{} is undeployed", done.app);
            if done.left > 0 {
                let kept = match &done.kept {
                    Some(kept) => format!("they are kept in {}", kept.display()),
                    None => "they were removed".into(),
                };
                println!("{} requests are not finished; {kept}", done.left);
            }
        }
        other => return refused(other),
    }
    Ok(ExitCode::SUCCESS)
}

/// What the agent did not do.
pub(super) fn refused(answer: Answer) -> anyhow::Result<ExitCode> {
    match answer {
        Answer::Refused { reason, wrong_file } => {
            eprintln!("sandpipe: {reason}");
            let code = if wrong_file {
                super::USAGE
            } else {
                super::FAILED
            };
            Ok(ExitCode::from(code))
        }
        other => bail!("the agent is of another version: {other:?}"),
    }
}

pub(super) fn ps(args: &PsArgs) -> anyhow::Result<ExitCode> {
    let agent = ask(&args.agent.socket(), Question::Status)?;
    let rows = rows(&agent);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        println!("{}", Row::HEAD);
        rows.iter().for_each(|row| println!("{row}"));
    }
    let ready = rows.iter().all(|row| row.not_ready.is_none());
    Ok(ExitCode::from(if ready { 0 } else { super::FAILED }))
}

/// One application in the list.
#[derive(Debug, serde::Serialize)]
struct Row {
    app: String,
    version: u64,
    ready: bool,
    not_ready: Option<String>,
    grains_running: usize,
    grains_unloaded: usize,
    grains: usize,
    /// Which network its processes have in fact; `None` while it has no sandbox.
    network: Option<Network>,
    open: usize,
    answered: u64,
    failed: u64,
    age_s: u64,
    file: PathBuf,
    limits: Vec<LimitState>,
}

impl Row {
    const HEAD: &str = "APPLICATION          VERSION  STATE      GRAINS   OPEN   ANSWERED     \
                        FAILED  AGE      FILE";
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = if self.ready { "ready" } else { "NOT READY" };
        let grains = format!("{}/{}", self.grains_running, self.grains);
        write!(
            f,
            "{:<20} {:>7}  {state:<9} {grains:>7} {:>6} {:>10} {:>10}  {:<8} {}",
            self.app,
            self.version,
            self.open,
            self.answered,
            self.failed,
            age(self.age_s),
            self.file.display()
        )?;
        if let Some(reason) = &self.not_ready {
            write!(f, "\n    {}", reason.trim().replace('\n', "\n    "))?;
        } else if self.grains_unloaded > 0 {
            let (unloaded, all) = (self.grains_unloaded, self.grains);
            write!(f, "\n    idle and unloaded: {unloaded} of {all}")?;
        }
        if self.network == Some(Network::Host) {
            write!(f, "\n    shares the host's network")?;
        }
        let mut hit = self.limits.iter().filter_map(LimitState::told);
        hit.try_for_each(|hit| write!(f, "\n    limit {hit}"))
    }
}

fn rows(agent: &AgentStatus) -> Vec<Row> {
    let row = |deployment: &DeploymentStatus| {
        let status = agent.apps.iter().find(|app| app.app == deployment.app);
        row(deployment, status)
    };
    agent.deployments.iter().map(row).collect()
}

fn row(deployment: &DeploymentStatus, status: Option<&AppStatus>) -> Row {
    let absent = AppStatus {
        not_ready: Some("it is being started or ended".into()),
        ..AppStatus::default()
    };
    let status = status.unwrap_or(&absent);
    let not_ready = deployment.trouble.clone().or(status.not_ready.clone());
    let count = |state: &str| {
        let grains = status.grains.iter();
        grains.filter(|grain| grain.state == state).count()
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Row {
        app: deployment.app.clone(),
        version: deployment.version,
        ready: not_ready.is_none(),
        not_ready,
        grains_running: count("running"),
        grains_unloaded: count("unloaded"),
        grains: status.grains.len(),
        network: status.network,
        open: status.in_flight,
        answered: status.counters.answered,
        failed: status.counters.failed,
        age_s: now
            .as_secs()
            .saturating_sub(deployment.since_unix_ms / 1000),
        file: deployment.file.clone(),
        limits: status.limits.clone(),
    }
}

/// Seconds, as people say them.
pub(super) fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

//! `sandpipe agent`: the long-running form, with zero or more applications.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::application::{default_data, run_dir};
use crate::config::{AgentSpec, Restrict};
use crate::control::{AgentStatus, Answer, Control, Question};
use crate::front_door::{self, FrontDoor};
use crate::host::{ChangeError, Host, Notifier};
use crate::open_files;
use crate::own_rights;
use crate::telemetry::Export;

/// After how long a silent bus thread is asked once more.
const SECOND_LOOK: Duration = Duration::from_secs(1);
/// Between two looks at what has ended by itself.
const WATCH: Duration = Duration::from_secs(2);

/// How long open connections may take at the end.
const CONNECTIONS: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  sandpipe agent\n  \
    sandpipe agent --config /etc/sandpipe/agent.toml\n\n\
    Then: sandpipe deploy app.toml, sandpipe ps, sandpipe logs -f APP, sandpipe top.\n\n\
    SIGHUP reads the configuration again: what can change is taken, what needs a restart is\n\
    named. SIGTERM and SIGINT finish what is open, say what is left, end the sandboxes; a second\n\
    one ends at once. Applications stay deployed: the next agent goes on with them. kill -9\n\
    leaves the sandboxes running; the next agent adopts them and loses nothing that was\n\
    acknowledged.")]
pub(super) struct Args {
    /// The configuration; without one every setting has its default
    #[arg(long, value_name = "AGENT.TOML", env = "SANDPIPE_CONFIG")]
    config: Option<PathBuf>,
    /// Address of the front door, in place of the configuration's
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// Where applications keep their data, in place of the configuration's
    #[arg(long, value_name = "DIR", env = "SANDPIPE_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Where sockets and locks are, in place of the configuration's
    #[arg(long, value_name = "DIR", env = "SANDPIPE_RUN_DIR")]
    run_dir: Option<PathBuf>,
    /// What the agent gives up itself, in place of the configuration's
    #[arg(long, value_enum, value_name = "HOW")]
    restrict: Option<Restrict>,
    /// Print one line of JSON when it serves
    #[arg(long)]
    json: bool,
}

impl Args {
    fn load(&self) -> anyhow::Result<AgentSpec> {
        let mut spec = match &self.config {
            Some(path) => AgentSpec::load(path)?,
            None => AgentSpec::parse("", Path::new("agent.toml"), Path::new("/"))?,
        };
        spec.listen = self.listen.unwrap_or(spec.listen);
        spec.data_dir = self.data_dir.clone().or(spec.data_dir);
        spec.run_dir = self.run_dir.clone().or(spec.run_dir);
        spec.own_rights.restrict = self.restrict.unwrap_or(spec.own_rights.restrict);
        Ok(spec)
    }
}

pub(super) fn agent(args: &Args) -> anyhow::Result<ExitCode> {
    super::log_to_stderr();
    let spec = args.load()?;
    open_files::reserve(OWN_DESCRIPTORS).context("the agent cannot start")?;
    let notifier = Notifier::from_env();
    let data = spec.data_dir.clone().unwrap_or_else(default_data);
    let data = std::path::absolute(&data).unwrap_or(data);
    let run = run_dir(spec.run_dir.as_deref());
    let listener = super::bind(spec.listen)?;
    let address = listener.local_addr().context("the front door's address")?;
    let control = Control::bind(&crate::application::Places::agent_socket(&run), "here")?;
    let rights = own_rights::Plan {
        wanted: spec.own_rights.clone(),
        run: run.clone(),
        data: data.clone(),
        kafka: spec.kafka.is_some(),
        spans: Export::is_wanted(spec.otlp.as_deref()),
    };
    rights.give_up()?;
    let (runtime, listener) = super::runtime(listener)?;
    sandpipe_sandbox::clean_up_dead(&run)?;
    let export = Export::begin(spec.otlp.as_deref())?;
    let host = Host::new(&spec, data, run, export.telemetry().clone());
    let host = Arc::new(host);
    let resumed = host.resume().context("the deployments cannot be read")?;
    let mut agent = Agent {
        args,
        rights,
        spec,
        host,
        notifier,
        address,
    };
    agent.deploy_configured();
    let served = runtime.block_on(agent.serve(listener, &control, resumed));
    export.end();
    served?;
    Ok(ExitCode::SUCCESS)
}

/// What the agent opens for itself at its start, roughly; libraries panic where they find none.
const OWN_DESCRIPTORS: usize = 24;

/// The running command.
struct Agent<'a> {
    args: &'a Args,
    rights: own_rights::Plan,
    spec: AgentSpec,
    host: Arc<Host>,
    notifier: Notifier,
    address: SocketAddr,
}

impl Agent<'_> {
    /// Deploys what the configuration lists and is not deployed yet.
    fn deploy_configured(&self) {
        for file in &self.spec.applications {
            let deployed = self.host.deployments();
            if deployed.iter().any(|known| known.file == *file) {
                continue;
            }
            // The manager's patience is for one deployment, not for all of them.
            self.notifier.alive();
            // A wrong file must not keep the others from running.
            if let Err(error) = self.host.deploy(file, None) {
                let error = open_files::with_remedy(error.to_string());
                tracing::error!("{}: not deployed: {error}", file.display());
            }
        }
    }

    async fn serve(
        &mut self,
        listener: tokio::net::TcpListener,
        control: &Control,
        resumed: usize,
    ) -> anyhow::Result<()> {
        let stop = Arc::new(Notify::new());
        answer_control(control, &self.host, self.address, &stop)?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let closing = Arc::new(Notify::new());
        let closed = Arc::clone(&closing);
        let door = Arc::clone(self.host.door());
        let server = tokio::spawn(async move {
            front_door::serve(listener, door, closed.notified()).await;
        });
        self.rights.bound_calls()?;
        self.announce(resumed)?;
        self.notifier.ready(&self.status_line());
        let watch = Watch::begin(&self.host).context("no thread can be made")?;
        let mut alive = tokio::time::interval(
            // Without a watchdog the answer is looked at all the same, to say it in the log.
            self.notifier.watchdog_interval().unwrap_or(WATCH * 5),
        );
        loop {
            tokio::select! {
                _ = interrupt.recv() => break,
                _ = terminate.recv() => break,
                () = stop.notified() => break,
                _ = hangup.recv() => self.reload().await,
                _ = alive.tick() => if answers(self.host.door()).await {
                    self.notifier.alive();
                },
            }
        }
        let signalled = Instant::now();
        tokio::spawn(async move {
            // Supervisors signal the process and then its group: that is one request to end.
            while signalled.elapsed() < super::ONE_REQUEST {
                tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            }
            std::process::exit(i32::from(super::FAILED));
        });
        self.notifier.stopping("finishing what is open");
        eprintln!("sandpipe: stopping: finishing what is open");
        closing.notify_one();
        let host = Arc::clone(&self.host);
        let stop = move || {
            watch.end();
            host.stop()
        };
        let left = tokio::task::spawn_blocking(stop).await?;
        for (app, left) in left.into_iter().filter(|(_, left)| *left > 0) {
            eprintln!("sandpipe: {app}: {left} requests are left for the next agent");
        }
        let _ = tokio::time::timeout(CONNECTIONS, server).await;
        Ok(())
    }

    /// Reads the configuration again. A wrong one changes nothing.
    async fn reload(&mut self) {
        self.notifier.reloading();
        match self.args.load() {
            Err(error) => tracing::error!("not reloaded: {error:#}"),
            Ok(new) => {
                for name in self.spec.fixed(&new) {
                    tracing::warn!("{name} has changed, which needs a restart; the old one stays");
                }
                self.host.set(&new);
                self.spec.drain = new.drain;
                self.spec.logs = new.logs;
                self.spec.applications = new.applications;
                self.spec.allow_host_network = new.allow_host_network;
                tokio::task::block_in_place(|| self.deploy_configured());
                tracing::info!(
                    "reloaded: drain_s, logs, applications and allow_host_network are as configured"
                );
            }
        }
        self.notifier.ready(&self.status_line());
    }

    fn status_line(&self) -> String {
        let deployed = self.host.deployments();
        let off = deployed.iter().filter(|known| known.trouble.is_some());
        let not_running = match off.count() {
            0 => String::new(),
            some => format!(", {some} of them not running"),
        };
        let (all, address) = (deployed.len(), self.address);
        format!("at http://{address}, applications: {all}{not_running}")
    }

    fn announce(&self, resumed: usize) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        if self.args.json {
            let address = self.address;
            let line = serde_json::json!({
                "url": format!("http://{address}"), "pid": std::process::id(),
                "resumed": resumed,
            });
            writeln!(out, "{line}")?;
        } else {
            writeln!(out, "the agent runs {}", self.status_line())?;
        }
        Ok(out.flush()?)
    }
}

/// Whether every bus thread answers: one that does not is asked twice, since an application that
/// is just ending or changing its version does not answer either.
async fn answers(door: &FrontDoor) -> bool {
    let before = silent(door).await;
    if before.is_empty() {
        return true;
    }
    tokio::time::sleep(SECOND_LOOK).await;
    let mut silent = silent(door).await;
    silent.retain(|app| before.contains(app));
    if !silent.is_empty() {
        tracing::error!("no answer from the bus threads of {}", silent.join(", "));
    }
    silent.is_empty()
}

/// The applications whose bus threads do not answer now.
async fn silent(door: &FrontDoor) -> Vec<String> {
    let status = door.status().await;
    let silent = status.into_iter().filter(|app| !app.answers);
    silent.map(|app| app.app).collect()
}

/// A thread that looks after what has ended by itself.
struct Watch {
    end: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl Watch {
    fn begin(host: &Arc<Host>) -> std::io::Result<Watch> {
        let (end, ended) = mpsc::channel();
        let host = Arc::clone(host);
        let look = move || {
            while ended.recv_timeout(WATCH) == Err(RecvTimeoutError::Timeout) {
                host.watch();
            }
        };
        let thread = std::thread::Builder::new().name("watch".into());
        let thread = thread.spawn(look)?;
        Ok(Watch { end, thread })
    }

    /// Starts nothing any more once it returns. Blocks while it looks.
    fn end(self) {
        drop(self.end);
        if self.thread.join().is_err() {
            tracing::error!("the thread that looks after what has ended has panicked");
        }
    }
}

fn answer_control(
    control: &Control,
    host: &Arc<Host>,
    address: SocketAddr,
    stop: &Arc<Notify>,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Handle::current();
    let host = Arc::clone(host);
    let handle = runtime.clone();
    let status = move |host: &Host| AgentStatus {
        pid: std::process::id(),
        url: format!("http://{address}"),
        address: address.to_string(),
        apps: runtime.block_on(host.door().status()),
        latencies: host.door().latencies(),
        deployments: host.deployments(),
    };
    let answer = move |question: &Question| {
        let ms = |ms: &Option<u64>| ms.map(Duration::from_millis);
        let changed = match question {
            Question::Status | Question::Shutdown => {
                return Answer::Status(Box::new(status(&host)));
            }
            Question::DeadLetters { .. }
            | Question::DeadLetter { .. }
            | Question::DeleteDeadLetter { .. }
            | Question::Redrive { .. } => {
                return super::bus::answer(&handle, host.door(), question);
            }
            Question::Deploy { file, drain_ms } => {
                host.deploy(file, ms(drain_ms)).map(Answer::Deployed)
            }
            Question::Undeploy {
                app,
                drain_ms,
                purge,
            } => host
                .undeploy(app, *purge, ms(drain_ms))
                .map(Answer::Undeployed),
        };
        changed.unwrap_or_else(|error| Answer::Refused {
            wrong_file: matches!(error, ChangeError::Config(_)),
            reason: open_files::with_remedy(error.to_string()),
        })
    };
    let stop = Arc::clone(stop);
    control
        .serve(answer, move || stop.notify_one())
        .context("the control socket")
}

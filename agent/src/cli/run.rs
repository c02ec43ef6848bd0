//! `sandpipe run`: agent, global bus and front door in one command.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::ValueEnum;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::application::{Application, BusChoice, Places};
use crate::config::{AppSpec, Network, OwnRights, Restrict};
use crate::control::{AgentStatus, Answer, Control, Question};
use crate::front_door::{self, FrontDoor};
use crate::own_rights;
use crate::telemetry::Export;

use super::bus;

/// How long grains may take to load before the URL is printed all the same.
const LOAD: Duration = Duration::from_secs(20);

/// How long open requests may take at the end.
const DRAIN: Duration = Duration::from_secs(10);

/// How long open connections may take at the end.
const CONNECTIONS: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  sandpipe run examples/hello/app.toml\n  \
    sandpipe run app.toml --listen 127.0.0.1:9000 --data-dir ./data\n  \
    sandpipe run app.toml --global-bus kafka --kafka-bootstrap 127.0.0.1:9092\n\n\
    SIGINT and SIGTERM finish what is open (at most 10 s), end the sandbox and clean up; a second\n\
    one ends at once. SIGHUP is ignored: app.toml is read once, run again to take a new one.\n\
    kill -9 leaves the sandbox running; the next `sandpipe run` adopts it and loses nothing that\n\
    was acknowledged.")]
pub(super) struct Args {
    /// The application's app.toml
    app: PathBuf,
    /// Address of the front door (port 0: any free one); anything but loopback is warned of
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// Where the embedded global bus keeps its log [default: ~/.local/state/sandpipe/APP]
    #[arg(long, value_name = "DIR", env = "SANDPIPE_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Where sockets and locks are [default: $XDG_RUNTIME_DIR/sandpipe or /run/sandpipe]
    #[arg(long, value_name = "DIR", env = "SANDPIPE_RUN_DIR")]
    run_dir: Option<PathBuf>,
    /// Where messages are backed up
    #[arg(long, value_enum, default_value = "embedded")]
    global_bus: Bus,
    /// Bootstrap servers of the Kafka to use
    #[arg(
        long,
        value_name = "HOST:PORT,…",
        env = "KAFKA_BOOTSTRAP",
        required_if_eq("global_bus", "kafka")
    )]
    kafka_bootstrap: Option<String>,
    /// Let the application have the host's network if its app.toml asks for it
    #[arg(long)]
    allow_host_network: bool,
    /// What this process gives up itself
    #[arg(long, value_enum, default_value = "auto", value_name = "HOW")]
    restrict: Restrict,
    /// Print one line of JSON when the application is ready
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Bus {
    /// A log in the data directory; needs no server
    Embedded,
    /// A real Apache Kafka
    Kafka,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    super::log_to_stderr();
    let spec = AppSpec::load(&args.app)?;
    anyhow::ensure!(
        spec.sandbox.network == Network::Loopback || args.allow_host_network,
        "{}: network = \"host\" needs your leave: pass --allow-host-network, or use \
         network = \"loopback\"",
        spec.name
    );
    let places = Places::new(
        &spec.name,
        args.data_dir.as_deref(),
        args.run_dir.as_deref(),
    );
    // The port first: it is the likeliest to be taken, and nothing has been started yet.
    let listener = super::bind(args.listen)?;
    let control = Control::bind(&Places::control_socket(&places.run, &spec.name), &spec.name)?;
    let bus = match (args.global_bus, &args.kafka_bootstrap) {
        (Bus::Kafka, Some(bootstrap)) => BusChoice::Kafka(bootstrap.clone()),
        _ => BusChoice::Embedded,
    };
    let wanted = OwnRights {
        restrict: args.restrict,
        read: None,
    };
    let rights = own_rights::Plan {
        wanted,
        run: places.run.clone(),
        data: places.data.clone(),
        kafka: matches!(bus, BusChoice::Kafka(_)),
        spans: Export::is_wanted(None),
    };
    rights.give_up()?;
    let (runtime, listener) = super::runtime(listener)?;
    let export = Export::begin(None)?;
    let telemetry = export.telemetry();
    let application = Application::start(&spec, &places, &bus, telemetry)?;
    let mut door = FrontDoor::new(vec![application.door.clone()]);
    door.telemetry = telemetry.clone();
    let served = runtime.block_on(serve(
        args,
        &spec,
        listener,
        &control,
        &application,
        door,
        &rights,
    ));
    application.stop(DRAIN);
    export.end();
    served
}

async fn serve(
    args: &Args,
    spec: &AppSpec,
    listener: tokio::net::TcpListener,
    control: &Control,
    application: &Application,
    door: FrontDoor,
    rights: &own_rights::Plan,
) -> anyhow::Result<ExitCode> {
    let address = listener
        .local_addr()
        .context("the front door has no address")?;
    let door = Arc::new(door);
    let stop = Arc::new(Notify::new());
    let stopped = Arc::new(Notify::new());
    answer_control(control, &door, address, &stop)?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    // Registered so that it does not end the process.
    let _hangup = signal(SignalKind::hangup())?;
    rights.bound_calls()?;
    let end = Arc::clone(&stopped);
    let served = Arc::clone(&door);
    let server = tokio::spawn(async move {
        front_door::serve(listener, served, end.notified()).await;
    });
    let ready = tokio::select! {
        ready = wait_until_ready(&door) => ready,
        () = stop.notified() => None,
        _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
        _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
    };
    announce(args, spec, address, ready)?;
    let mut ended = tokio::time::interval(Duration::from_millis(100));
    let code = loop {
        tokio::select! {
            _ = interrupt.recv() => break ExitCode::SUCCESS,
            _ = terminate.recv() => break ExitCode::SUCCESS,
            () = stop.notified() => break ExitCode::SUCCESS,
            _ = ended.tick() => if application.has_ended() {
                break ExitCode::from(super::FAILED);
            },
        }
    };
    tokio::spawn(async move {
        // Supervisors signal the process and then its group: that is one request to end, not two.
        let signalled = Instant::now();
        while signalled.elapsed() < super::ONE_REQUEST {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        }
        std::process::exit(i32::from(super::FAILED));
    });
    eprintln!("sandpipe: stopping: finishing what is open");
    stopped.notify_one();
    let _ = tokio::time::timeout(CONNECTIONS, server).await;
    Ok(code)
}

fn answer_control(
    control: &Control,
    door: &Arc<FrontDoor>,
    address: SocketAddr,
    stop: &Arc<Notify>,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Handle::current();
    let door = Arc::clone(door);
    let letters = (Arc::clone(&door), runtime.clone());
    let status = move || AgentStatus {
        pid: std::process::id(),
        url: format!("http://{address}"),
        address: address.to_string(),
        apps: runtime.block_on(door.status()),
        latencies: door.latencies(),
        deployments: Vec::new(),
    };
    let answer = move |question: &Question| match question {
        Question::Status | Question::Shutdown => Answer::Status(Box::new(status())),
        Question::DeadLetters { .. }
        | Question::DeadLetter { .. }
        | Question::DeleteDeadLetter { .. }
        | Question::Redrive { .. } => bus::answer(&letters.1, &letters.0, question),
        Question::Deploy { .. } | Question::Undeploy { .. } => Answer::Refused {
            reason: "this is a `sandpipe run` of one application; start `sandpipe agent`".into(),
            wrong_file: false,
        },
    };
    let stop = Arc::clone(stop);
    control
        .serve(answer, move || stop.notify_one())
        .context("the control socket")
}

/// Waits until every grain has loaded; why it has not, if it takes too long or cannot be.
async fn wait_until_ready(door: &FrontDoor) -> Option<String> {
    let deadline = Instant::now() + LOAD;
    loop {
        let status = door.status().await.into_iter().next()?;
        let broken = status.grains.iter().any(|grain| grain.broken);
        let loading = status.grains.is_empty() && status.attachments > 0;
        match status.not_ready {
            None if !loading => return None,
            Some(reason) if broken || Instant::now() > deadline => return Some(reason),
            _ => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

fn announce(
    args: &Args,
    spec: &AppSpec,
    address: SocketAddr,
    not_ready: Option<String>,
) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let url = format!("http://{address}/{}", spec.name);
    if args.json {
        let line = serde_json::json!({
            "app": spec.name, "url": url, "pid": std::process::id(), "not_ready": not_ready,
        });
        writeln!(out, "{line}")?;
        return Ok(out.flush()?);
    }
    if let Some(reason) = not_ready {
        writeln!(
            out,
            "{} is NOT ready; it is tried again. {reason}",
            spec.name
        )?;
    }
    writeln!(out, "{} is at {url}", spec.name)?;
    writeln!(out, "  sandpipe invoke {} --data hello", spec.name)?;
    writeln!(out, "  curl --data-binary hello {url}")?;
    Ok(out.flush()?)
}

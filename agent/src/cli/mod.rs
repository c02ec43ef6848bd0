//! The `sandpipe` command.

mod agent;
mod bus;
mod dead_letters;
mod deploy;
mod doctor;
mod invoke;
mod logs;
mod results;
mod run;
mod status;
mod top;
mod trace;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};

/// Exit code of a command that did not do what it should.
const FAILED: u8 = 1;
/// Exit code of a command that was called wrongly; clap uses the same.
const USAGE: u8 = 2;

/// Signals to end within this time of the first are the same request.
const ONE_REQUEST: Duration = Duration::from_millis(500);

#[derive(Debug, Parser)]
#[command(
    name = "sandpipe",
    version,
    about = "Serverless applications of small functions that talk through shared memory",
    after_help = "Examples:\n  sandpipe run examples/hello/app.toml\n  \
                  sandpipe invoke hello --data world\n  sandpipe doctor\n\n\
                  Exit codes: 0 ok, 1 failed, 2 wrong usage or wrong app.toml"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run an application: agent, global bus and front door in one command
    Run(run::Args),
    /// Run the long-lived agent of this host: applications are deployed while it runs
    Agent(agent::Args),
    /// Deploy an application on the running agent, or a new version of it
    Deploy(deploy::DeployArgs),
    /// End an application on the running agent
    Undeploy(deploy::UndeployArgs),
    /// List the applications of the running agent
    Ps(deploy::PsArgs),
    /// Print what grains wrote to standard output and error
    Logs(logs::Args),
    /// Send an event to a running application and print the answer
    Invoke(invoke::Args),
    /// Print the answer of a request that was made with `invoke --async`
    Results(results::Args),
    /// List, show or delete dead letters, or send them again
    #[command(subcommand)]
    Bus(bus::Command),
    /// Watch queues, grains, rates and times of a running agent
    Top(top::Args),
    /// Say how a running application is, or stop it
    Status(status::Args),
    /// Prove each thing that Sandpipe uses of this machine by using it
    Doctor(doctor::Args),
    /// Be the init of a sandbox (internal)
    #[command(hide = true)]
    SandboxInit,
    /// Keep the rights that an agent gives up (internal)
    #[command(hide = true)]
    SandboxLauncher,
    /// Be the worker of a grain that is an executable (internal)
    #[command(hide = true)]
    ExecWorker,
}

/// Runs the command; the process ends with what it returns.
#[must_use]
pub fn main() -> ExitCode {
    // Before anything else: init and workers are this program too, and are small.
    if sandpipe_sandbox::is_sandbox_init() {
        return sandpipe_sandbox::sandbox_init_main();
    }
    if sandpipe_sandbox::is_launcher() {
        return sandpipe_sandbox::launcher_main();
    }
    if std::env::args_os()
        .nth(1)
        .is_some_and(|arg| arg == "exec-worker")
    {
        return sandpipe_grain::exec_worker_main();
    }
    let result = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Agent(args) => agent::agent(&args),
        Command::Deploy(args) => deploy::deploy(&args),
        Command::Undeploy(args) => deploy::undeploy(&args),
        Command::Ps(args) => deploy::ps(&args),
        Command::Logs(args) => logs::logs(&args),
        Command::Invoke(args) => invoke::invoke(&args),
        Command::Results(args) => results::results(&args),
        Command::Bus(command) => bus::bus(&command),
        Command::Top(args) => top::top(&args),
        Command::Status(args) => status::status(&args),
        Command::Doctor(args) => Ok(doctor::doctor(&args)),
        Command::SandboxInit | Command::SandboxLauncher | Command::ExecWorker => {
            eprintln!("sandpipe: this is called by Sandpipe itself only");
            Ok(ExitCode::from(USAGE))
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!(
            "sandpipe: {}",
            crate::open_files::with_remedy(format!("{error:#}"))
        );
        let usage = error.downcast_ref::<crate::config::ConfigError>().is_some();
        ExitCode::from(if usage { USAGE } else { FAILED })
    })
}

/// Opens the front door's socket, without a thread: rights are given up before there are any.
fn bind(address: std::net::SocketAddr) -> anyhow::Result<std::net::TcpListener> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("the runtime cannot be made")?;
    let listener = runtime.block_on(crate::front_door::bind(address))?;
    Ok(listener.into_std()?)
}

/// The runtime of an agent, and its listener in it.
fn runtime(
    listener: std::net::TcpListener,
) -> anyhow::Result<(tokio::runtime::Runtime, tokio::net::TcpListener)> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("the runtime cannot be made")?;
    let entered = runtime.enter();
    let listener = tokio::net::TcpListener::from_std(listener)?;
    drop(entered);
    Ok((runtime, listener))
}

/// What the agent says goes to standard error; SANDPIPE_LOG chooses how much.
fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("SANDPIPE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr)
        .try_init();
}

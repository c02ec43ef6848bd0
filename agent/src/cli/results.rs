//! `sandpipe results`: the answer of a request that was made before.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::invoke::{address, print};
use crate::client;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  sandpipe invoke hello --data world --async\n  \
    sandpipe results 1f0c…\n  sandpipe results /results/1f0c… --wait 30\n\n\
    The answer goes to stdout. Exit codes: 0 it is there, 1 it is not or the workflow failed."
)]
pub(super) struct Args {
    /// What `invoke --async` printed, with or without /results/
    id: String,
    /// Wait so long for an answer that is not there yet
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    wait: u64,
    /// The application, if it is that of a `sandpipe run`
    #[arg(long)]
    app: Option<String>,
    /// The front door, if it is not the one that the control socket names
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Where sockets and locks are
    #[arg(long, value_name = "DIR", env = "SANDPIPE_RUN_DIR")]
    run_dir: Option<PathBuf>,
    /// Print one JSON object: status, headers, body
    #[arg(long)]
    json: bool,
}

pub(super) fn results(args: &Args) -> anyhow::Result<ExitCode> {
    // No application's name is empty: without one, the agent is asked.
    let app = args.app.as_deref().unwrap_or_default();
    let address = address(args.url.as_deref(), args.run_dir.as_deref(), app)?;
    let id = args.id.trim_start_matches("/results/");
    let path = format!("/results/{id}");
    let deadline = Instant::now() + Duration::from_secs(args.wait);
    let response = loop {
        let patience = Duration::from_secs(120);
        let response = client::request(address, "GET", &path, &[], b"", patience)?;
        if response.status != 202 || Instant::now() >= deadline {
            break response;
        }
        std::thread::sleep(PAUSE);
    };
    if response.status == 202 && !args.json {
        eprintln!("sandpipe: the answer is not there yet; --wait SECONDS waits for it");
        return Ok(ExitCode::from(super::FAILED));
    }
    print(args.json, false, &response)?;
    let is_there = (200..300).contains(&response.status) && response.status != 202;
    Ok(ExitCode::from(if is_there { 0 } else { super::FAILED }))
}

//! `sandpipe invoke`: one event to a running application.

use std::io::{Read, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};

use super::trace;
use crate::application::{Places, run_dir};
use crate::client::{self, Response};
use crate::control::{Question, ask};
use crate::front_door::TRACE_HEADER;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  sandpipe invoke hello --data world\n  \
    sandpipe invoke image-pipeline --data @photo.jpg > thumbnail.jpg\n  \
    echo world | sandpipe invoke hello --data @-\n  sandpipe invoke hello --data world --trace\n  \
    sandpipe invoke hello --data world --async\n\n\
    The answer goes to stdout, everything else to stderr.")]
pub(super) struct Args {
    /// The application's name
    app: String,
    /// The event's data: text, @file, or @- for stdin
    #[arg(long, default_value = "", value_name = "TEXT|@FILE")]
    data: String,
    /// The front door, if it is not the one that the control socket names
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Where sockets and locks are
    #[arg(long, value_name = "DIR", env = "SANDPIPE_RUN_DIR")]
    run_dir: Option<PathBuf>,
    /// Print when the event passed each step of its path, on stderr
    #[arg(long, conflicts_with = "asynchronous")]
    trace: bool,
    /// Return as soon as the event is durable; print where the answer will be
    #[arg(long = "async")]
    asynchronous: bool,
    /// A request with the same key as an earlier one gets that one's answer
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Seconds without a byte after which to give up
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    timeout: u64,
    /// Print one JSON object: status, headers, body, trace
    #[arg(long)]
    json: bool,
}

pub(super) fn invoke(args: &Args) -> anyhow::Result<ExitCode> {
    let data = data(&args.data)?;
    let address = address(args.url.as_deref(), args.run_dir.as_deref(), &args.app)?;
    let mut headers = Vec::new();
    if args.trace {
        headers.push((TRACE_HEADER, "1"));
    }
    if args.asynchronous {
        headers.push(("prefer", "respond-async"));
    }
    if let Some(key) = &args.idempotency_key {
        headers.push(("idempotency-key", key));
    }
    let path = format!("/{}", args.app);
    let patience = Duration::from_secs(args.timeout.max(1));
    let response = client::request(address, "POST", &path, &headers, &data, patience)
        .with_context(|| format!("http://{address}{path}: is the agent running?"))?;
    print(args.json, args.trace, &response)?;
    let ok = (200..300).contains(&response.status);
    Ok(ExitCode::from(if ok { 0 } else { super::FAILED }))
}

fn data(text: &str) -> anyhow::Result<Vec<u8>> {
    match text.strip_prefix('@') {
        None => Ok(text.as_bytes().to_vec()),
        Some("-") => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).context("stdin")?;
            Ok(bytes)
        }
        Some(file) => std::fs::read(file).with_context(|| format!("--data @{file}")),
    }
}

/// The front door of whoever runs `app`, unless a URL is given.
pub(super) fn address(
    url: Option<&str>,
    run: Option<&Path>,
    app: &str,
) -> anyhow::Result<SocketAddr> {
    let Some(url) = url else {
        let socket = Places::socket_for(&run_dir(run), app);
        let agent = ask(&socket, Question::Status)?;
        return agent.address.parse().context("the agent's address");
    };
    let Some(rest) = url.strip_prefix("http://") else {
        bail!("--url {url}: only http:// is spoken here");
    };
    let place = rest.split('/').next().unwrap_or_default();
    let place = if place.contains(':') {
        place.to_owned()
    } else {
        format!("{place}:80")
    };
    let mut found = place
        .to_socket_addrs()
        .with_context(|| format!("--url {url}"))?;
    found
        .next()
        .with_context(|| format!("--url {url}: no address"))
}

/// Prints an answer; `traced` says that its times were asked for.
pub(super) fn print(json: bool, traced: bool, response: &Response) -> anyhow::Result<()> {
    let times = response
        .header(TRACE_HEADER)
        .map(serde_json::from_str)
        .transpose()?;
    let mut out = std::io::stdout().lock();
    if json {
        let headers: serde_json::Map<String, serde_json::Value> = response
            .headers
            .iter()
            .filter(|(name, _)| name != TRACE_HEADER)
            .map(|(name, value)| (name.clone(), value.as_str().into()))
            .collect();
        let line = serde_json::json!({
            "status": response.status,
            "headers": headers,
            "body": response.text(),
            "trace": times,
        });
        writeln!(out, "{line}")?;
        return Ok(out.flush()?);
    }
    match response.status {
        202 => writeln!(out, "{}", response.header("location").unwrap_or_default())?,
        200..300 => out.write_all(&response.body)?,
        status => eprint!("sandpipe: HTTP {status}: {}", response.text()),
    }
    out.flush()?;
    if let Some(times) = times {
        eprint!("{}", trace::table(&times));
    } else if traced {
        eprintln!("sandpipe: the answer carries no times");
    }
    Ok(())
}

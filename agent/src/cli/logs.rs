//! `sandpipe logs`: what grains wrote to standard output and error.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;

use super::deploy::Where;
use crate::control::{Question, ask};
use crate::host::DeploymentStatus;

/// Between two looks at the files.
const FOLLOW: Duration = Duration::from_millis(100);

/// Between two looks at what is deployed.
const NEW_ONES: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  sandpipe logs\n  sandpipe logs -f hello\n  \
    sandpipe logs hello greet -n 1000\n  sandpipe logs hello --json\n\n\
    A line: time, application/grain, the event it belongs to (or -), text. Python grains and\n\
    programs (exec) say the event by themselves, Rust handlers with context.log(…)."
)]
pub(super) struct Args {
    /// Only this application
    app: Option<String>,
    /// Only this grain of it
    grain: Option<String>,
    /// Go on with what comes
    #[arg(short, long)]
    follow: bool,
    /// So many of the last lines
    #[arg(short = 'n', long, default_value_t = 200, value_name = "NUMBER")]
    lines: usize,
    /// Print a JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    agent: Where,
}

pub(super) fn logs(args: &Args) -> anyhow::Result<ExitCode> {
    let mut files = Files::default();
    files.find(&deployments(args)?, args)?;
    let mut last = files.read_old();
    last.sort_by_key(|line| line.unix_ms); // stable: a file's own order stays
    let skipped = last.len().saturating_sub(args.lines);
    print(args, &last[skipped..])?;
    if !args.follow {
        return Ok(ExitCode::SUCCESS);
    }
    let mut looked = Instant::now();
    loop {
        std::thread::sleep(FOLLOW);
        if looked.elapsed() >= NEW_ONES {
            looked = Instant::now();
            // An agent that is away for a moment ends nothing: its sandboxes go on writing.
            if let Ok(deployments) = deployments(args) {
                let _ = files.find(&deployments, args);
            }
        }
        let mut new = files.read_new();
        new.sort_by_key(|line| line.unix_ms);
        print(args, &new)?;
    }
}

fn deployments(args: &Args) -> anyhow::Result<Vec<DeploymentStatus>> {
    Ok(ask(&args.agent.socket(), Question::Status)?.deployments)
}

fn print(args: &Args, lines: &[Line]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for line in lines {
        let ms = i64::try_from(line.unix_ms).unwrap_or_default();
        let time = jiff::Timestamp::from_millisecond(ms).unwrap_or_default();
        let Line {
            app,
            grain,
            message,
            text,
            ..
        } = line;
        let written = if args.json {
            let event = (message != "-").then_some(message);
            let json = serde_json::json!({
                "time": format!("{time:.3}"), "app": app, "grain": grain, "event": event,
                "text": text,
            });
            writeln!(out, "{json}")
        } else {
            writeln!(out, "{time:.3} {app}/{grain} {message} {text}")
        };
        match written {
            // `sandpipe logs | head` has seen enough.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
            written => written?,
        }
    }
    Ok(out.flush()?)
}

/// One line of a grain's output.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    unix_ms: u64,
    app: String,
    grain: String,
    message: String,
    text: String,
}

/// The log of one grain: its current file, and how far it was read.
#[derive(Debug)]
struct Log {
    app: String,
    grain: String,
    path: PathBuf,
    current: Option<BufReader<File>>,
    /// The beginning of a line that is just being written.
    partial: Vec<u8>,
}

#[derive(Debug, Default)]
struct Files {
    logs: BTreeMap<PathBuf, Log>,
}

impl Files {
    /// Notes the logs that there are now.
    fn find(&mut self, deployments: &[DeploymentStatus], args: &Args) -> anyhow::Result<()> {
        let wanted = |name: &str| args.app.as_deref().is_none_or(|app| app == name);
        if let Some(app) = args.app.as_deref()
            && !deployments.iter().any(|known| known.app == app)
        {
            bail!("{app} is not deployed; sandpipe ps shows what is");
        }
        for known in deployments.iter().filter(|known| wanted(&known.app)) {
            let entries = std::fs::read_dir(&known.logs);
            for entry in entries.into_iter().flatten().flatten() {
                let path = entry.path();
                let name = entry.file_name().to_string_lossy().into_owned();
                let Some(grain) = name.strip_suffix(".log") else {
                    continue;
                };
                if args.grain.as_deref().is_none_or(|only| only == grain) {
                    self.logs.entry(path.clone()).or_insert_with(|| Log {
                        app: known.app.clone(),
                        grain: grain.to_owned(),
                        path,
                        current: None,
                        partial: Vec::new(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Everything that is kept.
    fn read_old(&mut self) -> Vec<Line> {
        self.logs.values_mut().flat_map(Log::read_old).collect()
    }

    /// What has come since.
    fn read_new(&mut self) -> Vec<Line> {
        self.logs.values_mut().flat_map(Log::read_new).collect()
    }
}

impl Log {
    fn read_old(&mut self) -> Vec<Line> {
        let rotated = |number: u32| PathBuf::from(format!("{}.{number}", self.path.display()));
        let oldest = (1..).take_while(|&number| rotated(number).exists()).last();
        let mut lines = Vec::new();
        for number in (1..=oldest.unwrap_or(0)).rev() {
            if let Ok(file) = File::open(rotated(number)) {
                let mut partial = Vec::new();
                self.read(&mut BufReader::new(file), &mut partial, &mut lines);
            }
        }
        lines.extend(self.read_new());
        lines
    }

    fn read_new(&mut self) -> Vec<Line> {
        let mut lines = Vec::new();
        let mut partial = std::mem::take(&mut self.partial);
        // At most one rotation happens between two looks, or what lies between is gone anyway.
        for _ in 0..2 {
            if let Some(mut file) = self.current.take() {
                self.read(&mut file, &mut partial, &mut lines);
                if is_still(&file, &self.path) {
                    self.current = Some(file);
                    break;
                }
                // Nothing is written to it any more; something may have been until just now.
                self.read(&mut file, &mut partial, &mut lines);
            }
            self.current = File::open(&self.path).ok().map(BufReader::new);
        }
        self.partial = partial;
        lines
    }

    fn read(&self, file: &mut impl BufRead, partial: &mut Vec<u8>, lines: &mut Vec<Line>) {
        while let Ok(1..) = file.read_until(b'\n', partial) {
            if !partial.ends_with(b"\n") {
                return; // the rest comes
            }
            lines.extend(self.parse(&partial[..partial.len() - 1]));
            partial.clear();
        }
    }

    fn parse(&self, line: &[u8]) -> Option<Line> {
        let line = String::from_utf8_lossy(line);
        let (unix_ms, rest) = line.split_once(' ')?;
        let (message, text) = rest.split_once(' ')?;
        Some(Line {
            unix_ms: unix_ms.parse().ok()?,
            app: self.app.clone(),
            grain: self.grain.clone(),
            message: message.to_owned(),
            text: text.to_owned(),
        })
    }
}

/// Whether the path leads to this file still.
fn is_still(file: &BufReader<File>, path: &Path) -> bool {
    let open = file.get_ref().metadata();
    let there = path.metadata();
    matches!((open, there), (Ok(open), Ok(there)) if open.ino() == there.ino())
}

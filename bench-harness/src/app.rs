//! A whole Sandpipe for one application: `sandpipe run` as a user starts it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::error::BenchError;
use crate::raw::terminate_with_parent;

/// How long the agent may take to end before it is killed.
const END_MAX: Duration = Duration::from_secs(15);

/// A running application; ended, with its sandbox, when it goes out of scope.
#[derive(Debug)]
pub struct App {
    agent: Child,
    /// `host:port` of the front door.
    pub address: String,
    /// Path of its requests.
    pub path: String,
    /// Run and data directories; removed last.
    _directory: tempfile::TempDir,
}

impl App {
    /// Starts the application `name` that `app_toml` describes (paths in it absolute) and waits
    /// until its grains have loaded.
    ///
    /// # Errors
    /// [`BenchError::Missing`] without the program `sandpipe` beside this one; else what the agent
    /// says.
    pub fn start(name: &str, app_toml: &str) -> Result<App, BenchError> {
        let os = |what: &str| {
            let what = what.to_owned();
            move |e| BenchError::os(what, e)
        };
        let directory = tempfile::tempdir().map_err(os("a directory for the application"))?;
        let place = |part: &str| directory.path().join(part);
        std::fs::write(place("app.toml"), app_toml).map_err(os("write app.toml"))?;
        let log = std::fs::File::create(place("log")).map_err(os("write a log"))?;
        let mut command = Command::new(program()?);
        command
            .arg("run")
            .arg(place("app.toml"))
            .args(["--listen", "127.0.0.1:0", "--json", "--data-dir"])
            .arg(place("data"))
            .arg("--run-dir")
            .arg(place("run"))
            .env("SANDPIPE_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log);
        terminate_with_parent(&mut command);
        let agent = command.spawn().map_err(os("start sandpipe"))?;
        let mut app = App {
            agent,
            address: String::new(),
            path: format!("/{name}"),
            _directory: directory,
        };
        app.address = app.ready(name)?;
        Ok(app)
    }

    /// The front door's address, from the line that says that the application is ready.
    fn ready(&mut self, name: &str) -> Result<String, BenchError> {
        let wrong = |detail: String| BenchError::peer(format!("sandpipe run {name}"), detail);
        let stdout = self.agent.stdout.take().expect("it is piped");
        let mut line = String::new();
        BufReader::new(stdout)
            .read_line(&mut line)
            .map_err(|e| BenchError::os("read from sandpipe", e))?;
        let said: serde_json::Value = serde_json::from_str(&line).map_err(|_| {
            wrong(format!(
                "ended: {}",
                last_line(&self._directory.path().join("log"))
            ))
        })?;
        if let Some(reason) = said["not_ready"].as_str() {
            return Err(wrong(format!("is not ready: {reason}")));
        }
        said["url"]
            .as_str()
            .and_then(|url| url.strip_prefix("http://")?.split('/').next())
            .map(str::to_owned)
            .ok_or_else(|| wrong(format!("gave no URL: {line}")))
    }
}

impl App {
    /// Memory of the agent that is there, in bytes; 0 if /proc cannot be read.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.agent.id()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or(0) << 10
    }
}

impl Drop for App {
    fn drop(&mut self) {
        end(&mut self.agent);
    }
}

/// Ends an agent, with its sandboxes; kills it if that takes too long.
pub(crate) fn end(agent: &mut Child) {
    let pid = i32::try_from(agent.id()).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        let _ = kill_process(pid, Signal::TERM);
    }
    let deadline = Instant::now() + END_MAX;
    while Instant::now() < deadline {
        if !matches!(agent.try_wait(), Ok(None)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = agent.kill();
    let _ = agent.wait();
}

/// The program `sandpipe`, which lies beside this one.
pub(crate) fn program() -> Result<PathBuf, BenchError> {
    let mine = std::env::current_exe().map_err(|e| BenchError::os("find this program", e))?;
    let program = mine.with_file_name("sandpipe");
    if program.is_file() {
        return Ok(program);
    }
    Err(BenchError::missing(
        "a whole Sandpipe",
        format!("there is no {}", program.display()),
        "build it: cargo build --release -p sandpipe-agent",
    ))
}

pub(crate) fn last_line(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().last().unwrap_or("it said nothing").to_owned()
}

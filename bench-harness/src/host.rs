//! A long-running agent with several applications: `sandpipe agent`, killed and started again.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::app::{end, last_line, program};
use crate::clock::now_ns;
use crate::error::BenchError;
use crate::http::Connection;
use crate::raw::terminate_with_parent;

/// How long an agent may take until all its applications take requests.
const READY_MAX: Duration = Duration::from_secs(60);
/// Pause between two looks at whether it is ready.
const LOOK: Duration = Duration::from_micros(500);

/// An agent in a directory of its own. When it goes out of scope the agent and its sandboxes end;
/// if the harness is killed while no agent lives ([`Host::kill`] until [`Host::start`]) they stay.
#[derive(Debug)]
pub struct Host {
    agent: Option<Child>,
    /// `host:port` of the front door.
    pub address: String,
    directory: tempfile::TempDir,
}

impl Host {
    /// Starts an agent without applications. Blocks until it answers.
    ///
    /// # Errors
    /// [`BenchError::Missing`] without the program `sandpipe` beside this one; else what the agent
    /// says.
    pub fn new() -> Result<Host, BenchError> {
        let directory =
            tempfile::tempdir().map_err(|e| BenchError::os("a directory for the agent", e))?;
        let mut host = Host {
            agent: None,
            address: String::new(),
            directory,
        };
        host.start()?;
        Ok(host)
    }

    fn place(&self, part: &str) -> PathBuf {
        self.directory.path().join(part)
    }

    /// Starts an agent, which takes over what the killed one has left, and waits until every
    /// application takes requests.
    ///
    /// # Errors
    /// What the agent says, or that it is not ready for a minute.
    pub fn start(&mut self) -> Result<(), BenchError> {
        let log = std::fs::File::create(self.place("log"));
        let mut command = Command::new(program()?);
        command
            .args(["agent", "--listen", "127.0.0.1:0", "--json", "--data-dir"])
            .arg(self.place("data"))
            .arg("--run-dir")
            .arg(self.place("run"))
            .env("SANDPIPE_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log.map_err(|e| BenchError::os("write a log", e))?);
        terminate_with_parent(&mut command);
        let mut agent = command
            .spawn()
            .map_err(|e| BenchError::os("start sandpipe", e))?;
        let stdout = agent.stdout.take().expect("it is piped");
        self.agent = Some(agent);
        let mut line = String::new();
        BufReader::new(stdout)
            .read_line(&mut line)
            .map_err(|e| BenchError::os("read from sandpipe", e))?;
        let said: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        let url = said["url"].as_str().and_then(|u| u.strip_prefix("http://"));
        let Some(address) = url.and_then(|url| url.split('/').next()) else {
            let ended = format!("ended: {}", last_line(&self.place("log")));
            return Err(BenchError::peer("sandpipe agent", ended));
        };
        self.address = address.to_owned();
        self.wait_until_ready()
    }

    fn wait_until_ready(&self) -> Result<(), BenchError> {
        let end = now_ns() + u64::try_from(READY_MAX.as_nanos()).unwrap_or(u64::MAX);
        let mut connection = Connection::open(&self.address)?;
        while connection.get("/readyz")?.status != 200 {
            if now_ns() > end {
                let detail = format!("not ready after {READY_MAX:?}");
                return Err(BenchError::peer("sandpipe agent", detail));
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Deploys the application that `app_toml` describes (paths in it absolute). Blocks until its
    /// grains have loaded.
    ///
    /// # Errors
    /// What `sandpipe deploy` says.
    pub fn deploy(&self, name: &str, app_toml: &str) -> Result<(), BenchError> {
        let directory = self.place(name);
        let file = directory.join("app.toml");
        std::fs::create_dir_all(&directory)
            .and_then(|()| std::fs::write(&file, app_toml))
            .map_err(|e| BenchError::os("write app.toml", e))?;
        let output = Command::new(program()?)
            .arg("deploy")
            .arg(file)
            .env("SANDPIPE_RUN_DIR", self.place("run"))
            .output()
            .map_err(|e| BenchError::os("start sandpipe", e))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(BenchError::peer("sandpipe deploy", said))
    }

    /// SIGKILL to the agent, which is reaped; its sandboxes live on.
    ///
    /// # Errors
    /// The system's.
    pub fn kill(&mut self) -> Result<(), BenchError> {
        let Some(mut agent) = self.agent.take() else {
            return Ok(());
        };
        agent
            .kill()
            .and_then(|()| agent.wait())
            .map_err(|e| BenchError::os("kill the agent", e))?;
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Only an agent ends the sandboxes.
        if self.agent.is_none() {
            let _ = self.start();
        }
        if let Some(agent) = &mut self.agent {
            end(agent);
        }
    }
}

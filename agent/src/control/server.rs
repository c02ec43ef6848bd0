//! The agent's side.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{AgentStatus, Question, ask};

/// How long one who has connected may take to ask.
const PATIENCE: Duration = Duration::from_secs(2);

/// A bound control socket; it is removed when this is dropped.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    listener: UnixListener,
}

/// Why the control socket cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// An agent of this application lives.
    #[error(
        "an agent already runs {app} (pid {pid}, {url}); stop it, or start this one with another \
         --run-dir and --data-dir"
    )]
    Running {
        /// The application.
        app: String,
        /// The other agent.
        pid: u32,
        /// Its front door.
        url: String,
    },
    /// The directory or the socket.
    #[error("{}: {source}; choose a directory of your own with --run-dir", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Control {
    /// Takes the socket's path. A socket that a dead agent left is replaced.
    ///
    /// # Errors
    /// [`ListenError::Running`] names the living agent.
    pub fn bind(path: &Path, app: &str) -> Result<Control, ListenError> {
        let io = |source| ListenError::Io {
            path: path.to_path_buf(),
            source,
        };
        if let Some(directory) = path.parent() {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(io)?;
        }
        if let Ok(other) = ask(path, Question::Status) {
            return Err(ListenError::Running {
                app: app.to_owned(),
                pid: other.pid,
                url: other.url,
            });
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(io)?;
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(path, mode).map_err(io)?;
        Ok(Control {
            path: path.to_path_buf(),
            listener,
        })
    }

    /// Answers on a thread of its own, for as long as the process lives. `status` may block for a
    /// while; `stop` must not.
    pub fn serve(
        &self,
        status: impl Fn() -> AgentStatus + Send + 'static,
        stop: impl Fn() + Send + 'static,
    ) -> std::io::Result<()> {
        let listener = self.listener.try_clone()?;
        let answer = move || {
            for stream in listener.incoming().flatten() {
                // One who hangs up or talks nonsense gets nothing.
                let _ = serve_one(&stream, &status, &stop);
            }
        };
        std::thread::Builder::new()
            .name("control".into())
            .spawn(answer)?;
        Ok(())
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn serve_one(
    stream: &UnixStream,
    status: &dyn Fn() -> AgentStatus,
    stop: &dyn Fn(),
) -> std::io::Result<()> {
    let peer = rustix::net::sockopt::socket_peercred(stream)?;
    if peer.uid != rustix::process::geteuid() {
        tracing::warn!(
            uid = peer.uid.as_raw(),
            "another user at the control socket: refused"
        );
        return Ok(());
    }
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(std::io::Read::take(stream, 1024)).read_line(&mut line)?;
    let question: Question = serde_json::from_str(&line)?;
    let mut answer = serde_json::to_string(&status())?;
    answer.push('\n');
    let mut writer = stream;
    writer.write_all(answer.as_bytes())?;
    if question == Question::Shutdown {
        stop();
    }
    Ok(())
}

//! The side of who asks.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{AgentStatus, Question};

/// How long an agent may take: longer than its slowest application.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// Nobody is there.
    #[error("no agent answers at {}; start it with `sandpipe run app.toml`", path.display())]
    Nobody {
        /// The socket.
        path: PathBuf,
    },
    /// It belongs to another user, or the answer broke off.
    #[error("{}: {source}", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Asks the agent at a control socket. Blocks for at most some seconds.
///
/// # Errors
/// [`ControlError`].
pub fn ask(path: &Path, question: Question) -> Result<AgentStatus, ControlError> {
    let nobody = |_| ControlError::Nobody {
        path: path.to_path_buf(),
    };
    let mut stream = UnixStream::connect(path).map_err(nobody)?;
    let talk = || -> std::io::Result<AgentStatus> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        writeln!(stream, "{}", serde_json::to_string(&question)?)?;
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    };
    let mut talk = talk;
    talk().map_err(|source| ControlError::Broken {
        path: path.to_path_buf(),
        source,
    })
}

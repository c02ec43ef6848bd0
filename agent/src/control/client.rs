//! The side of who asks.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{AgentStatus, Answer, Question};

/// How long an agent may take: longer than its slowest application.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// Nobody is there.
    #[error(
        "no agent answers at {}; start it with `sandpipe run app.toml` or `sandpipe agent`",
        path.display()
    )]
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
    /// The agent does not do it.
    #[error("{reason}")]
    Refused {
        /// Why, and what to do.
        reason: String,
        /// The caller's file is wrong.
        wrong_file: bool,
    },
}

impl ControlError {
    /// Whether somebody holds the socket open: who is dead neither refuses nor keeps one waiting.
    pub(super) fn is_of_a_living(&self) -> bool {
        use std::io::ErrorKind::{TimedOut, WouldBlock};
        match self {
            ControlError::Refused { .. } => true,
            ControlError::Broken { source, .. } => matches!(source.kind(), TimedOut | WouldBlock),
            ControlError::Nobody { .. } => false,
        }
    }
}

/// Asks the agent at a control socket how it is, or tells it to end. Blocks for at most some
/// seconds.
///
/// # Errors
/// [`ControlError`].
pub fn ask(path: &Path, question: Question) -> Result<AgentStatus, ControlError> {
    match order(path, &question)? {
        Answer::Status(status) => Ok(*status),
        Answer::Refused { reason, wrong_file } => Err(ControlError::Refused { reason, wrong_file }),
        other => Err(ControlError::Broken {
            path: path.to_path_buf(),
            source: std::io::Error::other(format!("an answer to something else: {other:?}")),
        }),
    }
}

/// Asks the agent at a control socket anything. Blocks for as long as the agent takes, which for a
/// deployment is until its grains have loaded; if the caller dies, the agent goes on.
///
/// # Errors
/// [`ControlError`]; a refusal is an answer here.
pub fn order(path: &Path, question: &Question) -> Result<Answer, ControlError> {
    let nobody = |_| ControlError::Nobody {
        path: path.to_path_buf(),
    };
    let mut stream = UnixStream::connect(path).map_err(nobody)?;
    let patience = match question {
        Question::Status | Question::Shutdown => Some(PATIENCE),
        // The agent has time limits of its own.
        _ => None,
    };
    let talk = || -> std::io::Result<Answer> {
        stream.set_read_timeout(patience)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let asked = writeln!(stream, "{}", serde_json::to_string(question)?);
        // Who refuses to listen may have said why before it hung up.
        let mut line = String::new();
        let read = BufReader::new(&stream).read_line(&mut line);
        if line.is_empty() {
            asked?;
            read?;
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(&line)?)
    };
    let mut talk = talk;
    talk().map_err(|source| ControlError::Broken {
        path: path.to_path_buf(),
        source,
    })
}

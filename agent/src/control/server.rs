//! The agent's side.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::lock::Lock;
use super::{Answer, ControlError, Question, ask};

/// How long one who has connected may take to ask.
const PATIENCE: Duration = Duration::from_secs(2);

/// A pause when the system gives no descriptor.
const PAUSE: Duration = Duration::from_millis(50);

/// Connections that are served at once; who comes beyond is refused.
const TALKING_MAX: usize = 16;

/// The longest question: a path, escaped.
const QUESTION_BYTES_MAX: u64 = 32 << 10;

/// A bound control socket; it is removed when this is dropped.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    listener: UnixListener,
    /// Dropped after the socket's path is gone.
    _lock: Lock,
}

/// Why the control socket cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// An agent of this application, or of this run directory, lives.
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
    /// An agent lives there that has no time to say who it is.
    #[error(
        "an agent already runs {app}, but is too busy to answer: {reason}; try again, or start \
         this one with another --run-dir and --data-dir"
    )]
    Busy {
        /// The application.
        app: String,
        /// What it said, or did not.
        reason: ControlError,
    },
    /// Another one has begun to start, and does not answer yet.
    #[error(
        "another agent is about to run {app} ({} is locked); try again, or start this one with \
         another --run-dir and --data-dir", path.display()
    )]
    Starting {
        /// The application.
        app: String,
        /// Its lock.
        path: PathBuf,
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
    /// [`ListenError::Running`] names the living agent; [`ListenError::Busy`] if it does not
    /// answer. Blocks for at most some seconds.
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
        // Before the question: of two that start at once and find a dead one's socket, only one may
        // replace it.
        let lock = Lock::take(path).map_err(io)?;
        match ask(path, Question::Status) {
            Ok(other) => {
                return Err(ListenError::Running {
                    app: app.to_owned(),
                    pid: other.pid,
                    url: other.url,
                });
            }
            Err(reason) if reason.is_of_a_living() => {
                let app = app.to_owned();
                return Err(ListenError::Busy { app, reason });
            }
            Err(_) => {}
        }
        let Some(lock) = lock else {
            return Err(ListenError::Starting {
                app: app.to_owned(),
                path: path.with_extension("lock"),
            });
        };
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
            _lock: lock,
        })
    }

    /// Answers on threads of its own, for as long as the process lives. `answer` may block for as
    /// long as it takes; `stop`, called after the answer to [`Question::Shutdown`], must not.
    ///
    /// # Errors
    /// No thread can be made.
    pub fn serve(
        &self,
        answer: impl Fn(&Question) -> Answer + Send + Sync + 'static,
        stop: impl Fn() + Send + Sync + 'static,
    ) -> std::io::Result<()> {
        let listener = self.listener.try_clone()?;
        let desk = Arc::new(Desk {
            answer: Box::new(answer),
            stop: Box::new(stop),
            talking: AtomicUsize::new(0),
        });
        let accept = move || {
            for stream in listener.incoming() {
                match stream {
                    // One who hangs up or talks nonsense gets nothing.
                    Ok(stream) => Desk::begin(&desk, stream),
                    Err(error) => {
                        // Without a descriptor, asking again at once is in vain; who knocks waits.
                        tracing::warn!(%error, "nobody is let in at the control socket");
                        std::thread::sleep(PAUSE);
                    }
                }
            }
        };
        std::thread::Builder::new()
            .name("control".into())
            .spawn(accept)?;
        Ok(())
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Who answers.
struct Desk {
    answer: Box<dyn Fn(&Question) -> Answer + Send + Sync>,
    stop: Box<dyn Fn() + Send + Sync>,
    /// Connections that are being served.
    talking: AtomicUsize,
}

impl Desk {
    /// Serves a connection on a thread of its own: a deployment takes seconds, and nobody who asks
    /// how things are waits for it.
    fn begin(desk: &Arc<Desk>, stream: UnixStream) {
        let seat = Seat::take(desk);
        if desk.talking.load(Ordering::SeqCst) > TALKING_MAX {
            return refuse(&stream, "too many ask at once; try again".into());
        }
        let stream = Arc::new(stream);
        let own = Arc::clone(&stream);
        let talk = move || {
            let _ = serve_one(&own, &seat.0);
        };
        let thread = std::thread::Builder::new().name("control-talk".into());
        if let Err(error) = thread.spawn(talk) {
            let reason = format!(
                "no thread can be made to answer: {error}; look at the agent's limit of processes"
            );
            refuse(&stream, reason);
        }
    }
}

/// One connection's place; given back also by a panic.
struct Seat(Arc<Desk>);

impl Seat {
    fn take(desk: &Arc<Desk>) -> Seat {
        desk.talking.fetch_add(1, Ordering::SeqCst);
        Seat(Arc::clone(desk))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.talking.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Says why a question is not even read. Does not wait for the asker.
fn refuse(stream: &UnixStream, reason: String) {
    tracing::warn!(reason, "refused at the control socket");
    let wrong_file = false;
    if let Ok(mut answer) = serde_json::to_string(&Answer::Refused { reason, wrong_file }) {
        answer.push('\n');
        let mut stream = stream;
        let _ = stream.set_nonblocking(true);
        let _ = stream.write_all(answer.as_bytes());
    }
}

fn serve_one(stream: &UnixStream, desk: &Desk) -> std::io::Result<()> {
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
    BufReader::new(std::io::Read::take(stream, QUESTION_BYTES_MAX)).read_line(&mut line)?;
    let question: Question = serde_json::from_str(&line)?;
    let mut answer = serde_json::to_string(&(desk.answer)(&question))?;
    answer.push('\n');
    let mut writer = stream;
    writer.write_all(answer.as_bytes())?;
    if question == Question::Shutdown {
        (desk.stop)();
    }
    Ok(())
}

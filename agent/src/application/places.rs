//! Where an agent keeps things.

use std::path::{Path, PathBuf};

use crate::config::LogLimits;

/// The directories of one agent, absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// What must survive: the log of the embedded global bus, the epoch.
    pub data: PathBuf,
    /// What lives only while processes do: sockets and locks. Shared by the agents of a user.
    pub run: PathBuf,
    /// How much of its grains' output is kept in the data directory; `None` = it goes to the
    /// agent's standard error.
    pub logs: Option<LogLimits>,
}

impl Places {
    /// The given directories, or the user's own.
    #[must_use]
    pub fn new(app: &str, data: Option<&Path>, run: Option<&Path>) -> Places {
        let data = data.map_or_else(|| default_data().join(app), Path::to_path_buf);
        Places {
            data: absolute(&data),
            run: run_dir(run),
            logs: None,
        }
    }

    /// Where its grains' output is kept.
    #[must_use]
    pub fn log_dir(&self) -> PathBuf {
        self.data.join("logs")
    }

    /// The file of one grain's output.
    #[must_use]
    pub fn log_file(&self, grain: &str) -> PathBuf {
        self.log_dir().join(format!("{grain}.log"))
    }

    /// Two versions of an application have their sandboxes on two sides of the run directory while
    /// one takes over from the other. No application's name begins with a digit.
    #[must_use]
    pub fn on_side(&self, side: u8) -> Places {
        let run = match side {
            0 => self.run.clone(),
            other => self.run.join(other.to_string()),
        };
        Places {
            run,
            ..self.clone()
        }
    }

    /// The control socket of a `sandpipe run` of `app`.
    #[must_use]
    pub fn control_socket(run: &Path, app: &str) -> PathBuf {
        run.join(format!("agent-{app}.sock"))
    }

    /// The control socket of a `sandpipe agent`.
    #[must_use]
    pub fn agent_socket(run: &Path) -> PathBuf {
        run.join("agent.sock")
    }

    /// The socket of whoever runs `app`: its own `sandpipe run`, else the agent.
    #[must_use]
    pub fn socket_for(run: &Path, app: &str) -> PathBuf {
        let own = Places::control_socket(run, app);
        if own.exists() {
            own
        } else {
            Places::agent_socket(run)
        }
    }
}

/// The given run directory, or the user's own.
#[must_use]
pub fn run_dir(given: Option<&Path>) -> PathBuf {
    if let Some(given) = given {
        return absolute(given);
    }
    if let Some(runtime) = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        return PathBuf::from(runtime).join("sandpipe");
    }
    let uid = rustix::process::getuid().as_raw();
    if uid == 0 {
        return PathBuf::from("/run/sandpipe");
    }
    std::env::temp_dir().join(format!("sandpipe-{uid}"))
}

/// Where applications keep their data if no directory is given.
#[must_use]
pub fn default_data() -> PathBuf {
    if let Some(state) = std::env::var_os("XDG_STATE_HOME").filter(|dir| !dir.is_empty()) {
        return PathBuf::from(state).join("sandpipe");
    }
    match std::env::var_os("HOME").filter(|dir| !dir.is_empty()) {
        Some(home) => PathBuf::from(home).join(".local/state/sandpipe"),
        None => PathBuf::from("/var/lib/sandpipe"),
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

//! Where an agent keeps things.

use std::path::{Path, PathBuf};

/// The directories of one agent, absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// What must survive: the log of the embedded global bus, the epoch.
    pub data: PathBuf,
    /// What lives only while processes do: sockets and locks. Shared by the agents of a user.
    pub run: PathBuf,
}

impl Places {
    /// The given directories, or the user's own.
    #[must_use]
    pub fn new(app: &str, data: Option<&Path>, run: Option<&Path>) -> Places {
        let data = data.map_or_else(|| default_data().join(app), Path::to_path_buf);
        Places {
            data: absolute(&data),
            run: run_dir(run),
        }
    }

    /// The control socket of the agent that runs `app`.
    #[must_use]
    pub fn control_socket(run: &Path, app: &str) -> PathBuf {
        run.join(format!("agent-{app}.sock"))
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

fn default_data() -> PathBuf {
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

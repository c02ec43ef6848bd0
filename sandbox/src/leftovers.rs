use std::fs;
use std::io;
use std::path::Path;

use crate::cgroup;
use crate::run_dir::{AppDir, Locked};
use crate::{SandboxError, launcher, spec};

/// Removes what sandboxes leave when everything was killed: directories, sockets, cgroups, and
/// processes where no pid namespace took them along. Living sandboxes are not touched.
///
/// Returns the applications whose leftovers were removed. Blocks until killed processes are gone
/// (at most about 10 s each). If the caller is killed inside, the next call goes on.
///
/// # Errors
/// What could not be read or removed; a run directory that does not exist is none.
pub fn clean_up_dead(run_dir: &Path) -> Result<Vec<String>, SandboxError> {
    let entries = match fs::read_dir(run_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(SandboxError::run_dir("list", run_dir))?,
    };
    let mut removed = Vec::new();
    for entry in entries {
        let entry = entry.map_err(SandboxError::run_dir("list", run_dir))?;
        let Ok(app) = entry.file_name().into_string() else {
            continue;
        };
        // RUN may hold other things of the agent's: a sandbox's directory has a lock in it.
        if spec::check_app_name(&app).is_err() || !entry.path().join("lock").is_file() {
            continue;
        }
        if clean_up(&AppDir::open(entry.path())?)? {
            removed.push(app);
        }
    }
    Ok(removed)
}

/// Removes one application's leftovers; `false` if it is alive.
pub(crate) fn clean_up(app_dir: &AppDir) -> Result<bool, SandboxError> {
    match launcher::own() {
        Some(launcher) => launcher.clean_up(&app_dir.path),
        None => clean_up_here(app_dir),
    }
}

/// The same with the rights of this very process.
pub(crate) fn clean_up_here(app_dir: &AppDir) -> Result<bool, SandboxError> {
    let Locked::Free(lock) = app_dir.try_lock()? else {
        return Ok(false);
    };
    cgroup::remove_recorded(app_dir)?;
    app_dir.remove()?;
    drop(lock);
    Ok(true)
}

//! The launcher's own side. The agent may have been taken over: what it sends is copied, checked,
//! then used, and it gets nothing but confined sandboxes in its own run directory.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use super::told::Told;
use super::{Reply, Request, SOCKET, reap};
use crate::create::{self, Made};
use crate::run_dir::{AppDir, Locked};
use crate::{Isolation, SandboxError, SandboxSpec, leftovers, sys, wire};

/// The longest spec: some thousand times what a large application has.
const SPEC_BYTES_MAX: u64 = 16 << 20;

/// Is the launcher of the agent that started it, until that ends; `main` calls it before anything
/// else if [`is_launcher`](super::is_launcher). Started by hand it says so and fails.
#[must_use]
pub fn launcher_main() -> ExitCode {
    let run_dir = std::env::args_os().nth(2).map(PathBuf::from);
    let (Some(run_dir), Some(socket)) = (run_dir, sys::inherited(SOCKET)) else {
        eprintln!("sandbox launcher: only an agent starts it");
        return ExitCode::FAILURE;
    };
    let run_dir = Arc::new(run_dir);
    loop {
        match wire::receive(socket.as_fd()) {
            Ok(Some((bytes, fds))) => take(&run_dir, &bytes, fds),
            // The agent is gone; what it had asked for last is its successor's to find.
            Ok(None) => return ExitCode::SUCCESS,
            // What was cut short is closed, which its asker sees.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
            Err(error) => {
                eprintln!("sandbox launcher: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
}

/// Has a request done by a thread of its own: one slow sandbox holds up no other.
fn take(run_dir: &Arc<PathBuf>, bytes: &[u8], fds: Vec<OwnedFd>) {
    let mut fds = fds.into_iter();
    let (Ok(request), Some(answer)) = (serde_json::from_slice(bytes), fds.next()) else {
        return;
    };
    let spec = fds.next();
    let Ok(for_refusal) = answer.try_clone() else {
        return;
    };
    let run_dir = Arc::clone(run_dir);
    let work = move || match request {
        Request::Make => make(&run_dir, answer, spec),
        Request::CleanUp { path } => {
            let reply = clean_up(&run_dir, &path).map(|removed| Reply::CleanedUp { removed });
            send(&answer, reply, None);
        }
    };
    if let Err(error) = std::thread::Builder::new().spawn(work) {
        let source = io::Error::other(format!("no thread can be made in it: {error}"));
        send(&for_refusal, Err(SandboxError::Launcher { source }), None);
    }
}

fn make(run_dir: &Path, answer: OwnedFd, spec: Option<OwnedFd>) {
    let made = read_spec(spec).and_then(|spec| {
        spec.validate()?;
        check_below(run_dir, &spec.run_dir)?;
        let app_dir = AppDir::create(&spec.run_dir, &spec.app)?;
        if is_whole(&spec) {
            return create::make(&app_dir, &spec);
        }
        // One that lives may be adopted, whatever it is.
        match app_dir.try_lock()? {
            Locked::Free(_) => Err(not_whole()),
            Locked::Busy => Ok(Made::Busy),
            Locked::Replaced => Ok(Made::Replaced),
        }
    });
    match made {
        Ok(Made::Init(init)) => {
            send(&answer, Ok(Reply::Made), Some(&init));
            drop(answer);
            // Who started it is its parent, and nobody else can reap it.
            reap(&init);
        }
        Ok(Made::Busy) => send(&answer, Ok(Reply::Busy), None),
        Ok(Made::Replaced) => send(&answer, Ok(Reply::Replaced), None),
        Err(error) => send(&answer, Err(error), None),
    }
}

fn clean_up(run_dir: &Path, path: &Path) -> Result<bool, SandboxError> {
    check_below(run_dir, path)?;
    leftovers::clean_up_here(&AppDir::open(path.to_path_buf())?)
}

/// If nobody reads the answer any more, the agent is dead.
fn send(answer: &OwnedFd, reply: Result<Reply, SandboxError>, init: Option<&OwnedFd>) {
    let reply = reply.unwrap_or_else(|error| Reply::Failed {
        error: Told::from(error),
    });
    let init: Vec<_> = init.into_iter().map(AsFd::as_fd).collect();
    let _ = wire::send_json(answer, &reply, &init);
}

fn read_spec(memory: Option<OwnedFd>) -> Result<SandboxSpec, SandboxError> {
    let invalid = |reason: String| SandboxError::InvalidSpec { reason };
    let memory = memory.ok_or_else(|| invalid("no spec came with the request".into()))?;
    let unread = |error: io::Error| invalid(format!("the spec cannot be read: {error}"));
    let mut memory = File::from(memory);
    // The agent has just written it, and left its position at the end.
    memory.rewind().map_err(unread)?;
    let mut bytes = Vec::new();
    let read = memory.take(SPEC_BYTES_MAX).read_to_end(&mut bytes);
    read.map_err(unread)?;
    serde_json::from_slice(&bytes).map_err(|error| invalid(format!("the spec: {error}")))
}

/// A sandbox that is none would be a way to run anything with the rights of this process.
fn is_whole(spec: &SandboxSpec) -> bool {
    let whole = Isolation {
        // The operator may give an application the host's.
        network: spec.isolation.network,
        ..Isolation::default()
    };
    spec.isolation == whole
}

fn not_whole() -> SandboxError {
    SandboxError::InvalidSpec {
        reason: "a launcher makes only whole sandboxes, but for their network".into(),
    }
}

fn check_below(run_dir: &Path, path: &Path) -> Result<(), SandboxError> {
    let goes_up = path
        .components()
        .any(|part| matches!(part, Component::ParentDir));
    if path.starts_with(run_dir) && !goes_up {
        return Ok(());
    }
    Err(SandboxError::InvalidSpec {
        reason: format!(
            "{} is not below {}, where this launcher works",
            path.display(),
            run_dir.display()
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launcher_works_below_its_run_directory_only() {
        let run = Path::new("/run/sandpipe");
        for good in ["/run/sandpipe", "/run/sandpipe/1", "/run/sandpipe/1/app"] {
            assert!(check_below(run, Path::new(good)).is_ok(), "{good}");
        }
        for bad in ["/run", "/run/sandpipe2", "/run/sandpipe/../other", "/etc"] {
            let refused = check_below(run, Path::new(bad)).unwrap_err().to_string();
            assert!(refused.contains("where this launcher works"), "{refused}");
        }
    }
}

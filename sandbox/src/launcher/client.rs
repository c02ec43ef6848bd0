//! The agent's side.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::{Reply, Request, pair};
use crate::create::Made;
use crate::{SandboxError, SandboxSpec, wire};

/// How long an answer may take. The launcher's own patience is shorter: 10 s for each of what dies,
/// starts and is removed.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// A running launcher; it ends when this process does.
#[derive(Debug)]
pub(crate) struct Launcher {
    socket: OwnedFd,
    pidfd: OwnedFd,
}

impl Launcher {
    pub(super) const fn new(socket: OwnedFd, pidfd: OwnedFd) -> Launcher {
        Launcher { socket, pidfd }
    }

    pub(super) const fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// See [`crate::create::make`].
    pub(crate) fn make(&self, spec: &SandboxSpec) -> Result<Made, SandboxError> {
        let spec = in_memory(spec).map_err(not_asked)?;
        let (reply, fds) = self.ask(&Request::Make, &[spec.as_fd()])?;
        Ok(match reply {
            Reply::Made => {
                let init = fds.into_iter().next();
                Made::Init(init.ok_or_else(|| not_asked(io::ErrorKind::InvalidData.into()))?)
            }
            Reply::Busy => Made::Busy,
            Reply::Replaced => Made::Replaced,
            other => return Err(unexpected(other)),
        })
    }

    /// See [`crate::leftovers::clean_up`].
    pub(crate) fn clean_up(&self, path: &Path) -> Result<bool, SandboxError> {
        let path = path.to_path_buf();
        match self.ask(&Request::CleanUp { path }, &[])?.0 {
            Reply::CleanedUp { removed } => Ok(removed),
            other => Err(unexpected(other)),
        }
    }

    /// Each question brings a socket of its own for its answer, so that many can wait at once.
    fn ask(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), SandboxError> {
        let (answer, its) = pair().map_err(not_asked)?;
        set_socket_timeout(&answer, Timeout::Recv, Some(ANSWER_TIMEOUT))
            .map_err(|error| not_asked(error.into()))?;
        let fds = [&[its.as_fd()], fds].concat();
        wire::send_json(&self.socket, request, &fds).map_err(gone_or)?;
        drop(its);
        let received = wire::receive(answer.as_fd()).map_err(gone_or)?;
        let (bytes, fds) = received.ok_or(SandboxError::LauncherGone)?;
        let reply = serde_json::from_slice(&bytes).map_err(|error| not_asked(error.into()))?;
        Ok((reply, fds))
    }
}

fn gone_or(error: io::Error) -> SandboxError {
    match error.kind() {
        io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionRefused => SandboxError::LauncherGone,
        _ => not_asked(error),
    }
}

fn not_asked(source: io::Error) -> SandboxError {
    SandboxError::Launcher { source }
}

fn unexpected(reply: Reply) -> SandboxError {
    match reply {
        Reply::Failed { error } => error.into(),
        other => not_asked(io::Error::other(format!("it answered {other:?}"))),
    }
}

/// A spec may be longer than a packet.
fn in_memory(spec: &SandboxSpec) -> io::Result<File> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::memfd_create(c"sandpipe-spec", flags)?);
    file.write_all(&serde_json::to_vec(spec)?)?;
    Ok(file)
}

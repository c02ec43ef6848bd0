use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::process::{
    PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};

use crate::create::wait_readable;
use crate::line::Line;
use crate::run_dir::AppDir;
use crate::wire::{Reply, Request};
use crate::{
    KernelLimit, SandboxError, SandboxSpec, SandboxStatus, WorkerActivity, boot, leftovers, sys,
};

/// How long init may take to answer a request.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
/// How much longer than its workers' time limit init may take to end.
const END_GRACE: Duration = Duration::from_secs(10);

/// From the hang-up of a dying init's sockets until the last process of its pid namespace is gone:
/// the kernel takes milliseconds, more where workers have much memory.
const DYING: Duration = Duration::from_secs(2);

/// An agent's hold on a living sandbox.
///
/// Dropping it, or dying, leaves the sandbox running for the next agent. When a newer agent adopts
/// the sandbox, this handle is fenced: its attach socket hangs up and its requests fail.
#[derive(Debug)]
pub struct SandboxHandle {
    /// Whether the sandbox was already there.
    pub adopted: bool,
    /// Whether the sandbox was made with the spec given now. If not, shut it down and create it
    /// again to have the new one.
    pub same_spec: bool,
    /// How many agents have owned this sandbox, this one included; newer ones have greater numbers.
    pub epoch: u64,
    app: String,
    app_dir: AppDir,
    control: Mutex<Line>,
    attach_socket: Option<OwnedFd>,
    init_pidfd: OwnedFd,
}

impl SandboxHandle {
    /// Connects and becomes the owner. An init that was just `made` is known to nobody else: if it
    /// cannot be owned it is ended.
    pub(crate) fn claim(
        app_dir: AppDir,
        spec: &SandboxSpec,
        made: Option<OwnedFd>,
    ) -> Result<SandboxHandle, SandboxError> {
        let app = spec.app.clone();
        let adopted = made.is_none();
        let fenced = |source: io::Error| SandboxError::Fenced {
            app: app.clone(),
            source,
        };
        let own = || -> Result<_, SandboxError> {
            let control = app_dir.connect().map_err(fenced)?;
            check_peer(&control).map_err(fenced)?;
            // Before it is claimed: see there.
            let found = match &made {
                Some(_) => None,
                None => Some(peer_process(&control).map_err(fenced)?),
            };
            set_socket_timeout(&control, Timeout::Recv, Some(REPLY_TIMEOUT))
                .map_err(|error| fenced(error.into()))?;
            let stderr = io::stderr();
            let mut control = Line::new(control);
            let (reply, fds) = ask(&app, &mut control, &Request::Claim, &[stderr.as_fd()])?;
            match reply {
                Reply::Claimed { epoch, spec_hash } => Ok((control, found, fds, epoch, spec_hash)),
                other => Err(unexpected(&app, &other)),
            }
        };
        let (control, found, fds, epoch, spec_hash) = match own() {
            Ok(owned) => owned,
            Err(error) => {
                if let Some(init) = &made {
                    end_unowned(&app_dir, init);
                }
                return Err(error);
            }
        };
        Ok(SandboxHandle {
            adopted,
            same_spec: spec_hash == boot::spec_hash(spec),
            epoch,
            app_dir,
            control: Mutex::new(control),
            attach_socket: fds.into_iter().next(),
            init_pidfd: made.or(found).expect("it was made or found"),
            app,
        })
    }

    /// The socket over which the agent attaches to the data plane as family 0; once.
    pub fn take_attach_socket(&mut self) -> Option<OwnedFd> {
        self.attach_socket.take()
    }

    /// Readable once init, and with it every process of its pid namespace, is gone.
    #[must_use]
    pub fn init_pidfd(&self) -> BorrowedFd<'_> {
        self.init_pidfd.as_fd()
    }

    /// Whether the sandbox has ended, or is just ending: its sockets hang up before the last of its
    /// processes is gone. Blocks until that is so; for two seconds if it lives on, as another
    /// agent's for example.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        wait_readable(&self.init_pidfd, DYING)
    }

    /// Asks init for its state. Blocks for less than a millisecond, at most 10 s.
    ///
    /// # Errors
    /// [`SandboxError::Fenced`] if init is gone or a newer agent owns the sandbox.
    pub fn status(&self) -> Result<SandboxStatus, SandboxError> {
        let (reply, pidfds) = self.ask(&Request::Status)?;
        let Reply::Status(mut status) = reply else {
            return Err(unexpected(&self.app, &reply));
        };
        // Init knows its workers by their inner numbers; a pidfd tells ours.
        let with_process = status
            .workers
            .iter_mut()
            .filter(|worker| worker.pid.is_some());
        let mut pidfds = pidfds.iter();
        for worker in with_process {
            worker.pid = pidfds.next().and_then(pid_here);
        }
        Ok(status)
    }

    /// Ends the processes of worker `worker` (its index in the spec) and does not start it again:
    /// it wrote what no honest worker writes. Blocks for less than a millisecond, at most 10 s.
    ///
    /// # Errors
    /// [`SandboxError::Fenced`] if init is gone or a newer agent owns the sandbox.
    pub fn quarantine(&self, worker: usize, reason: &str) -> Result<(), SandboxError> {
        let reason = reason.to_owned();
        match self.ask(&Request::Quarantine { worker, reason })? {
            (Reply::Quarantined, _) => Ok(()),
            (reply, _) => Err(unexpected(&self.app, &reply)),
        }
    }

    /// Asks init what each worker has to do, in the spec's order. Blocks for less than a
    /// millisecond, at most 10 s.
    ///
    /// # Errors
    /// [`SandboxError::Fenced`] if init is gone or a newer agent owns the sandbox.
    pub fn activity(&self) -> Result<Vec<WorkerActivity>, SandboxError> {
        match self.ask(&Request::Activity)? {
            (Reply::Activity { workers }, _) => Ok(workers),
            (reply, _) => Err(unexpected(&self.app, &reply)),
        }
    }

    /// Asks init how the kernel's limits stand; those that cannot be read are left out. Blocks for
    /// less than a millisecond, at most 10 s.
    ///
    /// # Errors
    /// [`SandboxError::Fenced`] if init is gone or a newer agent owns the sandbox,
    /// [`SandboxError::Protocol`] if it is of a version that does not know.
    pub fn limits(&self) -> Result<Vec<KernelLimit>, SandboxError> {
        match self.ask(&Request::Limits)? {
            (Reply::Limits { limits }, _) => Ok(limits),
            (reply, _) => Err(unexpected(&self.app, &reply)),
        }
    }

    /// Has worker `worker` (its index in the spec) end, if it runs and is idle, until a message
    /// comes for it: init then starts it, whether an agent lives or not. Blocks for less than a
    /// millisecond, at most 10 s; the worker may take longer.
    ///
    /// # Errors
    /// [`SandboxError::Fenced`] if init is gone or a newer agent owns the sandbox.
    pub fn unload(&self, worker: usize) -> Result<(), SandboxError> {
        self.note(&Request::Unload { worker })
    }

    /// Has worker `worker` started if it is unloaded, before a message comes. Blocks as
    /// [`SandboxHandle::unload`].
    ///
    /// # Errors
    /// [`SandboxError::Fenced`] if init is gone or a newer agent owns the sandbox.
    pub fn load(&self, worker: usize) -> Result<(), SandboxError> {
        self.note(&Request::Load { worker })
    }

    fn note(&self, request: &Request) -> Result<(), SandboxError> {
        match self.ask(request)? {
            (Reply::Noted, _) => Ok(()),
            (reply, _) => Err(unexpected(&self.app, &reply)),
        }
    }

    /// Ends the sandbox: SIGTERM to the workers, SIGKILL to all once `timeout` has passed, then
    /// removes its directory and its cgroups. Blocks until that is done (at most `timeout` + 20 s).
    /// If the caller is killed inside, the sandbox ends all the same and the next
    /// [`clean_up_dead`](crate::clean_up_dead) or [`create_or_adopt`](crate::create_or_adopt)
    /// removes the rest.
    ///
    /// # Errors
    /// [`SandboxError::Fenced`] if a newer agent owns the sandbox (it goes on),
    /// [`SandboxError::StillAlive`] if it does not even end by SIGKILL.
    pub fn shutdown(&self, timeout: Duration) -> Result<(), SandboxError> {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        match self.ask(&Request::Shutdown { timeout_ms }) {
            Ok((Reply::ShuttingDown, _)) => {}
            Ok((reply, _)) => return Err(unexpected(&self.app, &reply)),
            // Already gone: only the leftovers remain to be removed.
            Err(_) if self.has_ended() => {}
            Err(error) => return Err(error),
        }
        let patience = timeout.saturating_add(END_GRACE);
        if !wait_readable(&self.init_pidfd, patience) {
            let _ = pidfd_send_signal(&self.init_pidfd, Signal::KILL);
            if !wait_readable(&self.init_pidfd, END_GRACE) {
                let waited_ms = (patience + END_GRACE).as_millis() as u64;
                return Err(SandboxError::StillAlive {
                    app: self.app.clone(),
                    waited_ms,
                });
            }
        }
        self.reap();
        leftovers::clean_up(&self.app_dir)?;
        Ok(())
    }

    fn ask(&self, request: &Request) -> Result<(Reply, Vec<OwnedFd>), SandboxError> {
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        ask(&self.app, &mut control, request, &[])
    }

    /// Takes init's exit status if it has ended and is our child, so that no zombie stays.
    fn reap(&self) {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let _ = waitid(WaitId::PidFd(self.init_pidfd.as_fd()), options);
    }
}

impl Drop for SandboxHandle {
    fn drop(&mut self) {
        self.reap();
    }
}

/// Ends an init without asking it, and removes what it leaves. Blocks until it is gone, at most
/// 10 s. Without a descriptor for the removal it is done by the next who cleans up.
fn end_unowned(app_dir: &AppDir, init: &OwnedFd) {
    let _ = pidfd_send_signal(init, Signal::KILL);
    if wait_readable(init, END_GRACE) {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let _ = waitid(WaitId::PidFd(init.as_fd()), options);
        let _ = leftovers::clean_up(app_dir);
    }
}

fn ask(
    app: &str,
    control: &mut Line,
    request: &Request,
    fds: &[BorrowedFd<'_>],
) -> Result<(Reply, Vec<OwnedFd>), SandboxError> {
    let fenced = |source| SandboxError::Fenced {
        app: app.into(),
        source,
    };
    let (bytes, fds) = control.ask(request, fds).map_err(fenced)?;
    match serde_json::from_slice(&bytes) {
        Ok(reply) => Ok((reply, fds)),
        Err(_) => Err(SandboxError::Protocol {
            app: app.into(),
            answer: String::from_utf8_lossy(&bytes).chars().take(200).collect(),
        }),
    }
}

fn unexpected(app: &str, reply: &Reply) -> SandboxError {
    let answer = match reply {
        Reply::Refused { reason } => reason.clone(),
        other => format!("{other:?}").chars().take(200).collect(),
    };
    SandboxError::Protocol {
        app: app.into(),
        answer,
    }
}

/// Only an init of our own user is spoken to.
fn check_peer(control: &OwnedFd) -> io::Result<()> {
    let peer = sys::peer_uid(control.as_fd())?;
    if peer == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "the socket belongs to uid {peer}"
    )))
}

fn peer_process(control: &OwnedFd) -> io::Result<OwnedFd> {
    // Before Linux 6.5 the number must do: init cannot be reaped while we are connected to it,
    // or else the claim that follows fails.
    sys::peer_pidfd(control.as_fd()).or_else(|_| {
        Ok(pidfd_open(
            socket_peercred(control)?.pid,
            PidfdFlags::empty(),
        )?)
    })
}

/// The number in this process's pid namespace of the process behind a pidfd.
fn pid_here(pidfd: &OwnedFd) -> Option<u32> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("Pid:"))?;
    line.trim().parse().ok().filter(|pid| *pid > 0)
}

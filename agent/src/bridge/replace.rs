//! A new version of an application takes the place of the old one, and no event is lost: requests
//! that come meanwhile wait, what is open is finished by the old version, then the new sandbox is
//! taken in one step. Dead at any point of it, the agent leaves one of the two versions deployed,
//! and everything that was accepted on the global bus.

use std::io;
use std::time::Instant;

use tokio::sync::oneshot;

use super::bounds::Bounds;
use super::local::{LocalBus, SandboxSource};
use super::mailbox::Waiter;
use super::thread::BusThread;
use crate::core::{Reply, Submit, Workflow};

/// Another version of the application, whose workers have loaded their grains.
pub struct Replacement {
    /// What the core has to know of it.
    pub workflow: Workflow,
    /// The largest request.
    pub max_payload_bytes: usize,
    /// What it may cost the agent.
    pub bounds: Bounds,
    /// Where its sandbox comes from.
    pub sandbox: Box<dyn SandboxSource>,
    /// That sandbox's local bus.
    pub local: Box<dyn LocalBus>,
    /// How long the old version may take with what is open.
    pub deadline: Instant,
    /// Makes it the version that a next agent starts. Called once, when nothing is open.
    pub commit: Box<dyn FnOnce() -> io::Result<()> + Send>,
    /// Told at the end.
    pub done: oneshot::Sender<Replaced>,
}

impl std::fmt::Debug for Replacement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replacement")
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

/// What became of a replacement.
pub struct Replaced {
    /// Whether the new version serves now.
    pub outcome: Result<(), NotReplaced>,
    /// The sandbox that does not serve, to be shut down.
    pub unused: Box<dyn SandboxSource>,
}

/// Why the old version goes on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotReplaced {
    /// It has not finished in time.
    #[error(
        "the running version still has {open} requests open after its time; it goes on. Try again \
         with a longer --drain, or undeploy first: what is not finished is kept"
    )]
    StillOpen {
        /// Requests.
        open: usize,
    },
    /// What is deployed cannot be written down.
    #[error("the new version cannot be written down: {0}; the running version goes on")]
    NotKept(String),
    /// The application ends.
    #[error("the application is being stopped")]
    Stopping,
    /// Another version is just taking over.
    #[error("another version is just taking over; try again")]
    Busy,
}

impl BusThread {
    pub(super) fn begin_replacing(&mut self, replacement: Box<Replacement>) {
        let refused = match (&self.stopping, &self.replacing) {
            (Some(_), _) => Some(NotReplaced::Stopping),
            (_, Some(_)) => Some(NotReplaced::Busy),
            _ => None,
        };
        match refused {
            None => self.replacing = Some(replacement),
            Some(reason) => refuse(*replacement, reason),
        }
    }

    /// Keeps a request until the version that will handle it is known.
    pub(super) fn hold(&mut self, submit: Submit<Waiter>) {
        if self.core.in_flight() + self.held.len() >= self.core.max_in_flight() {
            let _ = submit.waiter.send(Reply::Busy);
        } else {
            self.held.push_back(submit);
        }
    }

    /// Takes the new sandbox once nothing is open; whether anything was done.
    pub(super) fn go_on_replacing(&mut self) -> bool {
        let Some(replacement) = &self.replacing else {
            return false;
        };
        if !self.core.is_idle() {
            let open = self.core.in_flight();
            if Instant::now() < replacement.deadline {
                return false;
            }
            self.keep_the_old(NotReplaced::StillOpen { open });
            return true;
        }
        let mut replacement = self.replacing.take().expect("it was there above");
        let commit = std::mem::replace(&mut replacement.commit, Box::new(|| Ok(())));
        match commit() {
            Ok(()) => self.take_over(*replacement),
            Err(error) => refuse(*replacement, NotReplaced::NotKept(error.to_string())),
        }
        self.release_held();
        true
    }

    /// The application ends before the new version could take over.
    pub(super) fn give_up_replacing(&mut self) {
        if self.replacing.is_some() {
            self.keep_the_old(NotReplaced::Stopping);
        }
    }

    fn keep_the_old(&mut self, reason: NotReplaced) {
        if let Some(replacement) = self.replacing.take() {
            refuse(*replacement, reason);
        }
        self.release_held();
    }

    fn take_over(&mut self, replacement: Replacement) {
        let Replacement {
            workflow,
            max_payload_bytes,
            bounds,
            sandbox,
            local,
            done,
            ..
        } = replacement;
        let names: Vec<&str> = workflow.grains.iter().map(|grain| &**grain).collect();
        if let Err(error) = self.global.prepare(&workflow.app, &names) {
            // The first event makes the topics then.
            tracing::warn!(app = %self.app, %error, "topics were not prepared");
        }
        self.max_payload_bytes = max_payload_bytes;
        self.limits.bounds = bounds;
        self.backup = workflow.backup;
        self.core.rewire(workflow);
        self.mailbox.set_ringer(Some(local.ringer()));
        self.local = Some(local);
        self.workers = sandbox.workers();
        self.refused.clear();
        self.high_water.clear();
        self.attachments += 1;
        let unused = std::mem::replace(&mut self.source, sandbox);
        let outcome = Ok(());
        tracing::info!(app = %self.app, "a new version has taken over");
        hand_back(done, Replaced { outcome, unused });
    }

    fn release_held(&mut self) {
        for submit in std::mem::take(&mut self.held) {
            self.submit(submit);
            self.carry_out();
        }
    }
}

fn refuse(replacement: Replacement, reason: NotReplaced) {
    let Replacement {
        sandbox,
        local,
        done,
        ..
    } = replacement;
    drop(local);
    let replaced = Replaced {
        outcome: Err(reason),
        unused: sandbox,
    };
    hand_back(done, replaced);
}

/// Whoever asked shuts the unused sandbox down; if nobody is there any more, it is done here.
fn hand_back(done: oneshot::Sender<Replaced>, replaced: Replaced) {
    if let Err(mut replaced) = done.send(replaced) {
        replaced.unused.shut_down(std::time::Duration::from_secs(3));
    }
}

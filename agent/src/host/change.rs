//! Deploy, replace, undeploy, stop.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::{Deployment, Host, lock};
use crate::application::{Application, StartError, UpgradeError, end_sandbox};
use crate::bridge::{AppStatus, Post};
use crate::config::{AppSpec, ConfigError, Network};

/// How long the grains of an application's first version may take to load.
const LOAD: Duration = Duration::from_secs(30);

/// What a deployment did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployed {
    /// The application.
    pub app: String,
    /// The version that serves now.
    pub version: u64,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

/// What an undeployment did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undeployed {
    /// The application.
    pub app: String,
    /// Requests that are not finished; they go on with the next deployment.
    pub left: usize,
    /// Where its messages are kept; `None` if they were removed.
    pub kept: Option<PathBuf>,
}

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// The file. What runs, goes on.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The operator of this agent does not let it have what it asks for.
    #[error(
        "{app}: network = \"host\" is not allowed by this agent; add \"{app}\" to \
         allow_host_network in agent.toml and reload it (SIGHUP), or use network = \"loopback\""
    )]
    HostNetwork {
        /// The application.
        app: String,
    },
    /// The agent may not read it.
    #[error(
        "{}: {source}; this agent reads applications from {} only: add the directory to \
         [own_rights] read of agent.toml and restart the agent", file.display(), listed(reach)
    )]
    OutOfReach {
        /// The `app.toml`.
        file: PathBuf,
        /// Where it may read.
        reach: Vec<PathBuf>,
        /// What the system said.
        source: io::Error,
    },
    /// It cannot be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The running version goes on.
    #[error(transparent)]
    Upgrade(#[from] UpgradeError),
    /// A grain does not load.
    #[error("{app} is not deployed: {reason}")]
    NotReady {
        /// The application.
        app: String,
        /// The grain's last words.
        reason: String,
    },
    /// Nothing of that name.
    #[error("{app} is not deployed; there is: {known}")]
    Unknown {
        /// The name that was given.
        app: String,
        /// The names that there are.
        known: String,
    },
    /// The deployment cannot be written down.
    #[error("{}: {source}; make room, or make the data directory writable", path.display())]
    Disk {
        /// The data directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What a dead agent's deployment left.
    #[error(transparent)]
    Leftovers(#[from] sandpipe_sandbox::SandboxError),
}

impl Host {
    /// Deploys what the file says: a first version, or one that takes over from the running one,
    /// which has `drain` for what it has open. Blocks for as long as that takes.
    ///
    /// # Errors
    /// [`ChangeError`]; what ran before goes on.
    pub fn deploy(&self, file: &Path, drain: Option<Duration>) -> Result<Deployed, ChangeError> {
        let begin = Instant::now();
        let (next, spec) = Deployment::read(file).map_err(|error| self.in_reach(error))?;
        self.check_leave(&spec)?;
        let drain = drain.unwrap_or_else(|| self.settings().drain);
        let mut running = lock(&self.running);
        let next = match self.deployment(&next.app) {
            Some(before) => before.followed_by(next),
            None => next,
        };
        match running.get_mut(&next.app) {
            Some(application) => self.replace(application, &next, &spec, drain)?,
            None => self.deploy_first(&mut running, &next, &spec)?,
        }
        self.know(&next, None);
        tracing::info!(app = next.app, version = next.version, "deployed");
        Ok(Deployed {
            app: next.app,
            version: next.version,
            took_ms: u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// Whether the operator lets it have what it asks for.
    pub(super) fn check_leave(&self, spec: &AppSpec) -> Result<(), ChangeError> {
        let allowed = self.settings().allow_host_network.contains(&spec.name);
        if spec.sandbox.network == Network::Host && !allowed {
            let app = spec.name.clone();
            return Err(ChangeError::HostNetwork { app });
        }
        Ok(())
    }

    /// What the agent itself may not read is told as such.
    fn in_reach(&self, error: ConfigError) -> ChangeError {
        match (error, &self.reach) {
            (ConfigError::Read { path, reason }, Some(reach))
                if reason.kind() == io::ErrorKind::PermissionDenied =>
            {
                ChangeError::OutOfReach {
                    file: path,
                    reach: reach.clone(),
                    source: reason,
                }
            }
            (error, _) => error.into(),
        }
    }

    fn replace(
        &self,
        application: &mut Application,
        next: &Deployment,
        spec: &AppSpec,
        drain: Duration,
    ) -> Result<(), ChangeError> {
        let places = self.places(next);
        // Of an agent that died during an earlier replacement.
        end_sandbox(&places.run, &next.app)?;
        // Until the new version serves nobody may send what it does not take.
        let old = application.door.clone();
        let mut narrow = old.clone();
        let takes = usize::try_from(spec.limits.max_payload_bytes).unwrap_or(usize::MAX);
        narrow.max_payload_bytes = old.max_payload_bytes.min(takes);
        self.door.open(narrow);
        let (registry, kept) = (self.registry.clone(), next.clone());
        let replaced = application.replace(spec, &places, drain, move || registry.keep(&kept));
        self.door.open(application.door.clone());
        Ok(replaced?)
    }

    fn deploy_first(
        &self,
        running: &mut BTreeMap<String, Application>,
        next: &Deployment,
        spec: &AppSpec,
    ) -> Result<(), ChangeError> {
        let application = self.start(next, spec)?;
        let ready = wait_until_ready(&application);
        let kept = ready.and_then(|()| {
            let disk = |source| ChangeError::Disk {
                path: self.data.clone(),
                source,
            };
            self.registry.keep(next).map_err(disk)
        });
        if let Err(error) = kept {
            application.stop(Duration::ZERO);
            return Err(error);
        }
        self.door.open(application.door.clone());
        running.insert(next.app.clone(), application);
        Ok(())
    }

    /// Goes on with a deployment. What a dead agent left of one that has no leave any more ends.
    pub(super) fn go_on(
        &self,
        deployment: &Deployment,
        spec: &AppSpec,
    ) -> Result<Application, ChangeError> {
        if let Err(refused) = self.check_leave(spec) {
            for side in [0, 1] {
                let places = self.places(&Deployment {
                    side,
                    ..deployment.clone()
                });
                end_sandbox(&places.run, &deployment.app)?;
            }
            return Err(refused);
        }
        self.start(deployment, spec)
    }

    /// Starts an application, or adopts what a dead agent left of it; nobody can reach it yet.
    fn start(&self, deployment: &Deployment, spec: &AppSpec) -> Result<Application, ChangeError> {
        let places = self.places(deployment);
        let other = Deployment {
            side: 1 - deployment.side.min(1),
            ..deployment.clone()
        };
        end_sandbox(&self.places(&other).run, &deployment.app)?;
        let telemetry = &self.door.telemetry;
        Ok(Application::start(spec, &places, &self.bus, telemetry)?)
    }

    /// Ends an application: what is open has `drain` to finish. With `purge` its messages are
    /// removed. Blocks for as long as that takes.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn undeploy(
        &self,
        app: &str,
        purge: bool,
        drain: Option<Duration>,
    ) -> Result<Undeployed, ChangeError> {
        let mut running = lock(&self.running);
        let Some(deployment) = self.deployment(app) else {
            let known = self.deployments().into_iter().map(|known| known.app);
            let known = known.collect::<Vec<_>>().join(", ");
            return Err(ChangeError::Unknown {
                app: app.to_owned(),
                known: if known.is_empty() {
                    "nothing".into()
                } else {
                    known
                },
            });
        };
        let drain = drain.unwrap_or_else(|| self.settings().drain);
        let left = match running.remove(app) {
            Some(application) => application.stop(drain),
            None => {
                self.end_sandboxes_of_stopped(&deployment)?;
                0
            }
        };
        self.door.close(app);
        let data = self.places(&deployment).data;
        let disk = |source| ChangeError::Disk {
            path: data.clone(),
            source,
        };
        self.registry.forget(app).map_err(disk)?;
        // From here on it is not deployed, whatever becomes of its messages.
        lock(&self.known).remove(app);
        if purge {
            std::fs::remove_dir_all(&data).map_err(disk)?;
        }
        tracing::info!(app, left, "undeployed");
        Ok(Undeployed {
            app: app.to_owned(),
            left,
            kept: (!purge).then_some(data),
        })
    }

    /// Ends what an agent before this one has left of an application that could not be started
    /// again: nobody else will. Another agent's is left to that one.
    fn end_sandboxes_of_stopped(&self, deployment: &Deployment) -> Result<(), ChangeError> {
        let known = lock(&self.known);
        let taken_over = known.get(&deployment.app).is_some_and(|app| app.taken_over);
        drop(known);
        for side in [0, 1].into_iter().filter(|_| !taken_over) {
            let on_side = Deployment {
                side,
                ..deployment.clone()
            };
            end_sandbox(&self.places(&on_side).run, &deployment.app)?;
        }
        Ok(())
    }

    /// Ends all applications at once, each with the usual time for what it has open; how many
    /// requests each leaves for the next agent. They stay deployed. Blocks.
    pub fn stop(&self) -> Vec<(String, usize)> {
        let drain = self.settings().drain;
        let applications = std::mem::take(&mut *lock(&self.running));
        let ending: Vec<_> = applications
            .into_iter()
            .map(|(name, application)| (name, application.begin_stop(drain), application))
            .collect();
        let mut left = Vec::new();
        for (name, count, application) in ending {
            application.join();
            left.push((name, count.blocking_recv().unwrap_or(0)));
        }
        left
    }
}

fn listed(paths: &[PathBuf]) -> String {
    let paths = paths.iter().map(|path| path.display().to_string());
    paths.collect::<Vec<_>>().join(", ")
}

/// Waits until every grain has loaded.
fn wait_until_ready(application: &Application) -> Result<(), ChangeError> {
    let deadline = Instant::now() + LOAD;
    loop {
        match readiness(&status(application), Instant::now() >= deadline) {
            Readiness::Ready => return Ok(()),
            Readiness::Starting => std::thread::sleep(Duration::from_millis(2)),
            Readiness::Hopeless(reason) => {
                return Err(ChangeError::NotReady {
                    app: application.door.name.to_string(),
                    reason,
                });
            }
        }
    }
}

/// What a new application's status says.
#[derive(Debug, PartialEq, Eq)]
enum Readiness {
    Ready,
    Starting,
    /// Nobody waits for it any longer, and why.
    Hopeless(String),
}

fn readiness(status: &AppStatus, is_late: bool) -> Readiness {
    let reason = match &status.not_ready {
        None if !status.grains.is_empty() => return Readiness::Ready,
        // An answer comes with a descriptor for each worker.
        None => {
            "its sandbox has not said how the grain workers are; look at the agent's limit of \
             open files"
        }
        Some(reason) => reason,
    };
    // A sandbox that cannot be made is tried again, but nobody waits for that here.
    let not_made = status.not_ready.is_some() && status.answers && status.attachments == 0;
    let broken = status.grains.iter().any(|grain| grain.broken);
    if broken || not_made || is_late {
        return Readiness::Hopeless(reason.to_owned());
    }
    Readiness::Starting
}

fn status(application: &Application) -> AppStatus {
    let (waiter, status) = oneshot::channel();
    application.door.mailbox.post(Post::Status(waiter));
    status.blocking_recv().unwrap_or_else(|_| AppStatus {
        not_ready: Some("its bus thread has ended".into()),
        ..AppStatus::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::GrainState;

    #[test]
    fn nobody_waits_for_ever_for_a_sandbox_that_does_not_say_how_its_workers_are() {
        let mut status = AppStatus {
            answers: true,
            attachments: 1,
            ..AppStatus::default()
        };
        assert_eq!(readiness(&status, false), Readiness::Starting);
        assert!(matches!(readiness(&status, true), Readiness::Hopeless(_)));
        status.grains.push(GrainState::default());
        assert_eq!(readiness(&status, true), Readiness::Ready);
    }
}

//! What the agent does by itself: it goes on with what was deployed, and with what has ended.

use std::collections::BTreeMap;
use std::sync::TryLockError;

use super::{Deployment, Host, Known, lock};
use crate::application::{Application, Ended};

impl Host {
    /// Goes on with what is deployed. An application that cannot be started is named in
    /// [`Host::deployments`], and [`Host::watch`] tries again; the others run. Blocks.
    ///
    /// # Errors
    /// The list of deployments cannot be read.
    pub fn resume(&self) -> std::io::Result<usize> {
        let mut running = lock(&self.running);
        for deployment in self.registry.load()? {
            self.try_start(&mut running, &deployment);
        }
        Ok(running.len())
    }

    /// Starts again what has ended or could not be started. Call it every few seconds. Does
    /// nothing while something is being deployed.
    pub fn watch(&self) {
        let mut running = match self.running.try_lock() {
            Ok(running) => running,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let ended = running
            .iter()
            .filter(|(_, application)| application.has_ended());
        let ended: Vec<String> = ended.map(|(name, _)| name.clone()).collect();
        for name in ended {
            let Some(application) = running.remove(&name) else {
                continue;
            };
            self.door.close(&name);
            let Some(deployment) = self.deployment(&name) else {
                continue;
            };
            if application.join() == Some(Ended::TakenOver) {
                // Two agents that take a sandbox from each other help nobody.
                tracing::error!(app = name, "another agent has taken it over");
                let trouble = "another agent has taken it over; undeploy it from one of the two";
                self.know(&deployment, Some(trouble.into()));
                if let Some(known) = lock(&self.known).get_mut(&name) {
                    known.taken_over = true;
                }
            } else {
                self.try_start(&mut running, &deployment);
            }
        }
        for deployment in self.to_be_tried_again(&running) {
            self.try_start(&mut running, &deployment);
        }
    }

    fn to_be_tried_again(&self, running: &BTreeMap<String, Application>) -> Vec<Deployment> {
        let known = lock(&self.known);
        let is_waiting =
            |known: &&Known| !known.taken_over && !running.contains_key(&known.deployment.app);
        let waiting = known.values().filter(is_waiting);
        waiting.map(|known| known.deployment.clone()).collect()
    }

    fn try_start(&self, running: &mut BTreeMap<String, Application>, deployment: &Deployment) {
        let started = deployment
            .spec()
            .map_err(super::ChangeError::from)
            .and_then(|spec| self.go_on(deployment, &spec));
        let trouble = match started {
            Ok(application) => {
                self.door.open(application.door.clone());
                running.insert(deployment.app.clone(), application);
                None
            }
            Err(error) => Some(error.to_string()),
        };
        let before = lock(&self.known)
            .get(&deployment.app)
            .and_then(|known| known.trouble.clone());
        if let Some(trouble) = &trouble
            && before.as_ref() != Some(trouble)
        {
            tracing::error!(app = deployment.app, "does not start: {trouble}");
        }
        self.know(deployment, trouble);
    }
}

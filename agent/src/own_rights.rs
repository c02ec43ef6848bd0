//! The agent gives up what it does not need, before its first thread; a launcher keeps what its
//! sandboxes need (`sandpipe_sandbox::give_up_rights`).

use std::path::PathBuf;

use sandpipe_sandbox::{
    AgentRights, IsolationItem, IsolationState, bound_calls, give_up_rights, wait_for_launchers_end,
};

use crate::config::{OwnRights, Restrict};

/// What an agent gives up, and what it needs.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What is configured.
    pub wanted: OwnRights,
    /// Its run directory, absolute.
    pub run: PathBuf,
    /// Its data directory, absolute.
    pub data: PathBuf,
    /// Whether its global bus is a Kafka.
    pub kafka: bool,
    /// Whether it sends spans.
    pub spans: bool,
}

/// Why the agent does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RightsError {
    /// A directory that it needs.
    #[error("{}: {source}; choose another with --data-dir", path.display())]
    Data {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Everything was to be given up.
    #[error("restrict = \"require\", but {kept}")]
    Kept {
        /// What was not given up, and why.
        kept: String,
    },
    /// Nobody would see the launcher's end.
    #[error("no thread can be made to watch the launcher: {0}")]
    Thread(std::io::Error),
}

impl Plan {
    /// Splits the launcher off, gives up what only that needs, and says what became of it. Call it
    /// before any thread is made.
    ///
    /// # Errors
    /// [`RightsError`]; what was given up stays so.
    pub fn give_up(&self) -> Result<(), RightsError> {
        if self.wanted.restrict == Restrict::Off {
            tracing::warn!("the agent keeps all its rights: restrict = \"off\"");
            return Ok(());
        }
        // Landlock's rules are for what is there.
        std::fs::create_dir_all(&self.data).map_err(|source| RightsError::Data {
            path: self.data.clone(),
            source,
        })?;
        let report = give_up_rights(&AgentRights {
            run_dir: self.run.clone(),
            data_dir: self.data.clone(),
            read: self.wanted.read.clone(),
            connects: self.kafka || self.spans,
        });
        self.judge(&report)?;
        watch_launcher().map_err(RightsError::Thread)
    }

    /// Bounds the system calls of all threads. Call it once the agent serves.
    ///
    /// # Errors
    /// [`RightsError::Kept`].
    pub fn bound_calls(&self) -> Result<(), RightsError> {
        if self.wanted.restrict == Restrict::Off {
            return Ok(());
        }
        self.judge(&[bound_calls(self.kafka || self.spans)])
    }

    fn judge(&self, report: &[IsolationItem]) -> Result<(), RightsError> {
        report.iter().for_each(say);
        let kept = report
            .iter()
            .filter(|item| item.state == IsolationState::Off)
            .map(|item| format!("{}: {}", item.name, item.reason));
        let kept: Vec<String> = kept.collect();
        if self.wanted.restrict == Restrict::Require && !kept.is_empty() {
            let kept = kept.join("; ");
            return Err(RightsError::Kept { kept });
        }
        Ok(())
    }
}

fn say(item: &IsolationItem) {
    let IsolationItem {
        name,
        reason,
        remedy,
        ..
    } = item;
    match item.state {
        IsolationState::On => tracing::info!(what = name, how = reason, "restricted"),
        IsolationState::Off => tracing::warn!(what = name, why = reason, remedy, "not restricted"),
    }
}

/// What ends is told at once, not only to whoever needs a sandbox next.
fn watch_launcher() -> std::io::Result<()> {
    let watch = || {
        wait_for_launchers_end();
        tracing::error!(
            "the launcher has ended: what runs goes on, but no sandbox can be made or removed; \
             restart the agent"
        );
    };
    let thread = std::thread::Builder::new().name("watch-launcher".into());
    thread.spawn(watch).map(drop)
}

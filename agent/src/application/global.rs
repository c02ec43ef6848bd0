//! Opens the global bus, and numbers the agents that write to it.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

#[cfg(feature = "kafka")]
use sandpipe_global_bus::{ConnectError, KafkaBus, KafkaOptions};
use sandpipe_global_bus::{
    EmbeddedBus, EmbeddedOptions, GlobalBus, Limits, OpenError, PrepareError,
};

use super::Places;
use crate::config::AppSpec;

/// Which global bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BusChoice {
    /// A log in the data directory.
    Embedded,
    /// A Kafka, by its bootstrap servers (`host:port,…`).
    Kafka(String),
}

/// Why there is no global bus.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GlobalError {
    /// The embedded log.
    #[error("{0} (data directory: choose another with --data-dir)")]
    Embedded(#[from] OpenError),
    /// Kafka.
    #[cfg(feature = "kafka")]
    #[error("{0}; start it, or run with --global-bus embedded")]
    Kafka(#[from] ConnectError),
    /// This build has no Kafka.
    #[error("this build has no Kafka client; build with the feature `kafka`, or use embedded")]
    NoKafka,
    /// A name that topics cannot have.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// The number of this agent cannot be kept.
    #[error("{}: {source}; make the data directory writable or choose another with --data-dir",
        path.display())]
    Epoch {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The bus, and this agent's epoch on it.
pub(super) fn open(
    spec: &AppSpec,
    places: &Places,
    choice: &BusChoice,
    record_bytes: u64,
    partitions: u32,
) -> Result<(Box<dyn GlobalBus>, u64), GlobalError> {
    let record_bytes = usize::try_from(record_bytes).unwrap_or(usize::MAX);
    let base = Limits::default();
    let limits = Limits {
        record_bytes: base.record_bytes.max(record_bytes),
        window_bytes: base.window_bytes.max(record_bytes.saturating_mul(4)),
        partitions,
        ..base
    };
    let bus: Box<dyn GlobalBus> = match choice {
        BusChoice::Embedded => {
            let options = EmbeddedOptions {
                limits,
                ..EmbeddedOptions::default()
            };
            let (bus, report) = EmbeddedBus::open(&places.data.join("log"), options)?;
            tracing::debug!(app = %spec.name, ?report, "opened the log");
            Box::new(bus)
        }
        #[cfg(feature = "kafka")]
        BusChoice::Kafka(bootstrap) => {
            let options = KafkaOptions {
                limits,
                ..KafkaOptions::new(bootstrap)
            };
            Box::new(KafkaBus::open(options)?)
        }
        #[cfg(not(feature = "kafka"))]
        BusChoice::Kafka(_) => return Err(GlobalError::NoKafka),
    };
    let path = places.data.join("epoch");
    let epoch = next_epoch(&path).map_err(|source| GlobalError::Epoch { path, source })?;
    Ok((bus, epoch))
}

/// A number greater than that of every agent before: readers drop what an older one writes later.
/// The clock helps where the data directory is new but the Kafka is not.
fn next_epoch(path: &Path) -> io::Result<u64> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let before = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        text => text?.trim().parse().ok(),
    };
    let clock = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis();
    let epoch = before.map_or(0, |before: u64| before + 1);
    let epoch = epoch.max(u64::try_from(clock).unwrap_or(0));
    // Written aside and renamed: a death in between leaves the old number, which nobody has yet.
    let aside = path.with_extension("new");
    let mut file = fs::File::create(&aside)?;
    writeln!(file, "{epoch}")?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    // Before anything is written under the number, it is taken also when the power goes.
    fs::File::open(directory)?.sync_all()?;
    Ok(epoch)
}

#[cfg(test)]
mod tests {
    use super::next_epoch;

    #[test]
    fn each_agent_has_a_greater_epoch_also_when_the_clock_runs_backwards() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/epoch");
        let first = next_epoch(&path).unwrap();
        assert!(next_epoch(&path).unwrap() > first);
        std::fs::write(&path, u64::MAX.saturating_sub(10).to_string()).unwrap();
        assert_eq!(next_epoch(&path).unwrap(), u64::MAX - 9);
    }
}

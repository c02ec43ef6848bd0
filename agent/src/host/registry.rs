//! Which applications are deployed: one file each, that survives agents and hosts.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::config::{AppSpec, ConfigError};

const FILE: &str = "deployment.json";

/// A deployed application. Its `app.toml` is kept as it was when it was deployed: what somebody
/// writes into the file later cannot take a running application down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// The application.
    pub app: String,
    /// 1, and one more for each version that took over.
    pub version: u64,
    /// On which side of the run directory its sandbox is, see
    /// [`Places::on_side`](crate::application::Places::on_side).
    pub side: u8,
    /// The file that was deployed, absolute.
    pub file: PathBuf,
    /// What was in it.
    pub text: String,
    /// When, in milliseconds of the Unix clock.
    pub since_unix_ms: u64,
}

impl Deployment {
    /// Reads an `app.toml`: what would be deployed, in its first version. Blocks on the disk.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn read(file: &Path) -> Result<(Deployment, AppSpec), ConfigError> {
        let text = fs::read_to_string(file).map_err(|reason| ConfigError::Read {
            path: file.to_path_buf(),
            reason,
        })?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let mut deployment = Deployment {
            app: String::new(),
            version: 1,
            side: 0,
            file: file.to_path_buf(),
            text,
            since_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        };
        let spec = deployment.spec()?;
        deployment.app.clone_from(&spec.name);
        Ok((deployment, spec))
    }

    /// The application as it was deployed.
    ///
    /// # Errors
    /// A handler that is not there any more, say.
    pub fn spec(&self) -> Result<AppSpec, ConfigError> {
        let directory = self.file.parent().unwrap_or(Path::new("/"));
        AppSpec::parse(&self.text, &self.file, directory)
    }

    /// The version that follows `self`, with what `next` says.
    #[must_use]
    pub fn followed_by(&self, next: Deployment) -> Deployment {
        Deployment {
            version: self.version + 1,
            side: 1 - self.side.min(1),
            ..next
        }
    }
}

/// The deployments of one agent, in `DATA/APP/deployment.json`.
#[derive(Clone, Debug)]
pub struct Registry {
    data: PathBuf,
}

impl Registry {
    /// The registry of the agent with this data directory.
    #[must_use]
    pub fn new(data: PathBuf) -> Registry {
        Registry { data }
    }

    /// Every deployment, by name. One whose file cannot be read is left out, and said. Blocks.
    ///
    /// # Errors
    /// The data directory cannot be listed; that it is not there is none.
    pub fn load(&self) -> io::Result<Vec<Deployment>> {
        let entries = match fs::read_dir(&self.data) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry?.path().join(FILE);
            match fs::read(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                // A file in place of a directory is nothing of ours.
                Err(error) if error.kind() == io::ErrorKind::NotADirectory => {}
                Err(error) => tracing::error!("{}: {error}", path.display()),
                Ok(bytes) => match serde_json::from_slice::<Deployment>(&bytes) {
                    Ok(deployment) => found.push(deployment),
                    Err(error) => tracing::error!("{}: {error}", path.display()),
                },
            }
        }
        found.sort_by(|a, b| a.app.cmp(&b.app));
        Ok(found)
    }

    /// Makes a deployment the one that the next agent starts, durably. Dead inside, the one before
    /// is.
    ///
    /// # Errors
    /// The disk's.
    pub fn keep(&self, deployment: &Deployment) -> io::Result<()> {
        let directory = self.data.join(&deployment.app);
        fs::create_dir_all(&directory)?;
        let aside = directory.join("deployment.new");
        let mut file = File::create(&aside)?;
        file.write_all(&serde_json::to_vec_pretty(deployment)?)?;
        file.sync_all()?;
        // Opened before it counts: without a descriptor the deployment before is still the one.
        let (own, above) = (File::open(&directory)?, File::open(&self.data)?);
        fs::rename(&aside, directory.join(FILE))?;
        own.sync_all()?;
        // The directory's own entry, when it is new.
        above.sync_all()
    }

    /// Forgets a deployment, durably. Dead inside, it is deployed still.
    ///
    /// # Errors
    /// The disk's.
    pub fn forget(&self, app: &str) -> io::Result<()> {
        let directory = self.data.join(app);
        match fs::remove_file(directory.join(FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.and_then(|()| File::open(&directory)?.sync_all()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(app: &str, version: u64) -> Deployment {
        Deployment {
            app: app.into(),
            version,
            side: 0,
            file: "/x/app.toml".into(),
            text: "text".into(),
            since_unix_ms: 7,
        }
    }

    #[test]
    fn what_is_kept_is_found_again_and_what_is_forgotten_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let registry = Registry::new(directory.path().join("deep"));
        assert_eq!(registry.load().unwrap(), []);
        let (a, b) = (deployment("a", 1), deployment("b", 3));
        registry.keep(&b).unwrap();
        registry.keep(&a).unwrap();
        let a2 = a.followed_by(deployment("a", 1));
        assert_eq!((a2.version, a2.side), (2, 1));
        assert_eq!(a2.followed_by(deployment("a", 1)).side, 0);
        registry.keep(&a2).unwrap();
        assert_eq!(registry.load().unwrap(), [a2, b.clone()]);
        registry.forget("a").unwrap();
        registry.forget("a").unwrap();
        assert_eq!(registry.load().unwrap(), [b]);
    }

    #[test]
    fn a_death_while_one_is_kept_leaves_the_one_before() {
        let directory = tempfile::tempdir().unwrap();
        let registry = Registry::new(directory.path().to_path_buf());
        registry.keep(&deployment("a", 1)).unwrap();
        // What a death between the writing and the renaming leaves, and one within the writing.
        for half in ["{\"app\": \"a\", \"vers", "{}"] {
            fs::write(directory.path().join("a/deployment.new"), half).unwrap();
            assert_eq!(registry.load().unwrap(), [deployment("a", 1)]);
        }
        registry.keep(&deployment("a", 2)).unwrap();
        assert_eq!(registry.load().unwrap(), [deployment("a", 2)]);
    }

    #[test]
    fn a_damaged_or_foreign_file_hides_no_other_deployment() {
        let directory = tempfile::tempdir().unwrap();
        let registry = Registry::new(directory.path().to_path_buf());
        registry.keep(&deployment("a", 1)).unwrap();
        fs::create_dir(directory.path().join("b")).unwrap();
        fs::write(directory.path().join("b").join(FILE), "noise").unwrap();
        fs::write(directory.path().join("c"), "a file").unwrap();
        assert_eq!(registry.load().unwrap(), [deployment("a", 1)]);
    }
}

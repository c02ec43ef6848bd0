//! An error as it travels from the launcher to its agent, who gets it back with its type.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::SandboxError;

/// A [`SandboxError`] in words and numbers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Told {
    InvalidSpec {
        reason: String,
    },
    RunDir {
        action: String,
        path: PathBuf,
        source: Answer,
    },
    RunDirUnsafe {
        path: PathBuf,
        owner: u32,
        mode: u32,
        uid: u32,
    },
    Spawn {
        app: String,
        step: String,
        source: Answer,
    },
    InitFailed {
        app: String,
        reason: String,
    },
    CgroupBusy {
        path: PathBuf,
        waited_ms: u64,
    },
    /// What the launcher has no business with.
    Other(String),
}

/// What the system answered: its number where there is one, else words.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Answer {
    number: Option<i32>,
    words: String,
}

impl From<io::Error> for Answer {
    fn from(error: io::Error) -> Answer {
        Answer {
            number: error.raw_os_error(),
            words: error.to_string(),
        }
    }
}

impl From<Answer> for io::Error {
    fn from(answer: Answer) -> io::Error {
        match answer.number {
            Some(number) => io::Error::from_raw_os_error(number),
            None => io::Error::other(answer.words),
        }
    }
}

impl From<SandboxError> for Told {
    fn from(error: SandboxError) -> Told {
        match error {
            SandboxError::InvalidSpec { reason } => Told::InvalidSpec { reason },
            SandboxError::RunDir {
                action,
                path,
                source,
            } => Told::RunDir {
                action: action.into_owned(),
                path,
                source: source.into(),
            },
            SandboxError::RunDirUnsafe {
                path,
                owner,
                mode,
                uid,
            } => Told::RunDirUnsafe {
                path,
                owner,
                mode,
                uid,
            },
            SandboxError::Spawn { app, step, source } => Told::Spawn {
                app,
                step: step.into_owned(),
                source: source.into(),
            },
            SandboxError::InitFailed { app, reason } => Told::InitFailed { app, reason },
            SandboxError::CgroupBusy { path, waited_ms } => Told::CgroupBusy { path, waited_ms },
            SandboxError::Launcher { source } => Told::Other(source.to_string()),
            other => Told::Other(other.to_string()),
        }
    }
}

impl From<Told> for SandboxError {
    fn from(told: Told) -> SandboxError {
        match told {
            Told::InvalidSpec { reason } => SandboxError::InvalidSpec { reason },
            Told::RunDir {
                action,
                path,
                source,
            } => SandboxError::RunDir {
                action: action.into(),
                path,
                source: source.into(),
            },
            Told::RunDirUnsafe {
                path,
                owner,
                mode,
                uid,
            } => SandboxError::RunDirUnsafe {
                path,
                owner,
                mode,
                uid,
            },
            Told::Spawn { app, step, source } => SandboxError::Spawn {
                app,
                step: step.into(),
                source: source.into(),
            },
            Told::InitFailed { app, reason } => SandboxError::InitFailed { app, reason },
            Told::CgroupBusy { path, waited_ms } => SandboxError::CgroupBusy { path, waited_ms },
            Told::Other(words) => SandboxError::Launcher {
                source: io::Error::other(words),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_comes_back_as_it_was() {
        let refused = || io::Error::from_raw_os_error(13);
        let path = PathBuf::from("/run/x");
        let app = || "app".to_owned();
        let errors = [
            SandboxError::InvalidSpec { reason: app() },
            SandboxError::run_dir("open", &path)(refused()),
            SandboxError::run_dir("open", &path)(io::Error::other("words")),
            SandboxError::RunDirUnsafe {
                path: path.clone(),
                owner: 1,
                mode: 0o755,
                uid: 2,
            },
            SandboxError::Spawn {
                app: app(),
                step: "clone3".into(),
                source: refused(),
            },
            SandboxError::InitFailed {
                app: app(),
                reason: "why".into(),
            },
            SandboxError::CgroupBusy { path, waited_ms: 3 },
        ];
        for error in errors {
            let before = format!("{error:?}: {error}");
            let told = serde_json::to_vec(&Told::from(error)).unwrap();
            let back: SandboxError = serde_json::from_slice::<Told>(&told).unwrap().into();
            assert_eq!(format!("{back:?}: {back}"), before);
        }
    }
}

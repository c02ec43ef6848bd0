//! `[own_rights]` of `agent.toml`: what the agent itself gives up.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::error::Problems;

/// What the agent gives up once it has a launcher.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnRights {
    /// Whether, and whether it must.
    pub restrict: Restrict,
    /// Directories that it may read beside its own and the system's; `None` = whatever its user
    /// may.
    pub read: Option<Vec<PathBuf>>,
}

/// Whether the agent gives up what it does not need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Restrict {
    /// Everything, or it does not start
    Require,
    /// What this machine grants; the rest is named
    #[default]
    Auto,
    /// Nothing: the agent keeps its rights and makes sandboxes itself
    Off,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    restrict: Option<Spanned<String>>,
    read: Option<Vec<PathBuf>>,
}

/// The section; `reads` is what the agent reads for its own settings.
pub(super) fn own_rights(
    raw: Option<Raw>,
    directory: &Path,
    applications: &[PathBuf],
    problems: &mut Problems<'_>,
) -> OwnRights {
    let Some(raw) = raw else {
        return OwnRights::default();
    };
    let restrict = match raw.restrict.as_ref().map(|word| word.get_ref().as_str()) {
        Some("require") => Restrict::Require,
        None | Some("auto") => Restrict::Auto,
        Some("off") => Restrict::Off,
        Some(other) => {
            let span = raw.restrict.as_ref().map_or(0..0, Spanned::span);
            let remedy = "use \"require\", \"auto\" or \"off\"";
            problems.add(span, format!("restrict = \"{other}\""), remedy);
            Restrict::Auto
        }
    };
    let read = raw.read.map(|read| {
        let given = read.iter().map(|path| directory.join(path));
        // What the configuration names itself: each application, and this file for a reload.
        let named = applications.iter().filter_map(|file| file.parent());
        let named = named.chain([directory]).map(Path::to_path_buf);
        given.chain(named).collect()
    });
    OwnRights { restrict, read }
}

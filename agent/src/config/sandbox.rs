//! `[sandbox]`: what the grains may reach beside what every sandbox gives them.

use std::path::{Path, PathBuf};

use toml::Spanned;

use super::check::number;
use super::error::Problems;
use super::{Network, Sandbox, raw};

/// What `/tmp` holds if nothing is said, in MiB.
const TMP_MB: u64 = 64;

/// The section, its paths absolute and looked at.
pub(super) fn sandbox(
    raw: Option<&raw::Sandbox>,
    directory: &Path,
    problems: &mut Problems<'_>,
) -> Sandbox {
    let mut paths = |given: &[Spanned<String>]| -> Vec<PathBuf> {
        given
            .iter()
            .filter_map(|path| found(path, directory, problems))
            .collect()
    };
    let (read, write) = raw.map_or((Vec::new(), Vec::new()), |raw| {
        (paths(&raw.read), paths(&raw.write))
    });
    let tmp_mb = raw.and_then(|raw| raw.tmp_mb.as_ref());
    Sandbox {
        read,
        write,
        tmp_bytes: number("tmp_mb", tmp_mb, 1..=1 << 20, TMP_MB, problems) << 20,
        io_uring: raw.and_then(|raw| raw.io_uring).unwrap_or(false),
        network: network(raw.and_then(|raw| raw.network.as_ref()), problems),
    }
}

fn network(raw: Option<&Spanned<String>>, problems: &mut Problems<'_>) -> Network {
    let Some(raw) = raw else {
        return Network::default();
    };
    match raw.get_ref().as_str() {
        "loopback" => Network::Loopback,
        "host" => Network::Host,
        other => {
            let what = format!("network = \"{other}\"");
            problems.add(raw.span(), what, "use \"loopback\" or \"host\"");
            Network::default()
        }
    }
}

/// A path that is there, from the application's directory if it is relative.
fn found(path: &Spanned<String>, directory: &Path, problems: &mut Problems<'_>) -> Option<PathBuf> {
    let whole = directory.join(path.get_ref());
    if whole == Path::new("/") {
        problems.add(
            path.span(),
            "the whole file system is no path to give to a grain",
            "name the directories that it needs",
        );
        return None;
    }
    match whole.canonicalize() {
        Ok(real) => Some(real),
        Err(error) => {
            problems.add(
                path.span(),
                format!("{}: {error}", whole.display()),
                "make it first or correct the path",
            );
            None
        }
    }
}

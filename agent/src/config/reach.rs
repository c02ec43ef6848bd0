//! Whether the sandbox lets the grains read the files that they are told to run or to open.

use std::path::{Path, PathBuf};

use sandpipe_sandbox::is_readable;
use toml::Spanned;

use super::error::Problems;
use super::{AppSpec, raw};
use crate::application::files;

/// Notes each file of a handler, or of its arguments, that is there and out of the grains' reach:
/// without it the grain would say, some time later, that there is no such file.
pub(super) fn check(raw: &raw::App, spec: &AppSpec, problems: &mut Problems<'_>) {
    let reached = files(spec);
    for grain in raw.grains.iter().map(Spanned::get_ref) {
        for (span, path) in named(grain, &spec.directory) {
            let Ok(real) = path.canonicalize() else {
                continue;
            };
            if real.is_file() && !is_readable(&reached, &real) {
                let place = real.parent().unwrap_or(&real);
                problems.add(
                    span,
                    format!(
                        "{} lies where the sandbox lets no grain read",
                        real.display()
                    ),
                    format!(
                        "add \"{}\" to read of [sandbox], or put the file into {}",
                        place.display(),
                        spec.directory.display()
                    ),
                );
            }
        }
    }
}

/// The file of a Python handler, and the paths among a program's arguments.
fn named(grain: &raw::Grain, directory: &Path) -> Vec<(std::ops::Range<usize>, PathBuf)> {
    let handler = grain.handler.get_ref();
    let file = match grain.runtime.get_ref().as_str() {
        "python" => handler.rsplit_once(':').map(|(file, _)| file),
        _ => None,
    };
    let file = file.filter(|file| Path::new(file).extension().is_some_and(|e| e == "py"));
    let file = file.map(|file| (grain.handler.span(), directory.join(file)));
    let args = grain.args.iter().flat_map(|args| {
        let paths = args.get_ref().iter().filter(|arg| arg.contains('/'));
        paths.map(|arg| (args.span(), directory.join(arg)))
    });
    file.into_iter().chain(args).collect()
}

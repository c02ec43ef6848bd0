//! Where the programs of the grains lie, and what they read to start.

use std::path::{Path, PathBuf};

use crate::config::Runtime;

/// Paths that a runtime must be able to read; those that are not there are left out.
pub(super) fn programs(runtime: &Runtime) -> Vec<PathBuf> {
    match runtime {
        Runtime::Rust { executable } | Runtime::Exec { executable, .. } => of(executable),
        Runtime::Python { interpreter, .. } => python(interpreter),
    }
}

/// A program, and the file that it is a link to.
fn of(program: &Path) -> Vec<PathBuf> {
    let real = program.canonicalize().ok();
    std::iter::once(program.to_path_buf()).chain(real).collect()
}

/// An interpreter finds its library from its own place: `PREFIX/bin/python` in `PREFIX/lib`. In a
/// virtual environment that prefix leads to the interpreter's own by a link.
fn python(interpreter: &Path) -> Vec<PathBuf> {
    let interpreter = found(interpreter);
    let places = of(&interpreter);
    let prefixes = places.iter().filter_map(|place| prefix(place));
    let own: Vec<PathBuf> = prefixes.collect();
    let linked: Vec<PathBuf> = own.iter().flat_map(|prefix| linked(prefix)).collect();
    let inherited = std::env::var("PYTHONPATH").ok();
    places
        .into_iter()
        .chain(own)
        .chain(linked)
        .chain(python_path(inherited.as_ref()))
        .collect()
}

/// The directory above `bin` with a library beside it, or above the `shims` of a version manager;
/// never the whole file system.
fn prefix(program: &Path) -> Option<PathBuf> {
    let directory = program.parent()?;
    let prefix = directory.parent()?;
    let library = prefix.join("pyvenv.cfg").exists() || prefix.join("lib").is_dir();
    let installed = directory.ends_with("shims") || (directory.ends_with("bin") && library);
    (installed && prefix != Path::new("/")).then(|| prefix.to_path_buf())
}

/// Packages that are installed as links, to where they are developed.
fn linked(prefix: &Path) -> Vec<PathBuf> {
    let entries = |path: PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten();
    let versions = entries(prefix.join("lib")).map(|entry| entry.path().join("site-packages"));
    let packages = versions.flat_map(entries);
    packages
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()))
        .filter_map(|entry| entry.path().canonicalize().ok())
        .collect()
}

/// As a shell would find it.
fn found(program: &Path) -> PathBuf {
    if program.components().count() > 1 {
        return program.to_path_buf();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).map(|directory| directory.join(program));
    let found = places.into_iter().find(|place| place.is_file());
    found.unwrap_or_else(|| program.to_path_buf())
}

/// The absolute directories of a `PYTHONPATH`.
pub(super) fn python_path(variable: Option<&String>) -> Vec<PathBuf> {
    variable
        .into_iter()
        .flat_map(|paths| std::env::split_paths(paths).collect::<Vec<_>>())
        .filter(|path| path.is_absolute())
        .collect()
}

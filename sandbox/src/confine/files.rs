//! Which files a grain can reach, by Landlock: what runs programs, its own, and what is declared.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, Scope,
};

use crate::Files;

/// The newest ABI whose rights are known here; an older kernel handles what it knows.
pub(super) const KNOWN: ABI = ABI::V6;

/// Read and executed by everything: programs, libraries, interpreters, their configuration, and
/// what tells a runtime about its machine.
pub(super) const SYSTEM: [&str; 13] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/opt",
    "/etc",
    "/proc",
    "/sys/devices/system",
    "/sys/fs/cgroup",
    "/sys/kernel/mm",
];

/// Devices without which programs do not start, and no others.
pub(super) const DEVICES: [&str; 5] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
];

/// Where everybody writes: granted where a sandbox has empty ones of its own.
pub(crate) const SCRATCH: [&str; 3] = ["/tmp", "/var/tmp", "/dev/shm"];

/// A ruleset of what can be reached; the domain that a process enters with it can also not signal,
/// trace or connect by an abstract name to anything outside.
///
/// A path that is not there grants nothing.
pub(crate) fn ruleset<'a>(
    read: impl IntoIterator<Item = &'a Path>,
    write: impl IntoIterator<Item = &'a Path>,
) -> io::Result<OwnedFd> {
    let read = read.into_iter().chain(SYSTEM.map(Path::new));
    let write = write.into_iter().chain(DEVICES.map(Path::new));
    let rules = read
        .map(|path| (path, AccessFs::from_read(KNOWN)))
        .chain(write.map(|path| (path, AccessFs::from_all(KNOWN))));
    made(rules, || {
        Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(KNOWN))?
            .scope(Scope::from_all(KNOWN))?
            .create()
    })
}

/// The ruleset that `create` makes, with these rules.
pub(super) fn made<'a>(
    rules: impl Iterator<Item = (&'a Path, BitFlags<AccessFs>)>,
    create: impl FnOnce() -> Result<RulesetCreated, RulesetError>,
) -> io::Result<OwnedFd> {
    let filled = || -> Result<Option<OwnedFd>, RulesetError> {
        let mut ruleset = create()?;
        for (path, access) in rules {
            let Some((fd, access)) = opened(path, access) else {
                continue;
            };
            ruleset = ruleset.add_rule(PathBeneath::new(fd, access))?;
        }
        Ok(ruleset.into())
    };
    filled()
        .map_err(|error| io::Error::other(error.to_string()))?
        .ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))
}

/// The rights of a directory do not all fit a file.
fn opened(path: &Path, access: BitFlags<AccessFs>) -> Option<(PathFd, BitFlags<AccessFs>)> {
    let fd = PathFd::new(path).ok()?;
    let directory = path.is_dir();
    let access = if directory {
        access
    } else {
        access & AccessFs::from_file(KNOWN)
    };
    Some((fd, access))
}

/// Whether grains of a sandbox with these files may read `path`, which is absolute and leads
/// through no link. Looks at the disk.
#[must_use]
pub fn is_readable(files: &Files, path: &Path) -> bool {
    let given = files.read.iter().chain(&files.write).map(PathBuf::as_path);
    let mut all = given.chain(SYSTEM.map(Path::new));
    all.any(|granted| {
        let real = granted.canonicalize();
        real.is_ok_and(|granted| path.starts_with(granted))
    })
}

/// Whether there is such a path, so that one that is declared in vain can be told of.
pub(crate) fn exists(path: &Path) -> bool {
    PathFd::new(path).is_ok()
}

/// What of it this kernel lacks.
pub(super) fn describe(version: u32) -> String {
    let lacking = [
        (2, "files cannot be moved between directories"),
        (3, "truncation is not handled"),
        (5, "device controls are not handled"),
        (6, "signals and abstract sockets are not handled"),
    ];
    let lacking: Vec<_> = lacking
        .iter()
        .filter(|(since, _)| version < *since)
        .map(|(_, what)| *what)
        .collect();
    if lacking.is_empty() {
        "files, devices, signals, abstract sockets".into()
    } else {
        lacking.join(", ")
    }
}

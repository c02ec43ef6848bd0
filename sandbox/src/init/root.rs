//! The root that an application sees: the host's, read-only, with scratch directories of its own
//! and without what leads to other processes.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change,
    move_mount, open_tree,
};

use crate::SandboxSpec;
use crate::confine::SCRATCH;
use crate::sys;

/// Sockets of the host's services and of other applications: a socket is connected to also on a
/// read-only mount.
const SERVICES: &str = "/run";

/// A file system holds as many files as pages.
const PAGE_BYTES: u64 = 4096;

/// Changes the mounts of this process's own namespace. Must be called before anything opens the
/// paths that it hides or makes read-only; open files go on as they are.
pub(super) fn furnish(spec: &SandboxSpec) -> io::Result<()> {
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    mount_change("/", private)?;
    // Taken aside before anything changes.
    let readable = trees(kept(spec))?;
    let proc = PathBuf::from("/proc");
    let writable = trees(spec.files.write.iter().cloned().chain([proc]))?;
    sys::set_read_only(Path::new("/"), true)?;
    for scratch in SCRATCH.map(Path::new) {
        own_directory(scratch, "1777", spec.files.tmp_bytes)?;
    }
    own_directory(Path::new(SERVICES), "0755", 1 << 20)?;
    for (path, tree) in &readable {
        put_back(path, tree)?;
        sys::set_read_only(path, true)?;
    }
    for (path, tree) in &writable {
        put_back(path, tree)?;
    }
    if spec.run_dir.is_dir() {
        own_directory(&spec.run_dir, "0755", 1 << 20)?;
        sys::set_read_only(&spec.run_dir, false)?;
    }
    if is_directory(Path::new(SERVICES)) {
        sys::set_read_only(Path::new(SERVICES), false)?;
    }
    Ok(())
}

/// Makes the whole root read-only and mounts over `/tmp`, for a probe in a bare child: system calls
/// only.
pub(crate) fn try_root() -> io::Result<()> {
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    mount_change(c"/", private)?;
    sys::set_read_only(Path::new("/"), true)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    Ok(mount(c"tmpfs", c"/tmp", c"tmpfs", flags, c"size=65536")?)
}

/// What grains read and would not find any more below the directories that are hidden, parents
/// first. A link and what it leads to are two.
fn kept(spec: &SandboxSpec) -> Vec<PathBuf> {
    let hidden = |path: &PathBuf| {
        let mut all = SCRATCH.iter().chain([&SERVICES]);
        all.any(|directory| path.starts_with(directory) && path != Path::new(directory))
    };
    let of_workers = spec.workers.iter().flat_map(|worker| {
        let program = worker.command.first().map(PathBuf::from);
        program.into_iter().chain(worker.working_dir.clone())
    });
    let named = spec.files.read.iter().cloned().chain(of_workers);
    let mut paths: Vec<PathBuf> = named
        .filter(|path| path.is_absolute())
        .flat_map(names)
        .filter(hidden)
        .collect();
    paths.sort();
    paths.dedup_by(|later, earlier| later.starts_with(&*earlier));
    paths
}

/// The names by which a path may be looked up: its own, the one without links on the way, and what
/// it leads to.
fn names(path: PathBuf) -> impl Iterator<Item = PathBuf> {
    let real = fs::canonicalize(&path).ok();
    let parent = path
        .parent()
        .and_then(|parent| fs::canonicalize(parent).ok());
    let settled = parent
        .zip(path.file_name())
        .map(|(parent, name)| parent.join(name));
    let goes_up = path.components().any(|part| part == Component::ParentDir);
    let own = Some(path).filter(|_| !goes_up);
    [real, settled, own].into_iter().flatten()
}

/// A detached copy of each path's mounts; paths that are not there are left out.
fn trees(paths: impl IntoIterator<Item = PathBuf>) -> io::Result<Vec<(PathBuf, OwnedFd)>> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let mut found = Vec::new();
    for path in paths {
        match open_tree(CWD, &path, flags) {
            Ok(tree) => found.push((path, tree)),
            Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

/// Mounts a detached copy where it was, making what is missing on the way.
fn put_back(path: &Path, tree: &OwnedFd) -> io::Result<()> {
    if !path.exists() {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        if rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(tree)?.st_mode).is_dir() {
            fs::create_dir(path)?;
        } else {
            File::create(path)?;
        }
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(move_mount(tree, c"", CWD, path, flags)?)
}

/// An empty file system in memory at a directory; one that is a link leads to another of them.
fn own_directory(path: &Path, mode: &str, bytes: u64) -> io::Result<()> {
    if !is_directory(path) {
        return Ok(());
    }
    let files = (bytes / PAGE_BYTES).max(16);
    let options = CString::new(format!("mode={mode},size={bytes},nr_inodes={files}"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    Ok(mount(c"tmpfs", path, c"tmpfs", flags, options.as_c_str())?)
}

fn is_directory(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.is_dir())
}

//! Control groups of a sandbox: found, made, limited and removed by the agent.
//!
//! v1 and v2 may stand side by side. The unified tree (v2) kills a family as a whole and births a
//! process right inside; v1 gives the limits where its controllers are. The tree's paths are
//! written down in `RUN/APP/cgroups` before they are made, so that the next agent can remove them.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::run_dir::AppDir;
use crate::{IsolationItem, SandboxError, SandboxSpec};

/// The name under which the v2 tree is passed on; controllers of v1 keep their own names.
pub(crate) const V2: &str = "v2";
/// The limit of processes, as it is reported.
pub(crate) const PROCESS_LIMIT: &str = "process limit";
/// Every directory that is ours begins with this.
const PREFIX: &str = "sandpipe-";
/// How long killed processes may take to go: memory is torn down at about 10 GiB/s.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(10);
const DELEGATE: &str = "run the agent as root, or in a cgroup delegated to it \
                        (systemd: Delegate=yes)";

/// A hierarchy on this machine and the directory in which we may make ours.
pub(crate) struct Hierarchy {
    /// [`V2`] or a controller of v1.
    pub(crate) name: String,
    pub(crate) base: PathBuf,
}

/// The cgroups of one sandbox.
pub(crate) struct Cgroups {
    made: Vec<Made>,
}

struct Made {
    name: String,
    directory: OwnedFd,
}

impl Cgroups {
    pub(crate) const fn none() -> Cgroups {
        Cgroups { made: Vec::new() }
    }

    /// Makes the sandbox's cgroups and writes the limits. What is refused goes into `report`.
    pub(crate) fn create(
        app_dir: &AppDir,
        spec: &SandboxSpec,
        report: &mut Vec<IsolationItem>,
    ) -> Result<Cgroups, SandboxError> {
        let hierarchies = hierarchies().unwrap_or_default();
        let name = directory_name(&spec.app, &app_dir.path);
        let limits_memory = spec.memory_limit_bytes.is_some()
            || spec
                .workers
                .iter()
                .any(|worker| worker.memory_limit_bytes.is_some());
        let wanted: Vec<(&Hierarchy, PathBuf)> = hierarchies
            .iter()
            .filter(|hierarchy| match hierarchy.name.as_str() {
                V2 => true,
                "memory" => limits_memory,
                "pids" => spec.pids_limit.is_some(),
                "cpu" => spec.cpu_limit_millicores.is_some(),
                _ => false,
            })
            .map(|hierarchy| (hierarchy, hierarchy.base.join(&name)))
            .collect();
        record(app_dir, &wanted)?;
        let mut made = Vec::new();
        for (hierarchy, path) in &wanted {
            match make(path) {
                Ok(directory) => made.push(Made {
                    name: hierarchy.name.clone(),
                    directory,
                }),
                Err(error) => {
                    let item = format!("cgroup {}", hierarchy.name);
                    let reason = format!("mkdir {}: {error}", path.display());
                    report.push(IsolationItem::off(&item, reason, DELEGATE));
                }
            }
        }
        let cgroups = Cgroups { made };
        report.push(cgroups.family_kill());
        if limits_memory {
            report.push(cgroups.limit("memory limit", spec.memory_limit_bytes, &MEMORY));
        }
        if spec.pids_limit.is_some() {
            report.push(cgroups.limit(PROCESS_LIMIT, spec.pids_limit, &PIDS));
        }
        if let Some(millicores) = spec.cpu_limit_millicores {
            let quota_us = Some(millicores * CPU_PERIOD_US / 1000);
            report.push(cgroups.limit("cpu limit", quota_us, &CPU));
        }
        Ok(cgroups)
    }

    /// The v2 directory, if there is one.
    pub(crate) fn v2(&self) -> Option<BorrowedFd<'_>> {
        self.directory(V2)
    }

    /// All of them with their names, in one order.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        self.made
            .iter()
            .map(|made| (made.name.as_str(), made.directory.as_fd()))
    }

    fn directory(&self, name: &str) -> Option<BorrowedFd<'_>> {
        self.all()
            .find(|(made, _)| *made == name)
            .map(|(_, directory)| directory)
    }

    fn family_kill(&self) -> IsolationItem {
        let name = "cgroup kill";
        match self.v2().map(|v2| exists_at(v2, "cgroup.kill")) {
            Some(true) => IsolationItem::on(name, "a dead worker's family is killed as a whole"),
            Some(false) => IsolationItem::off(
                name,
                "no cgroup.kill here: families are found through /proc",
                "use Linux 5.14 or newer",
            ),
            None => IsolationItem::off(
                name,
                "no cgroup v2 directory: families are found through /proc",
                DELEGATE,
            ),
        }
    }

    fn limit(&self, item: &str, limit: Option<u64>, controller: &Controller) -> IsolationItem {
        let found = self.v2().filter(|v2| has_controller(*v2, controller.name));
        let (directory, file) = match (found, self.directory(controller.name)) {
            (Some(v2), _) => (v2, controller.v2_file),
            (None, Some(v1)) => (v1, controller.v1_file),
            (None, None) => {
                let reason = format!("no cgroup with the {} controller", controller.name);
                return IsolationItem::off(item, reason, DELEGATE);
            }
        };
        match limit.map_or(Ok(()), |limit| {
            write_at(directory, file, &limit.to_string())
        }) {
            Ok(()) => IsolationItem::on(item, file),
            Err(error) => IsolationItem::off(item, format!("{file}: {error}"), DELEGATE),
        }
    }
}

/// A controller and the file of its limit in each version.
pub(crate) struct Controller {
    pub(crate) name: &'static str,
    pub(crate) v1_file: &'static str,
    pub(crate) v2_file: &'static str,
}

pub(crate) const MEMORY: Controller = Controller {
    name: "memory",
    v1_file: "memory.limit_in_bytes",
    v2_file: "memory.max",
};
const PIDS: Controller = Controller {
    name: "pids",
    v1_file: "pids.max",
    v2_file: "pids.max",
};
/// A number alone is the quota of a period in both versions and leaves the period as it is.
const CPU: Controller = Controller {
    name: "cpu",
    v1_file: "cpu.cfs_quota_us",
    v2_file: "cpu.max",
};
/// The period that every new cgroup has, in both versions.
const CPU_PERIOD_US: u64 = 100_000;
/// The controllers that are looked for among the hierarchies of v1.
const V1_CONTROLLERS: [&str; 3] = [MEMORY.name, PIDS.name, CPU.name];

/// The hierarchies of this machine that may serve us.
pub(crate) fn hierarchies() -> io::Result<Vec<Hierarchy>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let root = rustix::process::geteuid().is_root();
    let mut found: Vec<Hierarchy> = Vec::new();
    for mount in mounts.lines() {
        let mut fields = mount.split(' ').skip(1);
        let (Some(point), Some(kind), Some(options)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let name = match kind {
            "cgroup2" => V2,
            "cgroup" => match options.split(',').find(|o| V1_CONTROLLERS.contains(o)) {
                Some(controller) => controller,
                None => continue,
            },
            _ => continue,
        };
        if found.iter().any(|hierarchy| hierarchy.name == name) {
            continue;
        }
        // Root's limits work from the top of v2; below a session's own processes the kernel
        // would refuse its controllers. Anybody else owns, at best, where it stands.
        let point = Path::new(point);
        let base = if name == V2 && root {
            point.into()
        } else {
            own_directory(point, &own, name)
        };
        found.push(Hierarchy {
            name: name.into(),
            base,
        });
    }
    Ok(found)
}

/// Where this process stands in the hierarchy, if that can be seen below its mount point.
fn own_directory(point: &Path, own: &str, name: &str) -> PathBuf {
    let path = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next()?;
        let path = fields.next()?;
        let matches = match name {
            V2 => controllers.is_empty(),
            _ => controllers.split(',').any(|controller| controller == name),
        };
        matches.then_some(path)
    });
    let below = point.join(path.unwrap_or("/").trim_start_matches('/'));
    if below.is_dir() { below } else { point.into() }
}

fn directory_name(app: &str, app_dir: &Path) -> String {
    let hash = crate::boot::fnv1a(app_dir.as_os_str().as_encoded_bytes());
    format!("{PREFIX}{app}-{:08x}", hash >> 32)
}

/// Writes down what will be made, before it is made: whoever dies in between leaves its trace.
fn record(app_dir: &AppDir, wanted: &[(&Hierarchy, PathBuf)]) -> Result<(), SandboxError> {
    let path = app_dir.cgroups_path();
    let lines: String = wanted
        .iter()
        .map(|(_, directory)| format!("{}\n", directory.display()))
        .collect();
    fs::write(&path, lines).map_err(SandboxError::run_dir("write", path))
}

fn make(path: &Path) -> io::Result<OwnedFd> {
    // One of the same name belonged to a sandbox whose directory, and record, was deleted.
    if path.is_dir() {
        remove(path).map_err(|error| io::Error::other(error.to_string()))?;
    }
    fs::create_dir(path)?;
    Ok(File::open(path)?.into())
}

/// Whether the v2 directory has the controller, turning it on in its parent if that is allowed.
pub(crate) fn has_controller(directory: BorrowedFd<'_>, controller: &str) -> bool {
    let has = || {
        read_at(directory, "cgroup.controllers")
            .is_ok_and(|list| list.split_whitespace().any(|name| name == controller))
    };
    if !has() {
        // Refused where it is not ours to give; the second look tells.
        let _ = write_at(
            directory,
            "../cgroup.subtree_control",
            &format!("+{controller}"),
        );
    }
    has()
}

/// Removes the cgroups that `RUN/APP/cgroups` names, killing whatever still lives in them.
///
/// The caller holds the lock, so no init lives; without a pid namespace its workers may.
pub(crate) fn remove_recorded(app_dir: &AppDir) -> Result<(), SandboxError> {
    let list = fs::read_to_string(app_dir.cgroups_path()).unwrap_or_default();
    for path in list.lines().map(Path::new) {
        let ours = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(PREFIX.as_bytes()));
        if ours && path.is_absolute() && path.is_dir() {
            remove(path)?;
        }
    }
    Ok(())
}

/// Kills what lives in the tree at `path`, then removes the tree.
pub(crate) fn remove(path: &Path) -> Result<(), SandboxError> {
    let deadline = Instant::now() + REMOVE_TIMEOUT;
    loop {
        kill_all(path);
        match remove_tree(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            Err(error) => return Err(SandboxError::run_dir("remove the cgroup", path)(error)),
        }
        if Instant::now() > deadline {
            let waited_ms = REMOVE_TIMEOUT.as_millis() as u64;
            return Err(SandboxError::CgroupBusy {
                path: path.into(),
                waited_ms,
            });
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn kill_all(path: &Path) {
    if fs::write(path.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    let pids = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    for pid in pids.lines().filter_map(|line| line.parse().ok()) {
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    for child in children(path) {
        kill_all(&child);
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    for child in children(path) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn children(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|e| e.path())
        .collect()
}

pub(crate) fn exists_at(directory: BorrowedFd<'_>, file: &str) -> bool {
    rustix::fs::accessat(
        directory,
        file,
        rustix::fs::Access::EXISTS,
        rustix::fs::AtFlags::empty(),
    )
    .is_ok()
}

pub(crate) fn write_at(directory: BorrowedFd<'_>, file: &str, text: &str) -> io::Result<()> {
    use rustix::fs::{Mode, OFlags, openat};
    let fd = openat(
        directory,
        file,
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    rustix::io::write(fd, text.as_bytes())?;
    Ok(())
}

pub(crate) fn read_at(directory: BorrowedFd<'_>, file: &str) -> io::Result<String> {
    use rustix::fs::{Mode, OFlags, openat};
    let fd = openat(
        directory,
        file,
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    io::read_to_string(File::from(fd))
}

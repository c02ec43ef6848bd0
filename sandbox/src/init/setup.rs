//! What init does to its namespaces before it starts anything.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};

use super::root;
use crate::boot::Boot;
use crate::confine::{self, Confinement};
use crate::namespaces::{MOUNT, NETWORK, PID, USER, UTS};
use crate::{IsolationItem, IsolationState, cgroup, cgroup::PROCESS_LIMIT, sys};

/// Furnishes the namespaces and enters the v1 cgroups; says what was refused.
pub(super) fn furnish(boot: &Boot, cgroups: &[(String, OwnedFd)]) -> Vec<IsolationItem> {
    let mut report = boot.isolation.clone();
    let has = |flag: u64| boot.namespaces & flag != 0;
    let mut add = |name: &str, wanted: bool, done: io::Result<()>, remedy: &str| match done {
        _ if !wanted => {}
        Ok(()) => report.push(IsolationItem::on(name, "")),
        Err(error) => report.push(IsolationItem::off(name, error, remedy)),
    };
    // Before /proc, which is changed for its processes alone. Without a mount namespace of its
    // own this would change the host's mounts.
    let wanted = boot.spec.isolation.root;
    let own_root = if wanted && has(MOUNT) {
        root::furnish(&boot.spec)
    } else {
        Err(io::Error::other("it needs mounts of its own"))
    };
    let newer = "run Linux 5.12 or newer; where the mount namespace is off, see there";
    add(confine::OWN_ROOT, wanted, own_root, newer);
    let mounts = has(MOUNT) && has(PID);
    let proc = if mounts {
        private_proc().and_then(|()| protect_the_machine())
    } else {
        Ok(())
    };
    let masked = "a container that masks parts of /proc forbids a new one: unmask it";
    add("private /proc", mounts, proc, masked);
    let name = if has(UTS) {
        host_name(&boot.spec.app)
    } else {
        Ok(())
    };
    add("host name", has(UTS), name, "");
    let loopback = if has(NETWORK) {
        sys::loopback_up()
    } else {
        Ok(())
    };
    add("loopback", has(NETWORK), loopback, "");
    for (name, directory) in cgroups.iter().filter(|(name, _)| name != cgroup::V2) {
        // Everything that init starts from here on inherits it.
        let entered = cgroup::write_at(directory.as_fd(), "cgroup.procs", "0");
        add(
            &format!("cgroup v1 {name}"),
            true,
            entered,
            "run the agent as root",
        );
    }
    if !has(PID) {
        // Orphans come to init instead of the host's pid 1.
        let own = rustix::process::getpid();
        let adopted = rustix::process::set_child_subreaper(Some(own));
        add("orphans are reaped", true, adopted.map_err(Into::into), "");
    }
    report
}

/// What workers give up; says what was refused, and which declared path is not there.
pub(super) fn confinement(boot: &Boot, report: &mut Vec<IsolationItem>) -> Confinement {
    let spec = &boot.spec;
    // Where no cgroup counts the sandbox's processes, the user namespace does.
    let counted = report
        .iter()
        .any(|item| item.name == PROCESS_LIMIT && item.state == IsolationState::On);
    let limit = spec
        .pids_limit
        .filter(|_| !counted && boot.namespaces & USER != 0);
    if limit.is_some() {
        report.retain(|item| item.name != PROCESS_LIMIT);
        report.push(IsolationItem::on(
            PROCESS_LIMIT,
            "RLIMIT_NPROC in the user namespace",
        ));
    }
    let limit = limit.map(confine::process_limit);
    for path in spec.files.read.iter().chain(&spec.files.write) {
        if !confine::exists(path) {
            let name = format!("path {}", path.display());
            let remedy = "make it before the application is started, or remove it from app.toml";
            report.push(IsolationItem::off(&name, "it is not there", remedy));
        }
    }
    Confinement::new(spec, limit, report)
}

/// Cuts the mounts off from the host's and mounts the pid namespace's own /proc.
///
/// Makes only system calls, so that a probe may call it in a bare child.
pub(crate) fn private_proc() -> io::Result<()> {
    mount_change(
        "/",
        MountPropagationFlags::REC | MountPropagationFlags::PRIVATE,
    )?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount(c"proc", c"/proc", c"proc", flags, None)?)
}

/// What of /proc is the machine's: root may write much of it without a single capability.
const OF_THE_MACHINE: [&str; 7] = [
    "/proc/sys",
    "/proc/sysrq-trigger",
    "/proc/irq",
    "/proc/bus",
    "/proc/fs",
    "/proc/acpi",
    "/proc/scsi",
];

/// Makes the machine's part of the new /proc read-only.
fn protect_the_machine() -> io::Result<()> {
    for path in OF_THE_MACHINE
        .map(Path::new)
        .iter()
        .filter(|path| path.exists())
    {
        mount_bind(*path, *path)?;
        sys::set_read_only(path, true)?;
    }
    Ok(())
}

fn host_name(app: &str) -> io::Result<()> {
    // An underscore is no host name's.
    Ok(rustix::system::sethostname(
        app.replace('_', "-").as_bytes(),
    )?)
}

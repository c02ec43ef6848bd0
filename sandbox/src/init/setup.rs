//! What init does to its namespaces before it starts anything.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use crate::boot::Boot;
use crate::namespaces::{MOUNT, NETWORK, PID, UTS};
use crate::{IsolationItem, cgroup, sys};

/// Furnishes the namespaces and enters the v1 cgroups; says what was refused.
pub(super) fn furnish(boot: &Boot, cgroups: &[(String, OwnedFd)]) -> Vec<IsolationItem> {
    let mut report = boot.isolation.clone();
    let has = |flag: u64| boot.namespaces & flag != 0;
    let mut add = |name: &str, wanted: bool, done: io::Result<()>, remedy: &str| match done {
        _ if !wanted => {}
        Ok(()) => report.push(IsolationItem::on(name, "")),
        Err(error) => report.push(IsolationItem::off(name, error, remedy)),
    };
    // Without a mount namespace of its own this would change the host's mounts.
    let mounts = has(MOUNT) && has(PID);
    let proc = if mounts { private_proc() } else { Ok(()) };
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

fn host_name(app: &str) -> io::Result<()> {
    // An underscore is no host name's.
    Ok(rustix::system::sethostname(
        app.replace('_', "-").as_bytes(),
    )?)
}

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::cgroup::{self, Hierarchy, V2};
use crate::confine;
use crate::namespaces::{self, MOUNT, NAMESPACES, NETWORK, PID, USER};
use crate::sys::{self, UserMap, run_in_child};

/// One thing that a sandbox uses, and whether it works here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// What it is.
    pub name: String,
    /// Whether it worked when it was used just now.
    pub ok: bool,
    /// How it works here, or what the system answered.
    pub reason: String,
    /// What to do about it; empty if there is nothing to do.
    pub remedy: String,
}

/// Proves each part of a sandbox's isolation by using it in a child. Blocks for some tens of
/// milliseconds. If the caller is killed inside, an empty cgroup directory `sandpipe-probe-…` may
/// stay.
#[must_use]
pub fn probe_isolation() -> Vec<Probe> {
    let mut probes: Vec<Probe> = NAMESPACES
        .iter()
        .map(|(name, flag)| namespace(name, *flag))
        .collect();
    probes.push(probe(
        "user namespace",
        namespaces::try_namespace(USER),
        "",
        "needed without root only: sysctl user.max_user_namespaces",
    ));
    let remedy = "unmask /proc if this is a container";
    let proc = in_namespaces(PID | MOUNT, &crate::init::private_proc);
    probes.push(probe("private /proc", proc, "", remedy));
    let loopback = in_namespaces(NETWORK, &sys::loopback_up);
    probes.push(probe("loopback", loopback, "", namespaces::REMEDY));
    let root = in_namespaces(MOUNT, &crate::init::try_root);
    let newer = "run Linux 5.12 or newer; where the mount namespace fails, see there";
    probes.push(probe(confine::OWN_ROOT, root, "", newer));
    let confined = confine::probes().into_iter();
    for (name, tried, remedy) in confined.chain(confine::agent_probes()) {
        let (result, reason) = match tried {
            Ok(reason) => (Ok(()), reason),
            Err(error) => (Err(error), String::new()),
        };
        probes.push(probe(name, result, &reason, remedy));
    }
    match cgroup::hierarchies() {
        Ok(hierarchies) => {
            probes.extend(hierarchies.iter().map(cgroup_probe));
            if !hierarchies.iter().any(|hierarchy| hierarchy.name == V2) {
                let missing = Err(io::Error::other("no cgroup2 file system is mounted"));
                let remedy = "mount -t cgroup2 none /sys/fs/cgroup/unified";
                probes.push(probe("cgroup v2", missing, "", remedy));
            }
        }
        Err(error) => probes.push(probe("cgroups", Err(error), "", "mount /proc")),
    }
    probes
}

fn namespace(name: &str, flag: u64) -> Probe {
    let plain = namespaces::try_namespace(flag);
    let Err(refused) = plain else {
        return probe(name, Ok(()), "", "");
    };
    let in_user = namespaces::try_namespace(flag | USER);
    let reason = format!("in a user namespace ({refused} without one)");
    probe(name, in_user, &reason, namespaces::REMEDY)
}

/// Runs `body` in these namespaces, within a user namespace if it is not allowed otherwise.
fn in_namespaces(flags: u64, body: &dyn Fn() -> io::Result<()>) -> io::Result<()> {
    run_in_child(flags, None, None, body).or_else(|_| {
        let map = UserMap::caller_as_root();
        run_in_child(flags | USER, Some(&map), None, body)
    })
}

/// Makes a cgroup, lets a child live in it, kills it there, and removes the cgroup.
fn cgroup_probe(hierarchy: &Hierarchy) -> Probe {
    let path = hierarchy
        .base
        .join(format!("sandpipe-probe-{}", std::process::id()));
    let used = use_cgroup(hierarchy, &path);
    let removed = cgroup::remove(&path).map_err(|error| io::Error::other(error.to_string()));
    let (name, reason) = if hierarchy.name == V2 {
        let controllers = fs::read_to_string(hierarchy.base.join("cgroup.controllers"));
        let controllers = controllers.unwrap_or_default();
        (
            "cgroup v2".to_string(),
            format!("controllers: {}", controllers.trim()),
        )
    } else {
        (format!("cgroup v1 {}", hierarchy.name), String::new())
    };
    let remedy = "run the agent as root, or in a cgroup delegated to it (systemd: Delegate=yes)";
    probe(&name, used.and(removed), &reason, remedy)
}

fn use_cgroup(hierarchy: &Hierarchy, path: &Path) -> io::Result<()> {
    fs::create_dir(path)?;
    let directory = fs::File::open(path)?;
    if hierarchy.name != V2 {
        return run_in_child(0, None, None, &|| {
            use rustix::fs::{Mode, OFlags, openat};
            let fd = openat(&directory, c"cgroup.procs", OFlags::WRONLY, Mode::empty())?;
            rustix::io::write(fd, b"0")?;
            Ok(())
        });
    }
    run_in_child(0, None, Some(directory.as_fd()), &|| Ok(()))?;
    // Fails on a kernel before 5.14, where families are found through /proc instead.
    cgroup::write_at(directory.as_fd(), "cgroup.kill", "1")
}

fn probe(name: &str, result: io::Result<()>, reason: &str, remedy: &str) -> Probe {
    let ok = result.is_ok();
    let (reason, remedy) = match result {
        Ok(()) => (reason.to_string(), String::new()),
        Err(error) => (error.to_string(), remedy.to_string()),
    };
    Probe {
        name: name.into(),
        ok,
        reason,
        remedy,
    }
}

//! What a grain's processes may not do any more: rights, files, system calls, resources.
//!
//! Init prepares all of it before the clone; the child only makes the calls (`sys::give_up`), as
//! the last thing before its exec. A part that this kernel refuses is left out, by name.

mod agent;
mod agent_calls;
mod agent_files;
mod files;
mod limits;
mod syscalls;

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket};
use seccompiler::sock_filter;

pub(crate) use agent::probes as agent_probes;
pub use agent::{AgentRights, agent_system_calls, bound_calls, give_up_rights};
pub use files::is_readable;
use files::ruleset;
pub(crate) use files::{SCRATCH, exists};
pub(crate) use limits::{Limit, limits, process_limit};

use crate::sys::{self, GiveUp, run_in_child};
use crate::{Files, IsolationItem, IsolationState, SandboxSpec};

/// The root that init furnishes, as it is reported.
pub(crate) const OWN_ROOT: &str = "read-only root, private /tmp";
const LANDLOCK_REMEDY: &str = "boot with lsm=landlock,… on Linux 5.13 or newer";
const ABSTRACT: &str = "abstract sockets out of reach";
const ABSTRACT_REMEDY: &str = "run Linux 6.12 or newer with lsm=landlock,…; until then share the \
                               host's network with no application";
const FILTER_REMEDY: &str = "run a Linux kernel with CONFIG_SECCOMP_FILTER";

/// What init puts on each worker that it starts.
#[derive(Default)]
pub(crate) struct Confinement {
    privileges: bool,
    landlock: bool,
    filters: Vec<Vec<sock_filter>>,
    limits: Vec<Limit>,
    files: Files,
    /// Whether the scratch directories are the sandbox's own.
    own_scratch: bool,
}

/// The parts of one worker's start that must live until its exec.
pub(crate) struct Prepared<'a> {
    confinement: &'a Confinement,
    ruleset: Option<OwnedFd>,
}

impl Confinement {
    /// What of the wanted this kernel grants, each tried in a child that ends at once.
    pub(crate) fn new(
        spec: &SandboxSpec,
        processes: Option<Limit>,
        report: &mut Vec<IsolationItem>,
    ) -> Confinement {
        let (wanted, io_uring) = (&spec.isolation, spec.io_uring);
        let mut found = Confinement {
            files: spec.files.clone(),
            own_scratch: report
                .iter()
                .any(|item| item.name == OWN_ROOT && item.state == IsolationState::On),
            ..Confinement::default()
        };
        if wanted.privileges {
            let tried = try_privileges();
            found.privileges = tried.is_ok();
            report.push(item("no privileges", tried.map(|()| PRIVILEGES.into()), ""));
            found.limits = limits().into_iter().chain(processes).collect();
            report.push(IsolationItem::on(
                "resource limits",
                limits::describe(&found.limits),
            ));
        }
        // Without no_new_privs neither of the others can be had.
        if wanted.files && found.privileges {
            let tried = try_landlock();
            found.landlock = tried.is_ok();
            report.push(item("file rules", tried, LANDLOCK_REMEDY));
        }
        // In a network of its own there are none but its own.
        if !wanted.network && found.landlock {
            report.push(item(ABSTRACT, try_abstract(), ABSTRACT_REMEDY));
        }
        if wanted.system_calls && found.privileges {
            let tried = syscalls::filters(io_uring).and_then(|filters| {
                try_filters(&filters)?;
                Ok(filters)
            });
            let tried = tried.map(|filters| {
                found.filters = filters;
                syscalls::describe(io_uring)
            });
            report.push(item("system call filter", tried, FILTER_REMEDY));
        }
        found
    }

    /// Opens what one worker may reach: what was declared, its program and where it starts. Makes
    /// some system calls for each path.
    pub(crate) fn prepare(&self, program: &Path, directory: &Path) -> io::Result<Prepared<'_>> {
        let read = self.files.read.iter().map(PathBuf::as_path);
        // The whole root is nobody's own directory.
        let own = [program, directory].into_iter().filter(|path| *path != "/");
        let scratch = SCRATCH.iter().filter(|_| self.own_scratch).map(Path::new);
        let write = self.files.write.iter().map(PathBuf::as_path).chain(scratch);
        let ruleset = match self.landlock {
            true => Some(ruleset(read.chain(own), write)?),
            false => None,
        };
        Ok(Prepared {
            confinement: self,
            ruleset,
        })
    }
}

impl Prepared<'_> {
    pub(crate) fn give_up(&self) -> GiveUp<'_> {
        GiveUp {
            privileges: self.confinement.privileges,
            limits: &self.confinement.limits,
            ruleset: self.ruleset.as_ref().map(AsRawFd::as_raw_fd),
            filters: &self.confinement.filters,
            all_threads: false,
        }
    }
}

const PRIVILEGES: &str = "no_new_privs, no capabilities, none to be had";

fn item(name: &str, tried: io::Result<String>, remedy: &str) -> IsolationItem {
    match tried {
        Ok(how) => IsolationItem::on(name, how),
        Err(error) => IsolationItem::off(name, error, remedy),
    }
}

/// Gives it up in a child, then tries what must not work any more.
fn in_child(give_up: &GiveUp<'_>, then: &dyn Fn() -> io::Result<()>) -> io::Result<()> {
    run_in_child(0, None, None, &|| {
        sys::give_up(give_up).map_err(|(_, error)| error)?;
        then()
    })
}

fn try_privileges() -> io::Result<()> {
    let give_up = GiveUp {
        privileges: true,
        ..GiveUp::default()
    };
    in_child(&give_up, &|| must_fail(sys::use_a_capability()))
}

fn try_landlock() -> io::Result<String> {
    let version = sys::landlock_version()?;
    let reachable = ruleset([Path::new("/proc")], [])?;
    let give_up = GiveUp {
        privileges: true,
        ruleset: Some(reachable.as_raw_fd()),
        ..GiveUp::default()
    };
    in_child(&give_up, &|| must_fail(open_directory(c"/")))?;
    Ok(format!(
        "Landlock ABI {version}; {}",
        files::describe(version)
    ))
}

/// What listens outside under an abstract name cannot be reached from inside.
fn try_abstract() -> io::Result<String> {
    let reachable = ruleset([Path::new("/proc")], [])?;
    let give_up = GiveUp {
        privileges: true,
        ruleset: Some(reachable.as_raw_fd()),
        ..GiveUp::default()
    };
    let name = format!(
        "sandpipe-probe-{}-{:?}",
        std::process::id(),
        thread::current().id()
    );
    let _outside = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    let address = SocketAddrUnix::new_abstract_name(name.as_bytes())?;
    let socket = socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    in_child(&give_up, &|| {
        must_fail(connect(&socket, &address).map_err(Into::into))
    })?;
    Ok("also where the host's network is shared".into())
}

fn try_filters(filters: &[Vec<sock_filter>]) -> io::Result<()> {
    let give_up = GiveUp {
        privileges: true,
        filters,
        ..GiveUp::default()
    };
    in_child(&give_up, &|| must_fail(sys::unshare_nothing()))
}

/// Turns a success that should not be into an error.
fn must_fail(tried: io::Result<()>) -> io::Result<()> {
    match tried {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)) => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::ENOTSUP)),
    }
}

fn open_directory(path: &CStr) -> io::Result<()> {
    use rustix::fs::{Mode, OFlags, open};
    open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    Ok(())
}

/// Each part proved by use, for the doctor.
pub(crate) fn probes() -> Vec<(&'static str, io::Result<String>, &'static str)> {
    let filters = syscalls::filters(false).and_then(|filters| {
        try_filters(&filters)?;
        Ok(syscalls::describe(false))
    });
    vec![
        (
            "no privileges",
            try_privileges().map(|()| PRIVILEGES.into()),
            "",
        ),
        ("file rules", try_landlock(), LANDLOCK_REMEDY),
        (ABSTRACT, try_abstract(), ABSTRACT_REMEDY),
        ("system call filter", filters, FILTER_REMEDY),
    ]
}

//! Resource limits of each process of a grain, beside what its cgroups bound as a whole.

use rustix::process::{Resource, getrlimit};

/// A limit that a worker's process sets before its exec; its children inherit it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limit {
    /// `RLIMIT_*`.
    pub(crate) resource: libc::c_int,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// Open files: what programs expect that use `select`, and what they may raise it to.
const FILES: (u64, u64) = (1024, 4096);

/// Never above what this process may have itself: raising is a privilege.
pub(crate) fn limits() -> Vec<Limit> {
    let own = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let hard = FILES.1.min(own);
    vec![
        Limit {
            resource: libc::RLIMIT_NOFILE as libc::c_int,
            soft: FILES.0.min(hard),
            hard,
        },
        // A core holds the application's data, and would be written where the host says.
        Limit {
            resource: libc::RLIMIT_CORE as libc::c_int,
            soft: 0,
            hard: 0,
        },
    ]
}

/// Processes and threads. The kernel counts them by user, and within a user namespace only those
/// of the namespace: so it bounds a sandbox exactly there, and elsewhere would count the host's.
pub(crate) fn process_limit(most: u64) -> Limit {
    Limit {
        resource: libc::RLIMIT_NPROC as libc::c_int,
        soft: most,
        hard: most,
    }
}

pub(super) fn describe(limits: &[Limit]) -> String {
    let text = |limit: &Limit| {
        let name = match limit.resource as libc::__rlimit_resource_t {
            libc::RLIMIT_NOFILE => "open files",
            libc::RLIMIT_CORE => "core file",
            _ => "processes",
        };
        format!("{name} {}", limit.hard)
    };
    limits.iter().map(text).collect::<Vec<_>>().join(", ")
}

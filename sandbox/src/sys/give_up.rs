//! A process gives up what it will not need: raw system calls only, nothing allocated, since it may
//! be a child that borrows its parent's memory.

use std::io;
use std::os::fd::RawFd;

use seccompiler::sock_filter;

use crate::confine::Limit;

/// What to give up; nothing by default.
#[derive(Default)]
pub(crate) struct GiveUp<'a> {
    /// Set no_new_privs and drop every capability, also from what a program could get.
    pub(crate) privileges: bool,
    pub(crate) limits: &'a [Limit],
    /// A Landlock ruleset whose domain is entered.
    pub(crate) ruleset: Option<RawFd>,
    /// Programs for seccomp, in their order.
    pub(crate) filters: &'a [Vec<sock_filter>],
    /// The filters are for every thread of the process, not only for this one.
    pub(crate) all_threads: bool,
}

/// `_LINUX_CAPABILITY_VERSION_3`.
const CAPABILITIES_V3: u32 = 0x2008_0522;
/// No capability has a number above it.
const CAPABILITIES_MAX: libc::c_ulong = 63;
/// NOROOT and NO_SETUID_FIXUP, each with its lock: uid 0 is a user like others.
const SECUREBITS: libc::c_ulong = 0b1111;

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

/// Gives it up for good, for this process and all that it will start.
///
/// # Errors
/// The part that failed, and why; what came before it stays given up.
pub(crate) fn give_up(what: &GiveUp<'_>) -> Result<(), (&'static str, io::Error)> {
    let part = |name: &'static str| move |error: io::Error| (name, error);
    for limit in what.limits {
        set_limit(limit).map_err(part(PARTS[0]))?;
    }
    if what.privileges {
        drop_privileges().map_err(part(PARTS[1]))?;
    }
    if let Some(ruleset) = what.ruleset {
        // SAFETY: takes plain numbers.
        let entered = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0) };
        checked(entered).map_err(part(PARTS[2]))?;
    }
    for filter in what.filters {
        install(filter, what.all_threads).map_err(part(PARTS[3]))?;
    }
    Ok(())
}

/// What can fail in [`give_up`].
pub(crate) const PARTS: [&str; 4] = [
    "resource limits",
    "dropping privileges",
    "Landlock",
    "the system call filter",
];

fn set_limit(limit: &Limit) -> io::Result<()> {
    let value = libc::rlimit64 {
        rlim_cur: limit.soft,
        rlim_max: limit.hard,
    };
    // SAFETY: the new limit is valid for reads, the old one is not asked for. Pid 0 is the caller.
    checked(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            limit.resource,
            &raw const value,
            std::ptr::null_mut::<libc::rlimit64>(),
        )
    })
}

fn drop_privileges() -> io::Result<()> {
    // SAFETY: prctl with plain numbers. Without CAP_SETPCAP the bounding set and the securebits
    // cannot be changed; no_new_privs alone then keeps any program from having more than this
    // process, which is nothing.
    unsafe {
        for capability in 0..=CAPABILITIES_MAX {
            if libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) < 0 {
                break;
            }
        }
        libc::prctl(libc::PR_SET_SECUREBITS, SECUREBITS, 0, 0, 0);
        checked(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into())?;
    }
    let header = CapabilityHeader {
        version: CAPABILITIES_V3,
        pid: 0,
    };
    // Effective, permitted and inheritable, twice 32 bits; the ambient ones go with them.
    let none = [0u32; 6];
    // SAFETY: both are valid for reads and as long as version 3 says.
    checked(unsafe { libc::syscall(libc::SYS_capset, &raw const header, &raw const none) })
}

fn install(filter: &[sock_filter], all_threads: bool) -> io::Result<()> {
    let flags = match all_threads {
        true => libc::SECCOMP_FILTER_FLAG_TSYNC,
        false => 0,
    };
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?,
        filter: filter.as_ptr().cast_mut().cast(),
    };
    // SAFETY: the program is valid for reads, of the kernel's layout, and copied by the call.
    let installed = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    match installed {
        // The number of a thread that has another filter.
        1.. => Err(io::Error::from_raw_os_error(libc::EBUSY)),
        other => checked(other),
    }
}

/// The version of Landlock here.
///
/// # Errors
/// `ENOSYS` or `EOPNOTSUPP` without it.
pub(crate) fn landlock_version() -> io::Result<u32> {
    const VERSION: u32 = 1;
    let nothing = std::ptr::null::<u8>();
    // SAFETY: with this flag the call takes no attributes and returns a number.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0usize, VERSION) };
    checked(version)?;
    Ok(version as u32)
}

/// Succeeds only with CAP_SETPCAP.
pub(crate) fn use_a_capability() -> io::Result<()> {
    // SAFETY: takes plain numbers.
    checked(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, 0, 0, 0, 0) }.into())
}

/// Reads the clock, which is no system call where the kernel maps it.
pub(crate) fn read_clock() -> io::Result<()> {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the time is valid for writes.
    checked(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) }.into())
}

/// Asks for no new namespace, which everybody may without a filter.
pub(crate) fn unshare_nothing() -> io::Result<()> {
    // SAFETY: takes a plain number.
    checked(unsafe { libc::unshare(0) }.into())
}

fn checked(result: i64) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

//! The system calls that a running agent makes: a list of what is allowed, since it is one known
//! program. Everything else is refused, so a call that a later version needs fails by its name.
//!
//! What it calls only until it serves is not here. Neither is what it can do without: `mremap`
//! (memory is copied), `lseek` (a hint of sizes), `sched_getaffinity` and `sigaltstack` (the words
//! at a stack overflow), `set_robust_list` (it holds no such lock), `getrandom` (/dev/urandom is
//! read instead; OpenSSL insists), `clock_gettime` (the kernel maps the clock, or else there is no
//! filter), `waitid` (its ended launcher is reaped by itself), `getpeername` (who asked).

use std::collections::BTreeMap;
use std::io;

use seccompiler::{SeccompAction, SeccompCmpOp as Compare, SeccompRule, sock_filter};

use super::syscalls::{LAST, compile_with, known_only, rule};

/// Each call, and what an agent makes it for.
pub(super) const ALLOWED: &[(i64, &str)] = &[
    // Files: the log of the global bus, deployments, the run directory, /proc/self.
    (libc::SYS_openat, "logs, deployments, app.toml, directories"),
    (libc::SYS_read, "files, and bells"),
    (libc::SYS_pread64, "records of the log"),
    (libc::SYS_write, "files, bells, its own words"),
    (libc::SYS_close, "all of them"),
    (libc::SYS_statx, "is it there, whose is it, how long"),
    (
        libc::SYS_newfstatat,
        "directories that are listed, memory that is mapped",
    ),
    (libc::SYS_readlink, "where a declared path leads"),
    (
        libc::SYS_faccessat2,
        "whether a declared path is a directory",
    ),
    (libc::SYS_getdents64, "segments of a log, deployments"),
    (libc::SYS_mkdir, "an application's directories"),
    (libc::SYS_rename, "epoch and deployment are replaced whole"),
    (libc::SYS_unlink, "old segments, its own socket"),
    (libc::SYS_unlinkat, "undeploy --purge"),
    (libc::SYS_ftruncate, "a torn end of a log, its own memory"),
    (libc::SYS_fsync, "deployments"),
    (libc::SYS_fdatasync, "what was accepted"),
    (libc::SYS_flock, "a log has one writer"),
    (libc::SYS_fcntl, "close-on-exec, non-blocking, seals"),
    // Connections: the front door, control, inits, launcher, the service manager.
    (libc::SYS_socket, "Unix sockets; see [`rules`] for others"),
    (libc::SYS_socketpair, "an answer of the launcher"),
    (libc::SYS_connect, "to an init"),
    (libc::SYS_accept4, "front door, control"),
    (libc::SYS_recvfrom, "requests"),
    (libc::SYS_sendto, "answers"),
    (libc::SYS_writev, "answers with their heads"),
    (
        libc::SYS_recvmsg,
        "with descriptors: init, launcher, guardian",
    ),
    (libc::SYS_sendmsg, "the same"),
    (libc::SYS_shutdown, "the end of a connection"),
    (libc::SYS_getsockopt, "who is at the other end"),
    (libc::SYS_setsockopt, "time limits, no delay"),
    // Memory.
    (libc::SYS_mmap, "allocation, segments; nothing to execute"),
    (libc::SYS_mprotect, "the same"),
    (libc::SYS_munmap, "the same"),
    (
        libc::SYS_brk,
        "allocation of the first thread, which takes a refusal for memory",
    ),
    (libc::SYS_madvise, "stacks of ended threads, huge pages"),
    (
        libc::SYS_memfd_create,
        "a spec for the launcher, pools that grow",
    ),
    // Threads and time.
    (libc::SYS_clone, "threads; no processes"),
    (libc::SYS_rseq, "each thread's start"),
    (libc::SYS_rt_sigprocmask, "each thread's start"),
    (libc::SYS_rt_sigreturn, "the end of a signal's handler"),
    (libc::SYS_prctl, "the name of a thread, nothing else"),
    (libc::SYS_futex, "locks, bells"),
    (libc::SYS_sched_yield, "before a wait"),
    (libc::SYS_clock_nanosleep, "pauses"),
    (
        libc::SYS_restart_syscall,
        "a pause that SIGSTOP interrupted",
    ),
    (libc::SYS_exit, "the end of a thread"),
    (libc::SYS_exit_group, "the end"),
    // Waiting.
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_epoll_wait, "the runtime"),
    (libc::SYS_epoll_ctl, "the runtime"),
    (libc::SYS_eventfd2, "bells"),
    (libc::SYS_ppoll, "a process has ended"),
    // Itself and others.
    (
        libc::SYS_prlimit64,
        "its own limit of descriptors, told where it is hit",
    ),
    (libc::SYS_getpid, "whether it is a fork"),
    (libc::SYS_geteuid, "whose directories are ours"),
    (libc::SYS_pidfd_send_signal, "an init that does not end"),
];

/// With rings, and without.
pub(super) const BY_RING: [(i64, &str); 4] = [
    (libc::SYS_io_uring_setup, "the bus thread's ring"),
    (libc::SYS_io_uring_register, "the same"),
    (libc::SYS_io_uring_enter, "the same"),
    (libc::SYS_dup3, "its number is hidden from children"),
];
pub(super) const BY_EPOLL: [(i64, &str); 2] = [
    (libc::SYS_epoll_create1, "the bus thread's descriptors"),
    (libc::SYS_epoll_pwait, "the same"),
];

/// With connections of its own over a network, to Kafka or to who takes spans: their clients, the
/// C library's search for names, and OpenSSL. Drawn up by tracing all of them, brokers that died
/// and came back, names, TLS and SASL among it.
pub(super) const BY_NETWORK: [(i64, &str); 9] = [
    #[cfg(target_arch = "x86_64")]
    (
        libc::SYS_poll,
        "librdkafka's connections, answers of a name server",
    ),
    (
        libc::SYS_pipe2,
        "by which librdkafka's threads wake each other",
    ),
    (
        libc::SYS_bind,
        "netlink: which kinds of addresses there are",
    ),
    (
        libc::SYS_getsockname,
        "the same, and the order of addresses",
    ),
    (libc::SYS_sendmmsg, "two questions to a name server at once"),
    (libc::SYS_ioctl, "how long its answer is, nothing else"),
    (libc::SYS_uname, "the host's own name among the names"),
    (libc::SYS_lseek, "the end of /etc/hosts"),
    (
        libc::SYS_getrandom,
        "OpenSSL, which ends the process without it",
    ),
];

/// What decides which calls an agent makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Needs {
    /// Its bus threads wait by rings.
    pub(super) ring: bool,
    /// It connects to Kafka, or sends spans.
    pub(super) network: bool,
}

/// The calls of such an agent.
pub(super) fn calls(needs: Needs) -> impl Iterator<Item = i64> {
    let waits: &[(i64, &str)] = if needs.ring { &BY_RING } else { &BY_EPOLL };
    let connects: &[(i64, &str)] = if needs.network { &BY_NETWORK } else { &[] };
    ALLOWED
        .iter()
        .chain(waits)
        .chain(connects)
        .map(|(call, _)| *call)
}

/// The filters, in the order in which they are to be installed.
pub(super) fn filters(needs: Needs) -> io::Result<Vec<Vec<sock_filter>>> {
    let allow = SeccompAction::Allow;
    let refuse = || SeccompAction::Errno(libc::EPERM as u32);
    let absent = SeccompAction::Errno(libc::ENOSYS as u32);
    // Its flags lie in memory, where no filter sees them. The C library then uses `clone`.
    let no_clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let first = compile_with(no_clone3, allow.clone(), absent)?;
    Ok(vec![
        known_only(first, LAST),
        compile_with(rules(needs)?, refuse(), allow)?,
    ])
}

fn rules(needs: Needs) -> io::Result<BTreeMap<i64, Vec<SeccompRule>>> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        calls(needs).map(|call| (call, Vec::new())).collect();
    let thread = libc::CLONE_THREAD as u64;
    let execute = libc::PROT_EXEC as u64;
    let bounded = [
        (libc::SYS_clone, (0, Compare::MaskedEq(thread), thread)),
        (libc::SYS_mmap, (2, Compare::MaskedEq(execute), 0)),
        (libc::SYS_mprotect, (2, Compare::MaskedEq(execute), 0)),
        (libc::SYS_prlimit64, (0, Compare::Eq, 0)),
        (libc::SYS_prctl, (0, Compare::Eq, libc::PR_SET_NAME as u64)),
    ];
    // Absent by the other filter; of two refusals the kernel would tell this one's.
    rules.insert(libc::SYS_clone3, Vec::new());
    for (call, condition) in bounded {
        rules.insert(call, vec![rule([condition])?]);
    }
    let is_family = |family: libc::c_int| rule([(0, Compare::Eq, family as u64)]);
    let mut families = vec![is_family(libc::AF_UNIX)?];
    if needs.network {
        families.extend([is_family(libc::AF_INET)?, is_family(libc::AF_INET6)?]);
        // Route only: which addresses there are.
        let netlink = [
            (0, Compare::Eq, libc::AF_NETLINK as u64),
            (2, Compare::Eq, libc::NETLINK_ROUTE as u64),
        ];
        families.push(rule(netlink)?);
        let length = (1, Compare::Eq, libc::FIONREAD);
        rules.insert(libc::SYS_ioctl, vec![rule([length])?]);
    }
    rules.insert(libc::SYS_socket, families);
    Ok(rules)
}

pub(super) fn describe(needs: Needs) -> String {
    let count = calls(needs).count();
    format!("{count} system calls are allowed, no process, nothing to execute")
}

//! The system calls that a grain has no use for, and that have led out of sandboxes before.
//!
//! A list of what is refused, not of what is allowed: a grain may be any program, and what a Java
//! or Python of next year calls to allocate memory is not known here. What the kernel of next year
//! adds is: everything above [`LAST`] does not exist inside.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Compare,
    SeccompCondition, SeccompFilter, SeccompRule, sock_filter,
};

/// The last system call of Linux 6.18 (`file_setattr`), the same on every architecture. What is
/// above it is of a later kernel, or of x32, whose numbers have bit 30.
pub(super) const LAST: u32 = 469;

/// Refused with EPERM, whatever their arguments.
const REFUSED: &[i64] = &[
    // Another view of the file system, or a way round one.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    OPEN_TREE_ATTR,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    // Other namespaces.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    // Into other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    // Large parts of the kernel that are attacked again and again, and keys that have no namespace.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // The machine.
    libc::SYS_kexec_load,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

/// Newer than the C library's list.
const OPEN_TREE_ATTR: i64 = 467;

/// A ring makes calls that no filter sees, so it is refused where it is not asked for.
const IO_URING: [i64; 3] = [
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
];

/// The namespaces that `clone` could make; `CLONE_NEWTIME` has no bit there.
const NEW_NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];

/// Every other family is a part of the kernel that grains have no use for, or, like vsock, leads to
/// the machine's host past the network namespace.
const FAMILIES: [libc::c_int; 4] = [
    libc::AF_UNIX,
    libc::AF_INET,
    libc::AF_INET6,
    libc::AF_NETLINK,
];

/// Controls of a terminal that type for its user.
const TYPING: [u64; 2] = [libc::TIOCSTI, TIOCLINUX];
const TIOCLINUX: u64 = 0x541c;

/// `personality` that only asks, and the ordinary one.
const PERSONALITIES: [u64; 2] = [0, 0xffff_ffff];

/// The filters in the order in which they are to be installed; the kernel takes the strictest
/// answer of all.
pub(super) fn filters(io_uring: bool) -> io::Result<Vec<Vec<sock_filter>>> {
    let absent = SeccompAction::Errno(libc::ENOSYS as u32);
    // Its flags lie in memory, where no filter sees them. The C library then uses `clone`.
    let no_clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    Ok(vec![
        known_only(compile(no_clone3, absent)?, LAST),
        compile(rules(io_uring)?, refused)?,
    ])
}

pub(super) fn describe(io_uring: bool) -> String {
    let rules = rules(io_uring).map_or(0, |rules| rules.len());
    let ring = if io_uring { "; io_uring is let in" } else { "" };
    format!("{rules} system calls are refused or restricted{ring}")
}

fn rules(io_uring: bool) -> io::Result<BTreeMap<i64, Vec<SeccompRule>>> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    if !io_uring {
        rules.extend(IO_URING.map(|call| (call, Vec::new())));
    }
    let any_new = NEW_NAMESPACES
        .iter()
        .map(|flag| rule([(0, Compare::MaskedEq(*flag as u64), *flag as u64)]));
    rules.insert(libc::SYS_clone, any_new.collect::<io::Result<_>>()?);
    let other_family = FAMILIES.map(|family| (0, Compare::Ne, family as u64));
    rules.insert(libc::SYS_socket, vec![rule(other_family)?]);
    let other_personality = PERSONALITIES.map(|known| (0, Compare::Ne, known));
    rules.insert(libc::SYS_personality, vec![rule(other_personality)?]);
    let types = TYPING
        .iter()
        .map(|control| rule([(1, Compare::Eq, *control)]));
    rules.insert(libc::SYS_ioctl, types.collect::<io::Result<_>>()?);
    Ok(rules)
}

/// A rule that matches if all conditions on (argument, comparison, value) do. The kernel looks at
/// the lower half of each of these arguments, and so does the rule.
pub(super) fn rule<const N: usize>(conditions: [(u8, Compare, u64); N]) -> io::Result<SeccompRule> {
    let conditions = conditions
        .into_iter()
        .map(|(argument, compare, value)| {
            SeccompCondition::new(argument, Length::Dword, compare, value)
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(io::Error::other)?;
    SeccompRule::new(conditions).map_err(io::Error::other)
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    action: SeccompAction,
) -> io::Result<Vec<sock_filter>> {
    compile_with(rules, SeccompAction::Allow, action)
}

/// What no rule matches gets `others`, what one does gets `matched`.
pub(super) fn compile_with(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    others: SeccompAction,
    matched: SeccompAction,
) -> io::Result<Vec<sock_filter>> {
    let arch = std::env::consts::ARCH
        .try_into()
        .map_err(io::Error::other)?;
    let filter = SeccompFilter::new(rules, others, matched, arch);
    let program: Result<BpfProgram, _> = filter.and_then(TryInto::try_into);
    program.map_err(io::Error::other)
}

/// Puts a look at the number in front: the compiler knows single numbers only. Its own jumps are
/// relative and stay right.
pub(super) fn known_only(program: Vec<sock_filter>, last: u32) -> Vec<sock_filter> {
    let step = |code: u32, jt: u8, jf: u8, k: u32| sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let number = std::mem::offset_of!(libc::seccomp_data, nr) as u32;
    let absent = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    let mut steps = vec![
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, number),
        step(libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K, 0, 1, last),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, absent),
    ];
    steps.extend(program);
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{self, GiveUp, run_in_child};

    #[test]
    fn what_a_later_kernel_adds_does_not_exist_inside() {
        // As if the list had ended before `unshare`: this kernel has no later one to try.
        let before = u32::try_from(libc::SYS_unshare).unwrap() - 1;
        let after_the_last = |last: u32| {
            let nothing = compile(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), REFUSE);
            let filters = [known_only(nothing.unwrap(), last)];
            let give_up = GiveUp {
                privileges: true,
                filters: &filters,
                ..GiveUp::default()
            };
            let tried = run_in_child(0, None, None, &|| {
                sys::give_up(&give_up).map_err(|(_, error)| error)?;
                sys::unshare_nothing()
            });
            tried.err().and_then(|error| error.raw_os_error())
        };
        assert_eq!(after_the_last(before), Some(libc::ENOSYS));
        assert_eq!(after_the_last(LAST), None);
    }

    const REFUSE: SeccompAction = SeccompAction::Errno(libc::EPERM as u32);
}

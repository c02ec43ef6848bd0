//! Which system calls a grain can make, and with what.
#![forbid(unsafe_code)]

mod common;

use std::process::Command;

use common::probe::{holds, probe};
use common::{PROBER, Scene, skip, users};
use serde_json::Value;

const EPERM: i64 = 1;
const ENOSYS: i64 = 38;

/// Calls that are refused whatever they ask, by number, so that no name is missed.
fn refused_numbers() -> Vec<i64> {
    use libc::*;
    vec![
        SYS_mount,
        SYS_umount2,
        SYS_pivot_root,
        SYS_chroot,
        SYS_open_tree,
        SYS_move_mount,
        SYS_fsopen,
        SYS_fsconfig,
        SYS_fsmount,
        SYS_fspick,
        SYS_mount_setattr,
        467,
        SYS_name_to_handle_at,
        SYS_open_by_handle_at,
        SYS_fanotify_init,
        SYS_quotactl,
        SYS_quotactl_fd,
        SYS_unshare,
        SYS_setns,
        SYS_sethostname,
        SYS_setdomainname,
        SYS_ptrace,
        SYS_process_vm_readv,
        SYS_process_vm_writev,
        SYS_process_madvise,
        SYS_kcmp,
        SYS_migrate_pages,
        SYS_move_pages,
        SYS_bpf,
        SYS_perf_event_open,
        SYS_userfaultfd,
        SYS_add_key,
        SYS_request_key,
        SYS_keyctl,
        SYS_kexec_load,
        SYS_reboot,
        SYS_swapon,
        SYS_swapoff,
        SYS_init_module,
        SYS_finit_module,
        SYS_delete_module,
        SYS_acct,
        SYS_syslog,
        SYS_settimeofday,
        SYS_clock_settime,
        SYS_clock_adjtime,
        SYS_adjtimex,
        SYS_io_uring_setup,
        SYS_io_uring_enter,
        SYS_io_uring_register,
        #[cfg(target_arch = "x86_64")]
        SYS_kexec_file_load,
        #[cfg(target_arch = "x86_64")]
        SYS_iopl,
        #[cfg(target_arch = "x86_64")]
        SYS_ioperm,
        #[cfg(target_arch = "x86_64")]
        SYS_modify_ldt,
    ]
}

/// What the machine itself refuses to root, with or without a filter (lockdown).
const LOCKED_DOWN: [i64; 1] = [libc::SYS_kexec_load];

/// It takes no argument that could be wrong: outside it would do its work.
const INSIDE_ONLY: i64 = libc::SYS_vhangup;

#[test]
fn each_system_call_of_the_list_is_refused_inside_and_not_by_anything_else_outside() {
    let numbers = refused_numbers();
    let asked: Vec<String> = numbers.iter().map(|n| format!("call:{n}")).collect();
    let inside = [&asked[..], &[format!("call:{INSIDE_ONLY}")]].concat();
    for uid in users() {
        let (said, on) = probe(uid, &inside, |_| {});
        if !holds(&on, "system call filter") {
            return;
        }
        for order in &inside {
            assert_eq!(said[order], EPERM, "{order} of {uid:?}");
        }
    }
    if !common::is_root() {
        return skip("only root is let in by the kernel itself");
    }
    let said = outside(&asked);
    for (number, order) in numbers.iter().zip(&asked) {
        let locked = LOCKED_DOWN.contains(number);
        assert!(
            locked || said[order] != EPERM,
            "{order} proves nothing here"
        );
    }
}

/// The same orders to a prober that nothing confines.
fn outside(orders: &[String]) -> Value {
    let scene = Scene::new();
    let said = scene.path().join("said");
    let mut command = Command::new(PROBER);
    let mut child = command.arg(&said).args(orders).spawn().unwrap();
    common::until("the prober has obeyed", || said.exists());
    child.kill().unwrap();
    child.wait().unwrap();
    serde_json::from_slice(&std::fs::read(said).unwrap()).unwrap()
}

#[test]
fn what_a_call_asks_for_decides_where_some_of_it_is_needed() {
    let new = |flag: libc::c_int| format!("clone:{flag}");
    let refused = [
        new(libc::CLONE_NEWUSER),
        new(libc::CLONE_NEWNS),
        new(libc::CLONE_NEWPID),
        new(libc::CLONE_NEWNET),
        new(libc::CLONE_NEWIPC),
        new(libc::CLONE_NEWUTS),
        new(libc::CLONE_NEWCGROUP),
        new(libc::CLONE_NEWUSER | libc::CLONE_NEWNET),
        format!("socket:{}", libc::AF_VSOCK),
        format!("socket:{}", libc::AF_ALG),
        format!("socket:{}", libc::AF_PACKET),
        format!("ioctl:{}", libc::TIOCSTI),
        format!("personality:{}", libc::ADDR_NO_RANDOMIZE),
    ];
    let allowed = [
        new(0),
        "threads".into(),
        "run:/bin/true".into(),
        format!("socket:{}", libc::AF_UNIX),
        format!("socket:{}", libc::AF_INET),
        format!("socket:{}", libc::AF_INET6),
        format!("personality:{}", 0xffff_ffff_u32),
    ];
    // Of a later kernel, and of x32; the last is in memory, where no filter looks.
    let absent = [
        "call:470".into(),
        "call:1000".into(),
        format!("call:{}", 0x4000_0000_i64 + libc::SYS_ptrace),
        format!("call:{}", libc::SYS_clone3),
    ];
    let asked: Vec<String> = [&refused[..], &allowed, &absent].concat();
    for uid in users() {
        let (said, on) = probe(uid, &asked, |_| {});
        if !holds(&on, "system call filter") {
            return;
        }
        let expect = |orders: &[String], outcome: i64| {
            for order in orders {
                assert_eq!(said[order], outcome, "{order} of {uid:?}");
            }
        };
        expect(&refused, EPERM);
        expect(&allowed, 0);
        expect(&absent, ENOSYS);
    }
}

#[test]
fn io_uring_is_let_in_only_where_it_is_asked_for() {
    let order = format!("call:{}", libc::SYS_io_uring_setup);
    let asked = [order.clone()];
    let (said, on) = probe(None, &asked, |spec| spec.io_uring = true);
    if holds(&on, "system call filter") {
        assert_ne!(said[&order], EPERM, "{said}");
        let (said, _) = probe(None, &asked, |_| {});
        assert_eq!(said[&order], EPERM);
    }
}

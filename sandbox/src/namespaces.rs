//! Which namespaces this machine grants to this user.

use crate::sys::{UserMap, run_in_child};
use crate::{Isolation, IsolationItem};

pub(crate) const USER: u64 = libc::CLONE_NEWUSER as u64;
pub(crate) const PID: u64 = libc::CLONE_NEWPID as u64;
pub(crate) const MOUNT: u64 = libc::CLONE_NEWNS as u64;
pub(crate) const UTS: u64 = libc::CLONE_NEWUTS as u64;
pub(crate) const NETWORK: u64 = libc::CLONE_NEWNET as u64;

/// Every namespace but the user's, which is only a means to get the others.
pub(crate) const NAMESPACES: [(&str, u64); 6] = [
    ("pid namespace", PID),
    ("mount namespace", MOUNT),
    ("ipc namespace", libc::CLONE_NEWIPC as u64),
    ("uts namespace", UTS),
    ("network namespace", NETWORK),
    ("cgroup namespace", libc::CLONE_NEWCGROUP as u64),
];

pub(crate) const REMEDY: &str = "run the agent as root, or allow unprivileged user namespaces \
                                 (sysctl user.max_user_namespaces, \
                                 kernel.unprivileged_userns_clone=1, \
                                 kernel.apparmor_restrict_unprivileged_userns=0)";

/// The namespaces that an application wants.
pub(crate) fn wanted(isolation: &Isolation) -> u64 {
    let wants = [
        isolation.pid,
        isolation.mount,
        isolation.ipc,
        isolation.uts,
        isolation.network,
        isolation.cgroup,
    ];
    NAMESPACES
        .iter()
        .zip(wants)
        .filter(|(_, want)| *want)
        .map(|((_, flag), _)| flag)
        .sum()
}

/// What to ask of clone3, one after the other, until something is granted: everything, everything
/// in a user namespace, what works alone, nothing.
pub(crate) fn attempts(wanted: u64) -> impl Iterator<Item = u64> {
    let all = [wanted, wanted | USER]
        .into_iter()
        .filter(move |_| wanted != 0);
    let subset = std::iter::once_with(move || granted(wanted)).filter(move |_| wanted != 0);
    all.chain(subset).chain([0])
}

/// The largest set of the wanted ones that work alone, with or without a user namespace.
fn granted(wanted: u64) -> u64 {
    let works = |user: u64| {
        NAMESPACES
            .iter()
            .filter(|(_, flag)| wanted & flag != 0 && try_namespace(flag | user).is_ok())
            .fold(0, |set, (_, flag)| set | flag)
    };
    let (plain, in_user) = (works(0), works(USER));
    if in_user.count_ones() > plain.count_ones() {
        in_user | USER
    } else {
        plain
    }
}

/// Makes a child in these namespaces and lets it end.
pub(crate) fn try_namespace(flags: u64) -> std::io::Result<()> {
    let map = UserMap::caller_as_root();
    run_in_child(flags, (flags & USER != 0).then_some(&map), None, &|| Ok(()))
}

/// Says what was granted of what was wanted.
pub(crate) fn report(wanted: u64, granted: u64) -> Vec<IsolationItem> {
    let mut items: Vec<IsolationItem> = NAMESPACES
        .iter()
        .map(|(name, flag)| {
            if granted & flag != 0 {
                IsolationItem::on(name, "")
            } else if wanted & flag == 0 {
                IsolationItem::not_wanted(name)
            } else {
                let reason = match (try_namespace(*flag), try_namespace(flag | USER)) {
                    (Err(plain), Err(in_user)) => {
                        format!("{plain}; in a user namespace: {in_user}")
                    }
                    _ => "granted alone, but not together with the others".into(),
                };
                IsolationItem::off(name, reason, REMEDY)
            }
        })
        .collect();
    items.push(if granted & USER != 0 {
        IsolationItem::on("user namespace", "root inside is the agent's user outside")
    } else {
        IsolationItem::off("user namespace", "not needed for the others", "")
    });
    items
}

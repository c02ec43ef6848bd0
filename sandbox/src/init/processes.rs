//! The process tree below init, read from /proc: how a family is found where no cgroup holds it.

use std::collections::BTreeMap;
use std::fs;

use rustix::process::{Pid, Signal, kill_process};

/// Kills every descendant of this process that has no ancestor among `living` and is not one of
/// them itself; returns how many there were. A child that a living worker's instance left behind
/// is among them: it has no family any more.
///
/// It may have to be called again: a process can fork before its signal arrives.
pub(super) fn kill_strays(living: &[Pid]) -> usize {
    let Some(tree) = Tree::read() else { return 0 };
    let strays: Vec<Pid> = tree.strays(living).collect();
    for pid in &strays {
        let _ = kill_process(*pid, Signal::KILL);
    }
    strays.len()
}

#[derive(Default)]
struct Tree {
    /// Init's number in this /proc, which may be the host's.
    own: i32,
    processes: BTreeMap<i32, Process>,
}

struct Process {
    parent: i32,
    /// The number in init's own pid namespace.
    inner: i32,
}

impl Tree {
    fn read() -> Option<Tree> {
        let own = fs::read_link("/proc/self").ok()?.to_str()?.parse().ok()?;
        let mut processes = BTreeMap::new();
        for entry in fs::read_dir("/proc").ok()?.flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let Ok(status) = fs::read_to_string(entry.path().join("status")) else {
                continue;
            };
            if let Some(process) = parse_status(&status) {
                processes.insert(pid, process);
            }
        }
        Some(Tree { own, processes })
    }

    fn strays<'t>(&'t self, living: &'t [Pid]) -> impl Iterator<Item = Pid> + 't {
        self.processes.iter().filter_map(move |(pid, process)| {
            let is_living = |process: &Process| {
                living
                    .iter()
                    .any(|living| living.as_raw_nonzero().get() == process.inner)
            };
            let mut ancestor = (*pid, process);
            // A tree that changes while it is read may hold a loop: its depth is bounded.
            for _ in 0..self.processes.len() {
                if is_living(ancestor.1) || *pid == self.own {
                    return None;
                }
                if ancestor.1.parent == self.own {
                    return Pid::from_raw(process.inner);
                }
                let parent = ancestor.1.parent;
                ancestor = (parent, self.processes.get(&parent)?);
            }
            None
        })
    }
}

fn parse_status(status: &str) -> Option<Process> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let parent = field("PPid:")?.trim().parse().ok()?;
    let inner = field("NSpid:")?.split_whitespace().last()?.parse().ok()?;
    Some(Process { parent, inner })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strays_are_the_descendants_without_a_living_worker_above_them() {
        let process = |parent: i32, inner: i32| Process { parent, inner };
        let tree = Tree {
            own: 100,
            processes: BTreeMap::from([
                (1, process(0, 1)),
                (2, process(1, 2)),
                (100, process(1, 10)),
                (101, process(100, 11)), // a living worker
                (102, process(101, 12)), // its instance
                (103, process(100, 13)), // left behind by a dead worker
                (104, process(103, 14)), // its child
            ]),
        };
        let living = [Pid::from_raw(11).unwrap()];
        let strays: Vec<i32> = tree
            .strays(&living)
            .map(|pid| pid.as_raw_nonzero().get())
            .collect();
        assert_eq!(strays, [13, 14]);
    }
}

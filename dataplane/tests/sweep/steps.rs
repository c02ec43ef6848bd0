//! A process that is stepped, one instruction at a time.

use crate::sandbox::{Sandbox, exit};
use sandpipe::{Bus, FamilyIndex, Mapping, Participant};

/// A family's process, stopped between `prepare` and `work`.
pub fn stopped<P>(
    sandbox: &mut Sandbox,
    family: FamilyIndex,
    prepare: impl FnOnce(Participant, Bus<Mapping>) -> P,
    work: impl FnOnce(&mut P),
) -> i32 {
    let pid = sandbox.spawn(family, |participant, bus| {
        let mut prepared = prepare(participant, bus);
        stop_traced();
        work(&mut prepared);
        stop();
        exit(0);
    });
    wait_stopped(sandbox, pid);
    pid
}

/// Asks to be traced by the parent and stops.
pub fn stop_traced() {
    // SAFETY: a request about the calling process, whose parent waits for the stop.
    unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) };
    stop();
}

/// The last stop ends the sweep.
pub fn stop() {
    // SAFETY: stops the calling process.
    unsafe { libc::raise(libc::SIGSTOP) };
}

/// Serves the sandbox until a child has reached its first stop.
pub fn wait_stopped(sandbox: &mut Sandbox, pid: i32) {
    let mut status = 0;
    // SAFETY: waits for a child of this test.
    while unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } == 0 {
        sandbox.serve();
        std::thread::yield_now();
    }
    assert!(
        libc::WIFSTOPPED(status),
        "the process did not reach its first stop: {status:x}"
    );
}

/// One instruction further; false once the work is done.
pub fn step(pid: i32) -> bool {
    let mut status = 0;
    // SAFETY: steps and waits for a traced child of this test.
    unsafe {
        libc::ptrace(libc::PTRACE_SINGLESTEP, pid, 0, 0);
        libc::waitpid(pid, &raw mut status, 0);
    }
    libc::WIFSTOPPED(status) && libc::WSTOPSIG(status) != libc::SIGSTOP
}

/// Every step is a switch between this thread and the stepped process: far cheaper on one core.
/// Tests that run side by side take turns among the cores.
pub fn stay_on_one_core(test: usize) {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let cpus = (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu));
    let cpus: Vec<_> = cpus.collect();
    let mut one = rustix::thread::CpuSet::new();
    one.set(cpus[test % cpus.len()]);
    rustix::thread::sched_setaffinity(None, &one).unwrap();
}

//! Init waits for its children, its sockets and its clock through each waiter that it may get.
#![allow(
    unsafe_code,
    reason = "a child that forbids itself io_uring before its exec"
)]

mod common;

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use common::{Agent, HELPER, Scene, kill, skip, until};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use sandpipe::wait::{Loop, WAITER_VARIABLE, WaiterKind};
use sandpipe_sandbox::WorkerState;

/// How an agent is started, and what its init must wait through then.
#[derive(Clone, Copy, Debug)]
enum Way {
    Forced(WaiterKind),
    /// A container's filter answers EPERM to io_uring_setup.
    Refused,
}

/// Each way that this machine has.
fn each(mut test: impl FnMut(Way)) {
    match WaiterKind::IoUring.open(Loop::Own) {
        Ok(_) => test(Way::Forced(WaiterKind::IoUring)),
        Err(error) => skip(&format!("init on io_uring: {error}")),
    }
    test(Way::Forced(WaiterKind::Futex));
    test(Way::Forced(WaiterKind::Spin));
    test(Way::Refused);
}

fn agent(scene: &Scene, moods: &[&str], way: Way) -> Agent {
    let agent = Agent::start_with(&scene.spec(moods), Stdio::null(), |command| match way {
        Way::Forced(kind) => drop(command.env(WAITER_VARIABLE, kind.name())),
        // SAFETY: makes two system calls with data of this frame, allocates nothing.
        Way::Refused => drop(unsafe { command.env_remove(WAITER_VARIABLE).pre_exec(refuse) }),
    });
    let has_ring = matches!(way, Way::Forced(WaiterKind::IoUring));
    assert_eq!(maps_a_ring(agent.init()), has_ring, "{way:?}");
    agent
}

/// Lets io_uring_setup fail with EPERM in this process and all that it starts.
fn refuse() -> io::Result<()> {
    let step = |code: u32, jump: u8, k: u32| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: jump,
        k,
    };
    let number = libc::SYS_io_uring_setup as u32;
    let mut steps = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, number),
        step(
            libc::BPF_RET,
            0,
            libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
        ),
        step(libc::BPF_RET, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog {
        len: steps.len() as u16,
        filter: steps.as_mut_ptr(),
    };
    // SAFETY: the program and its steps live until the calls return.
    let refused = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const filter,
            ) == 0
    };
    if refused {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn maps_a_ring(pid: i32) -> bool {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    maps.contains("io_uring")
}

fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

fn all_run(agent: &mut Agent) -> bool {
    let status = agent.status();
    let mut workers = status.workers.iter();
    workers.all(|worker| worker.state == WorkerState::Running)
}

/// The answer of a stranger who asks for the state.
fn ask(scene: &Scene) -> std::process::Child {
    let socket = scene.app_dir().join("sock");
    let mut command = Command::new(HELPER);
    command.arg("ask").arg(socket).stdout(Stdio::piped());
    command.spawn().unwrap()
}

fn is_answered(asker: std::process::Child) -> bool {
    let said = asker.wait_with_output().unwrap();
    String::from_utf8_lossy(&said.stdout).contains("uptime_ms")
}

#[test]
fn init_serves_restarts_is_adopted_and_ends_through_each_waiter() {
    each(|way| {
        let scene = Scene::new();
        let mut first = agent(&scene, &["beating", "crashing", "orphans"], way);
        // Nobody asks meanwhile: its time alone wakes init.
        until("the grain that crashes was restarted", || {
            scene.starts("crashing-1").len() > 2
        });
        until("the orphans are reaped", || {
            first.status().orphans_reaped >= 20
        });
        let worker = first.status().workers[0].pid.unwrap();
        assert!(!maps_a_ring(i32::try_from(worker).unwrap()), "{way:?}");
        let (init, cgroups) = (first.init(), scene.cgroups());
        first.kill();
        let mut second = Agent::start(&scene.spec(&["beating", "crashing", "orphans"]));
        assert_eq!(
            (second.init(), &second.hello["adopted"]),
            (init, &true.into())
        );
        second.shut_down();
        second.kill();
        scene.assert_nothing_left(&cgroups);
    });
}

#[test]
fn what_init_closes_is_closed_through_each_waiter() {
    each(|way| {
        let scene = Scene::new();
        let mut agent = agent(&scene, &["beating"], way);
        until("the worker runs", || all_run(&mut agent));
        let before = descriptors(agent.init());
        for _ in 0..20 {
            assert!(is_answered(ask(&scene)), "{way:?}");
        }
        let worker = agent.status().workers[0].pid.unwrap();
        kill(i32::try_from(worker).unwrap());
        until("the worker was started again", || {
            agent.status().workers[0].restarts == 1 && all_run(&mut agent)
        });
        until("init has no more descriptors than before", || {
            descriptors(agent.init()) <= before
        });
        agent.shut_down();
    });
}

/// Processor time of a process so far.
fn spent(pid: i32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

#[test]
fn without_a_descriptor_left_init_sleeps_and_lets_in_later() {
    each(|way| {
        let scene = Scene::new();
        let mut agent = agent(&scene, &["beating"], way);
        until("the worker runs", || all_run(&mut agent));
        let init = Pid::from_raw(agent.init());
        let few = Rlimit {
            current: Some(3),
            ..rustix::process::getrlimit(Resource::Nofile)
        };
        let before = prlimit(init, Resource::Nofile, few).unwrap();
        let asker = ask(&scene);
        // Time for it to knock, and for init to be told thousands of times.
        std::thread::sleep(Duration::from_millis(200));
        let (begin, busy) = (Instant::now(), spent(agent.init()));
        std::thread::sleep(Duration::from_millis(500));
        let busy = spent(agent.init()) - busy;
        assert!(busy < begin.elapsed() / 5, "{way:?}: {busy:?}");
        prlimit(init, Resource::Nofile, before).unwrap();
        assert!(is_answered(asker), "{way:?}");
        agent.shut_down();
    });
}

#[test]
fn stops_interrupt_neither_the_start_of_a_worker_nor_an_answer() {
    each(|way| {
        let scene = Scene::new();
        let mut agent = agent(&scene, &["beating", "beating"], way);
        let init = Pid::from_raw(agent.init()).unwrap();
        // Calls that wait end with EINTR when a stopped process goes on.
        let (stops, (test, gone)) = (AtomicU64::new(0), mpsc::channel::<()>());
        std::thread::scope(|scope| {
            // Dropped when the test is over, also when it fails.
            let _test = test;
            let stops = &stops;
            scope.spawn(move || {
                let pause = Duration::from_micros(200);
                while gone.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                    kill_process(init, Signal::STOP).unwrap();
                    kill_process(init, Signal::CONT).unwrap();
                    stops.fetch_add(1, Ordering::Relaxed);
                }
            });
            for restart in 1..=3 {
                until("both workers run", || all_run(&mut agent));
                for worker in agent.status().workers {
                    kill(i32::try_from(worker.pid.unwrap()).unwrap());
                }
                until("both were restarted", || {
                    let workers = agent.status().workers;
                    workers.iter().all(|worker| worker.restarts == restart)
                });
                assert!(is_answered(ask(&scene)), "{way:?}");
            }
        });
        let stops = stops.into_inner();
        assert!(stops > 100, "only {stops} stops");
        agent.shut_down();
    });
}

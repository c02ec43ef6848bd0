use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use super::processes;
use super::supervisor::Supervisor;
use super::worker::Phase;

/// How long killed processes may take to go before init leaves the rest to the kernel.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// A shutdown under way.
#[derive(Debug)]
pub(super) struct Ending {
    kill_at: Instant,
    killed: bool,
}

impl Ending {
    pub(super) fn next_step(&self) -> Instant {
        if self.killed {
            self.leave_at()
        } else {
            self.kill_at
        }
    }

    fn leave_at(&self) -> Instant {
        self.kill_at + KILL_TIMEOUT
    }
}

impl Supervisor {
    /// Asks every worker to end; those that have not after `timeout` are killed.
    pub(super) fn begin_shutdown(&mut self, timeout: Duration) {
        if self.ending.is_some() {
            return;
        }
        // A time limit of years is none that matters here.
        let timeout = timeout.min(Duration::from_secs(3600));
        self.ending = Some(Ending {
            kill_at: Instant::now() + timeout,
            killed: false,
        });
        for worker in &self.workers {
            worker.signal(Signal::TERM);
        }
    }

    /// Takes the next step of a shutdown when its time has come.
    pub(super) fn go_on_ending(&mut self) {
        let now = Instant::now();
        if let Some(ending) = self
            .ending
            .as_mut()
            .filter(|e| !e.killed && e.kill_at <= now)
        {
            ending.killed = true;
            for worker in &self.workers {
                worker.signal(Signal::KILL);
            }
        }
    }

    /// Whether init may leave: every family is gone, or does not go even when killed.
    pub(super) fn has_ended(&self) -> bool {
        let Some(ending) = &self.ending else {
            return false;
        };
        let stopped = self
            .workers
            .iter()
            .all(|worker| matches!(worker.phase, Phase::Stopped));
        if !stopped && Instant::now() < ending.leave_at() {
            return false;
        }
        // In a pid namespace the kernel would do this; without one, strays would stay.
        let deadline = Instant::now() + Duration::from_secs(1);
        while processes::kill_strays(&[] as &[Pid]) > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
            while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {}
        }
        true
    }
}

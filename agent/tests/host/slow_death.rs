//! An init that was killed and cannot end yet: a process of its sandbox does not die.

use std::fs;
use std::path::PathBuf;

use super::fleet::Fleet;
use super::harness::{kill, skip, until};

/// A cgroup whose processes stand still, and do not even die, until it goes.
struct Frozen(PathBuf);

impl Frozen {
    fn hold(pid: u32, name: &str) -> Option<Frozen> {
        let path = PathBuf::from("/sys/fs/cgroup/freezer").join(name);
        fs::create_dir(&path).ok()?;
        let frozen = Frozen(path);
        fs::write(frozen.0.join("cgroup.procs"), pid.to_string()).ok()?;
        fs::write(frozen.0.join("freezer.state"), "FROZEN").ok()?;
        until("it stands still", || {
            fs::read_to_string(frozen.0.join("freezer.state"))
                .unwrap()
                .trim()
                == "FROZEN"
        });
        Some(frozen)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("freezer.state"), "THAWED");
        let processes = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        for pid in processes.lines() {
            let _ = fs::write("/sys/fs/cgroup/freezer/cgroup.procs", pid);
        }
        until("the cgroup is removed", || fs::remove_dir(&self.0).is_ok());
    }
}

#[test]
fn an_agent_whose_init_takes_its_time_to_die_waits_and_does_not_believe_in_another_agent() {
    let fleet = Fleet::new();
    let agent = fleet.start();
    fleet.deploy(&fleet.write("x", &["a"], "", "mode = \"pool\""));
    assert_eq!(agent.post("x", "1").text(), "1a");
    let worker = agent.app("x").grains[0].pid.unwrap();
    let Some(frozen) = Frozen::hold(worker, &fleet.prefix) else {
        return skip("no cgroup v1 freezer that this user may use");
    };
    let init = fleet.inits("x")[0];
    kill(init, "KILL");
    until("the agent sees it", || {
        fleet.log().contains("the sandbox is gone")
    });
    // As long as a busy machine may take to end a whole sandbox.
    std::thread::sleep(std::time::Duration::from_millis(500));
    drop(frozen);
    let answer = agent.post("x", "2");
    assert_eq!(
        (answer.status, answer.text()),
        (200, "2a".into()),
        "{}",
        fleet.log()
    );
    assert_ne!(fleet.inits("x"), [init]);
    agent.stop();
    fleet.assert_clean();
}

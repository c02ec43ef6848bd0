//! Whether an application has the host's network: what it asks for, and the operator allows.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;

use super::fleet::{Agent, Fleet};
use super::harness::{kill, until};

impl Fleet {
    /// An application that asks for the host's network.
    fn write_host(&self, letter: &str) -> PathBuf {
        let file = self.write(letter, &["a"], "", "");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text + "network = \"host\"\n").unwrap();
        file
    }

    /// Writes an agent.toml that allows the host's network to these, and has it read.
    fn allow(&self, letters: &[&str], agent: Option<&Agent<'_>>) {
        let names: Vec<String> = letters.iter().map(|letter| self.app(letter)).collect();
        let text = format!("allow_host_network = {names:?}\n");
        std::fs::write(self.path("agent.toml"), text).unwrap();
        let Some(agent) = agent else { return };
        let reloads = || self.log().matches("reloaded: ").count();
        let before = reloads();
        kill(agent.pid(), "HUP");
        until("it has read it", || reloads() > before);
    }

    fn start_configured(&self) -> Agent<'_> {
        let mut command = self.command();
        command.arg("--config").arg(self.path("agent.toml"));
        Agent::start(self, command)
    }

    /// The row of the first application in `sandpipe ps --json`.
    fn row(&self) -> serde_json::Value {
        let output = self.sandpipe(&["ps", "--json"]);
        let rows = serde_json::from_slice::<serde_json::Value>(&output.stdout);
        rows.unwrap_or_else(|_| panic!("{output:?}"))[0].clone()
    }

    fn refused(&self, file: &std::path::Path) -> String {
        let output = self.sandpipe(&["deploy", file.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    }
}

/// What the application can connect to.
fn reach(agent: &Agent<'_>, letter: &str, places: &str) -> String {
    agent.post(letter, format!("a: reach {places}")).text()
}

#[test]
fn an_application_sees_loopback_only_and_the_hosts_network_where_that_is_allowed() {
    let fleet = Fleet::new();
    fleet.allow(&["y"], None);
    let agent = fleet.start_configured();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let name = fleet.app("listener");
    let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
    let _abstract_listener = UnixListener::bind_addr(&abstract_name).unwrap();
    let control = fleet.run_dir().join("agent.sock");
    let places = format!(
        "tcp:{} tcp:{} abstract:{name} unix:{}",
        listener.local_addr().unwrap(),
        agent.address,
        control.display()
    );
    fleet.deploy(&fleet.write("x", &["a"], "", ""));
    assert_eq!(reach(&agent, "x", "devices"), "lo");
    let nothing = "ConnectionRefused ConnectionRefused ConnectionRefused NotFound";
    assert_eq!(reach(&agent, "x", &places), nothing);
    assert_eq!(fleet.row()["network"], "loopback");
    assert!(!fleet.ok(&["ps"]).contains("host's network"));
    fleet.ok(&["undeploy", &fleet.app("x")]);
    fleet.deploy(&fleet.write_host("y"));
    let of_the_host = std::fs::read_dir("/sys/class/net").unwrap().count();
    let seen = reach(&agent, "y", "devices");
    assert_eq!(seen.split(',').count(), of_the_host, "{seen}");
    let addresses_only = "yes yes PermissionDenied NotFound";
    assert_eq!(reach(&agent, "y", &places), addresses_only);
    assert_eq!(fleet.row()["network"], "host");
    assert!(fleet.ok(&["ps"]).contains("shares the host's network"));
    // A version that does not ask for it does not have it.
    fleet.deploy(&fleet.write("y", &["a"], "", ""));
    assert_eq!(reach(&agent, "y", "devices"), "lo");
    assert_eq!(fleet.row()["network"], "loopback");
    agent.stop();
    fleet.assert_clean();
}

#[test]
fn the_hosts_network_is_refused_without_the_operators_leave_before_anything_starts() {
    let fleet = Fleet::new();
    fleet.allow(&["other"], None);
    let agent = fleet.start_configured();
    let asking = fleet.write_host("x");
    let words = fleet.refused(&asking);
    let add = format!(
        "add \"{}\" to allow_host_network in agent.toml",
        fleet.app("x")
    );
    assert!(words.contains(&add), "{words}");
    assert!(agent.status().deployments.is_empty());
    for directory in [
        fleet.path("data"),
        fleet.run_dir(),
        fleet.run_dir().join("1"),
    ] {
        let its = directory.join(fleet.app("x"));
        assert!(!its.exists(), "{} was made", its.display());
    }
    // What runs goes on, and no second sandbox was made.
    fleet.deploy(&fleet.write("x", &["a"], "", ""));
    let init = fleet.inits("x");
    fleet.refused(&fleet.write_host("x"));
    assert_eq!(agent.post("x", "1").text(), "1a");
    assert_eq!(
        (fleet.inits("x"), agent.status().deployments[0].version),
        (init, 1)
    );
    fleet.allow(&["x"], Some(&agent));
    assert!(fleet.deploy(&asking).contains("version 2 is deployed"));
    assert_eq!(fleet.row()["network"], "host");
    agent.stop();
    fleet.assert_clean();
}

#[test]
fn who_has_no_leave_any_more_does_not_outlive_the_agent_and_comes_back_with_it() {
    let fleet = Fleet::new();
    fleet.allow(&["x"], None);
    let agent = fleet.start_configured();
    fleet.deploy(&fleet.write_host("x"));
    assert_eq!(agent.post("x", "1").text(), "1a");
    agent.kill();
    assert_eq!(fleet.inits("x").len(), 1, "its sandbox lives on");
    fleet.allow(&[], None);
    let agent = fleet.start_configured();
    let row = fleet.row();
    let words = row["not_ready"].as_str().unwrap();
    assert!(
        words.contains("to allow_host_network in agent.toml"),
        "{row}"
    );
    assert_eq!((fleet.inits("x"), fleet.workers()), (vec![], vec![]));
    fleet.allow(&["x"], Some(&agent));
    until("it runs again", || fleet.row()["ready"] == true);
    assert_eq!(agent.post("x", "2").text(), "2a");
    agent.stop();
    fleet.assert_clean();
}

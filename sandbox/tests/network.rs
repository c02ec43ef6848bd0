//! Which network a grain sees: its own loopback, or the host's where that is asked for.
#![forbid(unsafe_code)]

mod common;

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use common::probe::{holds, probe};
use common::{orders, skip, users};
use sandpipe_sandbox::probe_isolation;
use serde_json::Value;

const EPERM: i64 = 1;
const ECONNREFUSED: i64 = 111;

/// The network's devices, of what `/proc/self/net/dev` says.
fn devices(text: &Value) -> Vec<String> {
    let lines = text.as_str().expect("it can be read").lines();
    let names = lines.filter_map(|line| line.split_once(':').map(|(name, _)| name.trim()));
    names.map(str::to_owned).collect()
}

#[test]
fn only_who_shares_the_hosts_network_reaches_a_listener_on_the_hosts_loopback() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connect = format!("tcp:{}", listener.local_addr().unwrap());
    let dev = "text:/proc/self/net/dev";
    let asked = orders([&connect, dev]);
    let of_the_host = std::fs::read_to_string("/proc/self/net/dev").unwrap();
    for uid in users() {
        let (said, on) = probe(uid, &asked, |_| {});
        if !holds(&on, "network namespace") {
            continue;
        }
        assert_eq!(said[&connect], ECONNREFUSED, "{uid:?}");
        assert_eq!(devices(&said[dev]), ["lo"], "{uid:?}");
        let (said, on) = probe(uid, &asked, |spec| spec.isolation.network = false);
        assert_eq!(said[&connect], 0, "{uid:?}");
        assert_eq!(devices(&said[dev]), devices(&Value::from(&*of_the_host)));
        let reason = on["network namespace"].as_deref();
        assert_eq!(reason, Some("not wanted by the application"));
    }
}

/// Whether this kernel's Landlock is new enough, by its version.
fn knows_abstract_sockets() -> bool {
    let mut rules = probe_isolation().into_iter();
    let found = rules.find(|probe| probe.name == "file rules");
    found.is_some_and(|rules| rules.ok && !rules.reason.contains("not handled"))
}

#[test]
fn the_hosts_abstract_sockets_stay_out_of_reach_of_who_shares_its_network() {
    let name = format!("sandbox-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let _listener = UnixListener::bind_addr(&address).unwrap();
    let connect = format!("abstract:{name}");
    for uid in users() {
        let (said, on) = probe(uid, &orders([&connect]), |spec| {
            spec.isolation.network = false;
        });
        if knows_abstract_sockets() {
            assert_eq!(said[&connect], EPERM, "{uid:?}");
            assert_eq!(on["abstract sockets out of reach"], None);
        } else {
            skip("Landlock of this kernel knows no abstract sockets");
        }
        // It is the file rules that refuse: without them nothing does.
        let (said, on) = probe(uid, &orders([&connect]), |spec| {
            spec.isolation.network = false;
            spec.isolation.files = false;
        });
        assert_eq!(said[&connect], 0, "{uid:?}");
        assert!(!on.contains_key("abstract sockets out of reach"));
    }
}

//! What the grain of the tests can connect to.

use std::io;
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};

/// What became of each of these places, a word each: `devices`, `tcp:ADDRESS`, `unix:PATH`,
/// `abstract:NAME`.
pub fn reach(places: &str) -> String {
    let words: Vec<String> = places.split_whitespace().map(outcome).collect();
    words.join(" ")
}

fn outcome(place: &str) -> String {
    let (kind, name) = place.split_once(':').unwrap_or((place, ""));
    let connected = match kind {
        "devices" => return devices(),
        "tcp" => TcpStream::connect(name).map(drop),
        "unix" => UnixStream::connect(name).map(drop),
        "abstract" => SocketAddr::from_abstract_name(name)
            .and_then(|address| UnixStream::connect_addr(&address).map(drop)),
        _ => Err(io::Error::from(io::ErrorKind::Unsupported)),
    };
    match connected {
        Ok(()) => "yes".into(),
        Err(error) => format!("{:?}", error.kind()),
    }
}

/// The names of the network's devices, with commas between.
fn devices() -> String {
    let text = std::fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
    let names = text.lines().filter_map(|line| line.split_once(':'));
    names
        .map(|(name, _)| name.trim())
        .collect::<Vec<_>>()
        .join(",")
}

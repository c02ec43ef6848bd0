//! Tells the service manager how the agent is (`sd_notify(3)`): datagrams to `NOTIFY_SOCKET`.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::Duration;

/// The line to the service manager; without one, nothing is sent.
#[derive(Debug, Default)]
pub struct Notifier {
    line: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// As the environment says: `NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`.
    #[must_use]
    pub fn from_env() -> Notifier {
        let Some(path) = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else {
            return Notifier::default();
        };
        let line = connect(&path)
            .inspect_err(|error| tracing::warn!(?path, %error, "NOTIFY_SOCKET cannot be used"))
            .ok();
        let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
        let is_ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|&us| us > 0 && is_ours);
        Notifier {
            line,
            watchdog: watchdog.map(Duration::from_micros),
        }
    }

    /// How often [`Notifier::alive`] is to be called, at the least: half the manager's patience.
    #[must_use]
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.map(|patience| patience / 2)
    }

    /// It serves. Also the end of a reload.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}\n", one_line(status)));
    }

    /// It reads its configuration again.
    pub fn reloading(&self) {
        // The manager compares this with the time at which it sent the signal.
        let now_us = sandpipe::monotonic_ns() / 1000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={now_us}\n"));
    }

    /// It ends.
    pub fn stopping(&self, status: &str) {
        self.send(&format!("STOPPING=1\nSTATUS={}\n", one_line(status)));
    }

    /// Everything answers.
    pub fn alive(&self) {
        self.send("WATCHDOG=1\n");
    }

    fn send(&self, text: &str) {
        // A manager that does not listen is no reason to end.
        if let Some(line) = &self.line {
            let _ = line.send(text.as_bytes());
        }
    }
}

fn connect(path: &OsString) -> io::Result<UnixDatagram> {
    let line = UnixDatagram::unbound()?;
    line.set_nonblocking(true)?;
    match path.as_bytes().strip_prefix(b"@") {
        Some(name) => line.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        None => line.connect(Path::new(path))?,
    }
    Ok(line)
}

/// A line feed would begin another assignment.
fn one_line(text: &str) -> String {
    text.replace('\n', " ")
}

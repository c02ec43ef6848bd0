//! Peers that are programs of their own, built by `scripts/peers`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sandpipe_link::program::Task;

use crate::clock::PEER_SILENCE_MAX;
use crate::error::BenchError;
use crate::python::parse;
use crate::raw::terminate_with_parent;
use crate::stats::Samples;

/// A peer's program.
#[derive(Clone, Debug)]
pub struct External {
    program: PathBuf,
}

impl External {
    /// The program of a peer: in `peers/bin` of the directory that cargo builds into, or of the
    /// repository's `target`.
    ///
    /// # Errors
    /// [`BenchError::Missing`], saying why `scripts/peers` did not build it.
    pub fn find(root: &Path, name: &str) -> Result<External, BenchError> {
        let mine = std::env::current_exe().map_err(|e| BenchError::os("find this program", e))?;
        let built = mine.ancestors().nth(2).map(|target| target.join("peers"));
        let places: Vec<PathBuf> = built
            .into_iter()
            .chain([root.join("target/peers")])
            .collect();
        let program = places
            .iter()
            .map(|place| place.join("bin").join(format!("sandpipe-peer-{name}")))
            .find(|program| program.is_file());
        program.map(|program| External { program }).ok_or_else(|| {
            let said = places.iter().find_map(|place| {
                std::fs::read_to_string(place.join(format!("{name}.missing"))).ok()
            });
            let why = said.unwrap_or_else(|| "its program is not built".to_owned());
            let remedy = "run scripts/peers (a few minutes the first time)";
            BenchError::missing(format!("the peer {name}"), why.trim(), remedy)
        })
    }

    /// Measures one case.
    ///
    /// # Errors
    /// [`BenchError::Peer`] with its last words if it fails or stays silent.
    pub fn measure(&self, task: &Task) -> Result<Samples, BenchError> {
        let name = self.program.display().to_string();
        let mut command = Command::new(&self.program);
        command.args(task.arguments());
        command.stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        terminate_with_parent(&mut command);
        let mut child = command.spawn().map_err(|e| BenchError::os(&name, e))?;
        let printed = child.stdout.take().map(read_in_time);
        let printed = printed.transpose()?.flatten();
        if printed.is_none() {
            // Fails only if it has ended already.
            let _ = child.kill();
        }
        let output = child
            .wait_with_output()
            .map_err(|e| BenchError::os(&name, e))?;
        let said = String::from_utf8_lossy(&output.stderr);
        let last_words = said.lines().last().unwrap_or("failed").to_owned();
        match printed {
            None => Err(BenchError::peer(name, format!("silent; {last_words}"))),
            Some(_) if !output.status.success() => Err(BenchError::peer(name, last_words)),
            Some(text) => Ok(parse(&name, &text)?.into_iter().collect()),
        }
    }
}

/// All that a program prints until it ends; `None` if that takes too long.
fn read_in_time(mut from: std::process::ChildStdout) -> Result<Option<String>, BenchError> {
    let deadline = Instant::now() + PEER_SILENCE_MAX;
    let (mut text, mut bytes) = (Vec::new(), [0; 64 << 10]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).expect("below a minute");
        match poll(&mut [PollFd::new(&from, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(BenchError::os("poll", error.into())),
        }
        match from.read(&mut bytes) {
            Ok(0) => return Ok(Some(String::from_utf8_lossy(&text).into_owned())),
            Ok(count) => text.extend_from_slice(&bytes[..count]),
            Err(error) => return Err(BenchError::os("read", error)),
        }
    }
}

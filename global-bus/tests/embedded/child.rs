//! Other processes for a test: this test binary again, running the one test below.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

/// What the child does, and where.
const ROLE: &str = "SANDPIPE_TEST_CHILD_ROLE";
const DIR: &str = "SANDPIPE_TEST_CHILD_DIR";
const APP: &str = "SANDPIPE_TEST_CHILD_APP";

/// Not a test by itself: what a child process runs.
#[test]
fn child_process() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let dir = PathBuf::from(std::env::var_os(DIR).unwrap());
    let app = std::env::var(APP).unwrap_or_default();
    match role.as_str() {
        "append" => super::kill::append_for_ever(&dir, &app),
        "hold" => super::kill::hold(&dir),
        "full" => super::disk::fill_and_recover(&dir),
        "read-only" => super::disk::open_read_only(&dir),
        _ => panic!("no such role: {role}"),
    }
}

/// The command of a child with `role`; `prefix` is a program that runs it, with its arguments.
pub fn command(prefix: &[&str], role: &str, dir: &Path, app: &str) -> Command {
    let binary = std::env::current_exe().unwrap();
    let mut command = match prefix {
        [] => Command::new(&binary),
        [program, arguments @ ..] => {
            let mut command = Command::new(program);
            command.args(arguments).arg(&binary);
            command
        }
    };
    command.args([
        "--exact",
        "child::child_process",
        "--nocapture",
        "--test-threads=1",
    ]);
    command.env(ROLE, role).env(DIR, dir).env(APP, app);
    command
}

/// A child that is killed when it is dropped.
pub struct Running {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Running {
    pub fn start(role: &str, dir: &Path, app: &str) -> Running {
        let mut command = command(&[], role, dir, app);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Running { child, output }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL; returns when the process is gone.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The number in the next line `WORD NUMBER`, `None` at the end of the output. A line that the
    /// kill has cut counts for nothing.
    pub fn next(&mut self, word: &str) -> Option<u64> {
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            let whole = line.strip_suffix('\n').unwrap_or_default();
            let number = whole.split_once(' ').filter(|(first, _)| *first == word);
            if let Some((_, number)) = number {
                return Some(number.parse().unwrap());
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! A copy of the data plane to break: never the sources themselves.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// Pause between two looks at a running command.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A workspace of the data plane alone, under `target/`.
pub struct Scratch {
    root: PathBuf,
    target: PathBuf,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Good,
    Failed,
    TimedOut,
}

impl Scratch {
    pub fn new(workspace: &Path, name: &str) -> io::Result<Scratch> {
        let root = workspace.join("target").join(name);
        let scratch = Scratch {
            target: root.join("target"),
            root: root.join("copy"),
        };
        if scratch.root.exists() {
            fs::remove_dir_all(&scratch.root)?;
        }
        copy_tree(
            &workspace.join("dataplane"),
            &scratch.root.join("dataplane"),
        )?;
        fs::copy(
            workspace.join("Cargo.lock"),
            scratch.root.join("Cargo.lock"),
        )?;
        let manifest = fs::read_to_string(workspace.join("Cargo.toml"))?;
        let (head, rest) = manifest
            .split_once("members = [")
            .unwrap_or((&manifest, "]"));
        let (_, tail) = rest.split_once(']').unwrap_or(("", rest));
        let members = r#"members = ["dataplane/abi", "dataplane"]"#;
        fs::write(
            scratch.root.join("Cargo.toml"),
            format!("{head}{members}{tail}"),
        )?;
        Ok(scratch)
    }

    /// The text of a file, by its path in the repository.
    pub fn read(&self, path: &str) -> io::Result<String> {
        fs::read_to_string(self.root.join(path))
    }

    pub fn write(&self, path: &str, text: &str) -> io::Result<()> {
        fs::write(self.root.join(path), text)
    }

    /// Every `.rs` file of a folder, sorted.
    pub fn sources(&self, folder: &str) -> io::Result<Vec<String>> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(self.root.join(folder))? {
            let entry = entry?;
            let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
            if entry.file_type()?.is_dir() {
                paths.extend(self.sources(&path)?);
            } else if path.ends_with(".rs") {
                paths.push(path);
            }
        }
        paths.sort();
        Ok(paths)
    }

    /// Runs cargo in the copy, at most `limit`; its output goes to `log`. Ends what it started.
    /// As soon as `enough` says so of the output, the run has failed.
    pub fn cargo(
        &self,
        args: &[&str],
        flags: &str,
        limit: Duration,
        enough: impl Fn(&str) -> bool,
    ) -> io::Result<Ended> {
        let log = fs::File::create(self.root.join("log"))?;
        let mut child = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
            .args(args)
            .current_dir(&self.root)
            .env("RUSTFLAGS", flags)
            .env("CARGO_TARGET_DIR", &self.target)
            .env("CARGO_PROFILE_RELEASE_LTO", "off")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "8")
            .env("CARGO_NET_OFFLINE", "true")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()?;
        let until = Instant::now() + limit;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(if status.success() {
                    Ended::Good
                } else {
                    Ended::Failed
                });
            }
            let is_late = Instant::now() > until;
            if is_late || enough(&self.log()) {
                // Its whole group: the tests that it started as well.
                kill_process_group(Pid::from_child(&child), Signal::KILL)?;
                child.wait()?;
                return Ok(if is_late {
                    Ended::TimedOut
                } else {
                    Ended::Failed
                });
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// What the last command printed.
    pub fn log(&self) -> String {
        fs::read_to_string(self.root.join("log")).unwrap_or_default()
    }
}

fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

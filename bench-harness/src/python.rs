//! Runs the harness's Python programs, which print one latency (ns) a line.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::BenchError;
use crate::stats::Samples;

/// An interpreter of the repository's virtual environment.
#[derive(Clone, Debug)]
pub struct Python {
    interpreter: PathBuf,
    programs: PathBuf,
}

impl Python {
    /// The interpreter of `.venv`, if `module` can be imported there.
    ///
    /// # Errors
    /// [`BenchError::Missing`] naming the module.
    pub fn with(root: &Path, module: &str) -> Result<Python, BenchError> {
        let interpreter = root.join(".venv/bin/python");
        let missing = |why: String| {
            BenchError::missing(format!("Python with {module}"), why, "run scripts/setup")
        };
        let imported = Command::new(&interpreter)
            .args(["-c", &format!("import {module}")])
            .stdout(Stdio::null())
            .output()
            .map_err(|e| missing(format!("{}: {e}", interpreter.display())))?;
        if !imported.status.success() {
            let said = String::from_utf8_lossy(&imported.stderr);
            return Err(missing(
                said.lines().last().unwrap_or("import failed").to_owned(),
            ));
        }
        Ok(Python {
            interpreter,
            programs: root.join("bench-harness/python"),
        })
    }

    /// The interpreter itself.
    #[must_use]
    pub fn interpreter(&self) -> &Path {
        &self.interpreter
    }

    /// Where it has its libraries: the environment, and the installation that made it.
    ///
    /// # Errors
    /// [`BenchError::Os`] if it cannot be asked.
    pub fn prefixes(&self) -> Result<Vec<PathBuf>, BenchError> {
        let asked = Command::new(&self.interpreter)
            .args([
                "-c",
                "import sys; print(sys.prefix, sys.base_prefix, sep='\\n')",
            ])
            .output()
            .map_err(|e| BenchError::os("the interpreter", e))?;
        let said = String::from_utf8_lossy(&asked.stdout);
        Ok(said.lines().map(PathBuf::from).collect())
    }

    /// A command that runs `program` of bench-harness/python.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(&self.interpreter);
        command.arg(self.programs.join(program));
        command
    }

    /// Runs `program` with arguments and takes the latencies that it prints.
    ///
    /// # Errors
    /// [`BenchError::Peer`] with its last line if it fails or prints something else.
    pub fn latencies(&self, program: &str, arguments: &[&str]) -> Result<Samples, BenchError> {
        let output = self
            .command(program)
            .args(arguments)
            .output()
            .map_err(|e| BenchError::os(program, e))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(BenchError::peer(
                program,
                said.lines().last().unwrap_or("failed"),
            ));
        }
        let said = String::from_utf8_lossy(&output.stdout);
        Ok(parse(program, &said)?.into_iter().collect())
    }
}

/// One number a line.
///
/// # Errors
/// [`BenchError::Peer`] naming the line that is none.
pub fn parse(program: &str, text: &str) -> Result<Vec<u64>, BenchError> {
    text.lines()
        .map(|line| {
            let wrong = |_| BenchError::peer(program, format!("printed \"{line}\", no latency"));
            line.trim().parse::<u64>().map_err(wrong)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_one_number_a_line() {
        assert_eq!(parse("p.py", "10\n20\n30\n").unwrap(), [10, 20, 30]);
        let error = parse("p.py", "10\noops\n").unwrap_err().to_string();
        assert_eq!(error, "p.py: printed \"oops\", no latency");
    }
}

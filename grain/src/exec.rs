//! Any program as a grain: the event on its stdin, the answer on its stdout.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitCode, ExitStatus, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Access, OFlags};

use crate::config::{Route, WorkerConfig};
use crate::event::{Context, Event, HandlerError, Output};
use crate::logging::Lines;
use crate::runtime::Runtime;
use crate::start::run_from_env;

/// Bytes of a program's stderr that its error keeps.
const STDERR_TAIL: usize = 2048;

/// `sandpipe exec-worker`: the worker of a grain that is a program.
///
/// The program is started for each event. It reads the payload from stdin and writes the output to
/// stdout; if the workflow routes by output, the first line names the next grain and the rest is
/// the output. A status other than 0 is the handler's error, with the end of stderr as its text.
/// The environment has `SANDPIPE_APP`, `SANDPIPE_GRAIN`, `SANDPIPE_EVENT`, `SANDPIPE_ROOT`,
/// `SANDPIPE_ATTEMPT` and `SANDPIPE_IDEMPOTENCY_KEY`.
#[must_use]
pub fn exec_worker_main() -> ExitCode {
    run_from_env(|config| Exec {
        config: config.clone(),
    })
}

struct Exec {
    config: WorkerConfig,
}

impl Runtime for Exec {
    fn load(&mut self) -> Result<(), String> {
        let program = Path::new(&self.config.handler);
        if !self.config.handler.contains('/') {
            return Ok(()); // looked up in PATH when it is started
        }
        rustix::fs::access(program, Access::EXEC_OK)
            .map_err(|error| format!("{}: {}", program.display(), io::Error::from(error)))
    }

    fn handle(
        &mut self,
        event: &Event<'_>,
        context: &mut Context<'_>,
    ) -> Result<Output, HandlerError> {
        let program = &self.config.handler;
        let mut child = Command::new(program)
            .args(&self.config.args)
            .env_remove(crate::config::WORKER_VARIABLE)
            .env_remove(sandpipe::attach::STARTED_VARIABLE)
            .env("SANDPIPE_APP", context.app())
            .env("SANDPIPE_GRAIN", context.grain())
            .env("SANDPIPE_EVENT", event.id().to_string())
            .env("SANDPIPE_ROOT", event.root().to_string())
            .env("SANDPIPE_ATTEMPT", event.attempt().to_string())
            .env("SANDPIPE_IDEMPOTENCY_KEY", context.idempotency_key())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("cannot start {program}: {error}"))?;
        let mut lines = Lines::of(event.id());
        let output_max = self.config.max_payload_bytes;
        let talk = talk(&mut child, event.data(), output_max, &mut lines);
        lines.end();
        if talk.as_ref().map_or(true, |talk| talk.too_long) {
            let _ = child.kill();
        }
        let status = child.wait()?;
        let talk = talk?;
        if !status.success() && !talk.too_long {
            return Err(told(status, &talk.stderr).into());
        }
        if self.config.route == Route::ByOutput {
            return routed(talk.stdout);
        }
        Ok(Output::from(talk.stdout))
    }
}

/// The first line names the next grain.
fn routed(stdout: Vec<u8>) -> Result<Output, HandlerError> {
    let end = stdout.iter().position(|&byte| byte == b'\n');
    let end = end.ok_or("the first line of stdout must name the next grain")?;
    let grain = std::str::from_utf8(&stdout[..end])?.trim();
    Ok(Output::to(grain, &stdout[end + 1..]))
}

fn told(status: ExitStatus, stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    match text.trim() {
        "" => format!("{status}"),
        text => format!("{status}: {text}"),
    }
}

/// What a program said.
#[derive(Default)]
struct Talk {
    stdout: Vec<u8>,
    /// The end of it.
    stderr: Vec<u8>,
    /// It wrote more than an output may have.
    too_long: bool,
}

/// Writes the input while it reads both outputs: neither side can block the other for ever.
fn talk(child: &mut Child, input: &[u8], output_max: u64, lines: &mut Lines) -> io::Result<Talk> {
    let mut stdin = child.stdin.take();
    let mut stdout = child.stdout.take();
    let mut stderr = child.stderr.take();
    let mut said = Talk::default();
    let mut written = 0;
    if let Some(pipe) = &stdin {
        do_not_wait(pipe)?;
    }
    while stdout.is_some() || stderr.is_some() {
        let pipes = [
            stdin.as_ref().map(|pipe| (pipe.as_fd(), PollFlags::OUT)),
            stdout.as_ref().map(|pipe| (pipe.as_fd(), PollFlags::IN)),
            stderr.as_ref().map(|pipe| (pipe.as_fd(), PollFlags::IN)),
        ];
        let mut fds: Vec<_> = pipes
            .iter()
            .flatten()
            .map(|&(fd, flags)| PollFd::from_borrowed_fd(fd, flags))
            .collect();
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let events: Vec<_> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut ready = events.into_iter();
        let [to_stdin, from_stdout, from_stderr] =
            pipes.map(|pipe| pipe.is_some() && ready.next().unwrap_or(false));
        if to_stdin && !write_some(stdin.as_mut(), input, &mut written)? {
            stdin = None;
        }
        if from_stdout && !read_some(stdout.as_mut(), &mut said.stdout)? {
            stdout = None;
        }
        if from_stderr {
            let before = said.stderr.len();
            if !read_some(stderr.as_mut(), &mut said.stderr)? {
                stderr = None;
            }
            lines.pass_on(&said.stderr[before..]);
            let surplus = said.stderr.len().saturating_sub(STDERR_TAIL);
            said.stderr.drain(..surplus);
        }
        if said.stdout.len() as u64 > output_max {
            said.too_long = true;
            break;
        }
    }
    Ok(said)
}

/// Writes what the pipe takes; false if that was all, or the program does not read any more.
fn write_some(
    pipe: Option<&mut ChildStdin>,
    input: &[u8],
    written: &mut usize,
) -> io::Result<bool> {
    let Some(pipe) = pipe else { return Ok(false) };
    match pipe.write(&input[*written..]) {
        Ok(bytes) => *written += bytes,
        Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(false),
        Err(error) if is_passing(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(*written < input.len())
}

/// Reads once; false at the end.
fn read_some(pipe: Option<&mut impl Read>, into: &mut Vec<u8>) -> io::Result<bool> {
    let Some(pipe) = pipe else { return Ok(false) };
    let mut buffer = [0; 65536];
    match pipe.read(&mut buffer) {
        Ok(0) => Ok(false),
        Ok(bytes) => {
            into.extend_from_slice(&buffer[..bytes]);
            Ok(true)
        }
        Err(error) if is_passing(&error) => Ok(true),
        Err(error) => Err(error),
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn do_not_wait(pipe: &impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(pipe)?;
    Ok(rustix::fs::fcntl_setfl(pipe, flags | OFlags::NONBLOCK)?)
}

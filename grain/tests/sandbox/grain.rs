//! A grain for tests: it does what its event says.

use std::process::{Command, ExitCode};
use std::time::Duration;

use sandpipe_grain::{Context, Event, HandlerError, Output, Runtime};

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("exec-worker") {
        return sandpipe_grain::exec_worker_main();
    }
    sandpipe_grain::run_from_env(|config| Grain {
        refuses: config.handler == "refuse",
    })
}

struct Grain {
    refuses: bool,
}

impl Runtime for Grain {
    fn load(&mut self) -> Result<(), String> {
        if self.refuses {
            return Err("no such module".into());
        }
        Ok(())
    }

    fn handle(
        &mut self,
        event: &Event<'_>,
        context: &mut Context<'_>,
    ) -> Result<Output, HandlerError> {
        let text = std::str::from_utf8(event.data())?;
        let (command, argument) = text.split_once(' ').unwrap_or((text, ""));
        let command = match command.strip_prefix("first:") {
            Some(command) if event.attempt() == 1 => command,
            Some(_) => "again",
            None => command,
        };
        obey(command, argument, context)?;
        Ok(match command {
            "big" => Output::from(vec![b'x'; argument.parse()?]),
            "to" => Output::to(argument, "routed"),
            "pid" => Output::from(std::process::id().to_string()),
            "stamp" => stamp(argument)?,
            _ => Output::from(format!("{text}>{}", context.grain())),
        })
    }
}

fn obey(command: &str, argument: &str, context: &Context<'_>) -> Result<(), HandlerError> {
    match command {
        "fail" => return Err("as it was told".into()),
        "panic" => panic!("as it was told"),
        "exit" => std::process::exit(argument.parse()?),
        "abort" => std::process::abort(),
        "hang" => std::thread::sleep(Duration::from_secs(1000)),
        "sleep" => std::thread::sleep(Duration::from_millis(argument.parse()?)),
        "leave" if context.next().next().is_none() => {
            Command::new("sleep").arg(argument).spawn()?;
        }
        "close" => close_everything(),
        _ => {}
    }
    Ok(())
}

/// The first grain says when it ended, the second how long ago that was.
fn stamp(argument: &str) -> Result<Output, HandlerError> {
    let now = sandpipe::monotonic_ns();
    Ok(match argument {
        "" => Output::from(format!("stamp {now}")),
        then => Output::from((now - then.parse::<u64>()?).to_string()),
    })
}

fn close_everything() {
    // SAFETY: the test wants to know what happens to a process that closes descriptors which it
    // does not own; nothing of this process uses one after that, but for stderr lines.
    unsafe { libc::close_range(0, libc::c_uint::MAX, 0) };
}

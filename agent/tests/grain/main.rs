//! The grain of the tests: what it does is said by the event's first line, for one grain or all:
//! `GRAIN: sleep 100`, or `*: panic`. Then it appends its letter.

use std::io::Write;
use std::time::Duration;

use sandpipe_grain::{Context, Event, HandlerError, Output};

fn main() -> std::process::ExitCode {
    if let Ok(text) = std::env::var("FAIL_AT_START") {
        eprintln!("Traceback: {text}");
        return std::process::ExitCode::from(1);
    }
    sandpipe_grain::run(handle)
}

fn handle(event: &Event, context: &mut Context<'_>) -> Result<Output, HandlerError> {
    let text = String::from_utf8_lossy(event.data()).into_owned();
    note(&text, context);
    if let Some((whom, rest)) = text.split_once(": ")
        && (whom == "*" || whom == context.grain())
    {
        obey(rest)?;
        if let Some(rest) = rest.strip_prefix("grow ") {
            let bytes: usize = rest.split(' ').next().unwrap_or_default().parse()?;
            return Ok(Output::from(vec![b'x'; bytes]));
        }
    }
    Ok(Output::from(format!("{text}{}", context.grain())))
}

/// Appends a line to the file that the environment names, so that a test can count.
fn note(text: &str, context: &Context<'_>) {
    let Ok(path) = std::env::var("NOTES") else {
        return;
    };
    let line = format!("{} {} {}\n", std::process::id(), context.grain(), text);
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path);
    if let Ok(mut file) = file {
        let _ = file.write_all(line.as_bytes());
    }
}

fn obey(order: &str) -> Result<(), HandlerError> {
    let (order, value) = order.trim().split_once(' ').unwrap_or((order.trim(), ""));
    let number = value
        .split(' ')
        .next()
        .unwrap_or_default()
        .parse::<u64>()
        .unwrap_or(0);
    match order {
        "sleep" => std::thread::sleep(Duration::from_millis(number)),
        "fail" => return Err(HandlerError::from("it was told to fail")),
        "panic" => panic!("it was told to panic"),
        "exit" => std::process::exit(3),
        "abort" => std::process::abort(),
        "child" => {
            std::process::Command::new("sleep").arg("1000").spawn()?;
        }
        _ => {}
    }
    Ok(())
}

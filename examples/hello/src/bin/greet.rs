//! Greets whom the event names.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use sandpipe_grain::{Context, Event, HandlerError, Output};

fn greet(event: &Event<'_>, _context: &mut Context<'_>) -> Result<Output, HandlerError> {
    let name = std::str::from_utf8(event.data())?.trim();
    if name.is_empty() {
        return Err("the event names nobody; send a name".into());
    }
    Ok(Output::from(format!("Hello, {name}")))
}

fn main() -> ExitCode {
    sandpipe_grain::run(greet)
}

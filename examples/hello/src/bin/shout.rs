//! Says it louder.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use sandpipe_grain::{Context, Event, HandlerError, Output};

fn shout(event: &Event<'_>, _context: &mut Context<'_>) -> Result<Output, HandlerError> {
    let text = std::str::from_utf8(event.data())?;
    Ok(Output::from(format!("{}!", text.to_uppercase())))
}

fn main() -> ExitCode {
    sandpipe_grain::run(shout)
}

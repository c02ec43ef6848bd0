//! `sandpipe bus dead show` and `bus dead delete`: single dead letters.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::control::{Answer, Question};
use crate::front_door::AppDeadLetter;

/// Bytes of a line of what is shown in hexadecimal digits.
const HEX_LINE: usize = 16;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Single {
    /// Show one letter whole: what is known of it, and its event's data
    #[command(after_help = "Examples:\n  sandpipe bus dead show 1f0c…\n  \
        sandpipe bus dead show 1f0c… --output event.bin\n  \
        sandpipe bus dead show 1f0c… --json | jq -r .data_base64 | base64 -d\n\n\
        Data that is no text is shown in hexadecimal digits. Exit codes: 0 shown, 1 there is no\n\
        such letter.")]
    Show(ShowArgs),
    /// Delete letters: their events are gone for good
    #[command(after_help = "Examples:\n  sandpipe bus dead delete 1f0c…\n  \
        sandpipe bus dead delete 1f0c… 2a77… --json\n\n\
        What is told to be deleted is so durably. Exit codes: 0 all were deleted, 1 one was not.")]
    Delete(DeleteArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct ShowArgs {
    /// The letter's id
    id: String,
    /// Only if it is this application's; needed for a `sandpipe run`
    #[arg(long)]
    app: Option<String>,
    /// Write the event's data to this file, and do not show it
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print JSON, the data in base64
    #[arg(long)]
    json: bool,
    /// Where sockets and locks are
    #[arg(long, value_name = "DIR", env = "SANDPIPE_RUN_DIR")]
    run_dir: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct DeleteArgs {
    /// The letters' ids
    #[arg(required = true)]
    ids: Vec<String>,
    /// Only what is this application's; needed for a `sandpipe run`
    #[arg(long)]
    app: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Where sockets and locks are
    #[arg(long, value_name = "DIR", env = "SANDPIPE_RUN_DIR")]
    run_dir: Option<PathBuf>,
}

pub(super) fn single(command: &Single) -> anyhow::Result<ExitCode> {
    match command {
        Single::Show(args) => show(args),
        Single::Delete(args) => delete(args),
    }
}

fn show(args: &ShowArgs) -> anyhow::Result<ExitCode> {
    let question = Question::DeadLetter {
        app: args.app.clone(),
        letter: args.id.clone(),
    };
    let found = match super::bus::ask(args.run_dir.as_deref(), args.app.as_deref(), &question)? {
        Answer::DeadLetter(found) => found,
        other => return super::deploy::refused(other),
    };
    let data = STANDARD.decode(&found.letter.data_base64);
    let data = data.context("the agent is of another version")?;
    if let Some(file) = &args.output {
        std::fs::write(file, &data).with_context(|| file.display().to_string())?;
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&found)?);
        return Ok(ExitCode::SUCCESS);
    }
    print!("{}", header(&found));
    match &args.output {
        Some(file) => println!("data          written to {}", file.display()),
        None => print!("data\n{}", shown(&data)),
    }
    Ok(ExitCode::SUCCESS)
}

/// What is known of a letter, a line each.
fn header(found: &AppDeadLetter) -> String {
    let whole = &found.letter;
    let letter = &whole.letter;
    let died = i64::try_from(letter.died_unix_ms).unwrap_or(i64::MAX);
    let died = jiff::Timestamp::from_millisecond(died).unwrap_or_default();
    let attempts = letter.attempts.map(|count| count.to_string());
    let mut lines = vec![
        ("id", letter.id.clone()),
        ("application", found.app.clone()),
        ("grain", letter.grain.clone()),
        ("request", letter.root.clone()),
        ("died", died.to_string()),
        ("cause", letter.cause.clone()),
        ("reason", letter.reason.clone()),
        ("attempts", attempts.unwrap_or_else(|| "not known".into())),
        ("content-type", whole.content_type.clone()),
        ("traceparent", whole.traceparent.clone()),
        ("bytes", letter.bytes.to_string()),
    ];
    let attributes = whole.attributes.iter();
    lines.extend(attributes.map(|(name, value)| (name.as_str(), value.clone())));
    lines.retain(|(_, value)| !value.is_empty());
    lines.iter().fold(String::new(), |mut text, (name, value)| {
        // Callers and grains may have written anything; a line each keeps it readable.
        let value = value.replace(char::is_control, " ");
        let _ = writeln!(text, "{name:<13} {value}");
        text
    })
}

/// Text as it is, anything else in hexadecimal digits: a terminal obeys what it is shown.
fn shown(data: &[u8]) -> String {
    let harmless = |text: &&str| text.chars().all(|c| !c.is_control() || "\n\t".contains(c));
    if let Some(text) = std::str::from_utf8(data).ok().filter(harmless) {
        let end = if text.ends_with('\n') { "" } else { "\n" };
        return format!("{text}{end}");
    }
    let mut lines = String::new();
    for (index, line) in data.chunks(HEX_LINE).enumerate() {
        let digits: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        let printable = |byte: &u8| match byte {
            b' '..=b'~' => char::from(*byte),
            _ => '.',
        };
        let text: String = line.iter().map(printable).collect();
        let (place, digits) = (index * HEX_LINE, digits.join(" "));
        let _ = writeln!(lines, "{place:08x}  {digits:<47}  |{text}|");
    }
    lines
}

/// What became of one id.
#[derive(Debug, serde::Serialize)]
struct Deleted {
    id: String,
    app: Option<String>,
    refused: Option<String>,
}

fn delete(args: &DeleteArgs) -> anyhow::Result<ExitCode> {
    let (run, app) = (args.run_dir.as_deref(), args.app.as_deref());
    let ids = args.ids.iter();
    let done: Vec<Deleted> = ids
        .map(|id| delete_one(run, app, id))
        .collect::<Result<_, _>>()?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&done)?);
    }
    for one in done.iter().filter(|_| !args.json) {
        match (&one.app, &one.refused) {
            (Some(app), _) => println!("{app}: {} is deleted", one.id),
            (None, reason) => eprintln!("sandpipe: {}", reason.as_deref().unwrap_or_default()),
        }
    }
    let all = done.iter().all(|one| one.app.is_some());
    Ok(ExitCode::from(if all { 0 } else { super::FAILED }))
}

fn delete_one(run: Option<&Path>, app: Option<&str>, id: &str) -> anyhow::Result<Deleted> {
    let question = Question::DeleteDeadLetter {
        app: app.map(str::to_owned),
        letter: id.to_owned(),
    };
    let (app, refused) = match super::bus::ask(run, app, &question)? {
        Answer::DeletedDeadLetter { app } => (Some(app), None),
        Answer::Refused { reason, .. } => (None, Some(reason)),
        other => anyhow::bail!("the agent is of another version: {other:?}"),
    };
    let id = id.to_owned();
    Ok(Deleted { id, app, refused })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_shown_as_it_is_and_what_a_terminal_would_obey_in_digits() {
        assert_eq!(shown("a\tü\n".as_bytes()), "a\tü\n");
        assert_eq!(shown(b"no end"), "no end\n");
        assert_eq!(shown(b""), "\n");
        let line = "00000000  1b 5b 32 4a 00 ff 30 31 32 33 34 35 36 37 38 39  |.[2J..0123456789|";
        assert_eq!(
            shown(b"\x1b[2J\0\xff0123456789!"),
            format!("{line}\n00000010  21{}  |!|\n", " ".repeat(45))
        );
    }
}

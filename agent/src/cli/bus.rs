//! `sandpipe bus`: dead letters are listed, shown, deleted and sent again.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::runtime::Handle;

use super::dead_letters::Single;
use crate::application::{Places, run_dir};
use crate::control::{Answer, Question, order};
use crate::front_door::{AppDeadLetters, FrontDoor, Redriven};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List the events whose attempts were used up, with the reason
    #[command(
        after_help = "Examples:\n  sandpipe bus dead\n  sandpipe bus dead shop --json\n  \
        sandpipe bus dead show 1f0c…\n  sandpipe bus dead delete 1f0c…",
        args_conflicts_with_subcommands = true
    )]
    Dead(DeadArgs),
    /// Send dead letters again, each as a new event to the grain where it died
    #[command(after_help = "Examples:\n  sandpipe bus redrive 1f0c…\n  \
        sandpipe bus redrive --all shop\n\n\
        Prints where each answer will be; `sandpipe results` collects it. Exit codes: 0 all\n\
        were sent, 1 one was not, or there is none.")]
    Redrive(RedriveArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct DeadArgs {
    #[command(subcommand)]
    single: Option<Single>,
    /// Only this application's
    app: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Where sockets and locks are
    #[arg(long, value_name = "DIR", env = "SANDPIPE_RUN_DIR")]
    run_dir: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct RedriveArgs {
    /// The letter's id, or with --all an application
    #[arg(value_name = "ID", required_unless_present = "all")]
    first: Option<String>,
    /// Only if it is this application's
    #[arg(conflicts_with = "all")]
    app: Option<String>,
    /// All letters
    #[arg(long)]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Where sockets and locks are
    #[arg(long, value_name = "DIR", env = "SANDPIPE_RUN_DIR")]
    run_dir: Option<PathBuf>,
}

pub(super) fn bus(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Dead(args) => dead(args),
        Command::Redrive(args) => redrive(args),
    }
}

/// The agent's side: what the control socket answers.
pub(super) fn answer(runtime: &Handle, door: &FrontDoor, question: &Question) -> Answer {
    match question {
        Question::Redrive { app, letter } => {
            let (app, letter) = (app.as_deref(), letter.as_deref());
            Answer::Redriven(runtime.block_on(door.redrive(app, letter)))
        }
        Question::DeadLetter { app, letter } => {
            match runtime.block_on(door.dead_letter(app.as_deref(), letter)) {
                Some(found) => Answer::DeadLetter(Box::new(found)),
                None => unknown(letter),
            }
        }
        Question::DeleteDeadLetter { app, letter } => {
            match runtime.block_on(door.delete_letter(app.as_deref(), letter)) {
                Ok(Some(app)) => Answer::DeletedDeadLetter { app },
                Ok(None) => unknown(letter),
                Err(reason) => refusal(reason),
            }
        }
        Question::DeadLetters { app } => {
            Answer::DeadLetters(runtime.block_on(door.dead_letters(app.as_deref())))
        }
        other => refusal(format!("{other:?} is not about dead letters")),
    }
}

fn unknown(letter: &str) -> Answer {
    refusal(format!(
        "there is no dead letter {letter}; sandpipe bus dead lists them"
    ))
}

fn refusal(reason: String) -> Answer {
    let wrong_file = false;
    Answer::Refused { reason, wrong_file }
}

pub(super) fn ask(
    run: Option<&std::path::Path>,
    app: Option<&str>,
    question: &Question,
) -> anyhow::Result<Answer> {
    // No application's name is empty: without one, the agent is asked.
    let socket = Places::socket_for(&run_dir(run), app.unwrap_or_default());
    Ok(order(&socket, question)?)
}

fn dead(args: &DeadArgs) -> anyhow::Result<ExitCode> {
    if let Some(command) = &args.single {
        return super::dead_letters::single(command);
    }
    let app = args.app.clone();
    let question = Question::DeadLetters { app };
    let all = match ask(args.run_dir.as_deref(), args.app.as_deref(), &question)? {
        Answer::DeadLetters(all) => all,
        other => return super::deploy::refused(other),
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(ExitCode::SUCCESS);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now_s = now.unwrap_or_default().as_secs();
    println!("ID                                APPLICATION / GRAIN      AGE      BYTES    REASON");
    all.iter().for_each(|app| list(app, now_s));
    Ok(ExitCode::SUCCESS)
}

fn list(app: &AppDeadLetters, now_s: u64) {
    for letter in &app.letters {
        let age = super::deploy::age(now_s.saturating_sub(letter.died_unix_ms / 1000));
        let place = format!("{} / {}", app.app, letter.grain);
        // A grain's words may hold anything; a line each keeps the list one.
        let reason = letter.reason.replace(char::is_control, " ");
        println!(
            "{}  {place:<24} {age:<8} {:<8} {}: {reason}",
            letter.id, letter.bytes, letter.cause
        );
    }
    if app.dropped > 0 {
        println!(
            "{}: {} older letters made place for newer ones since the agent's start",
            app.app, app.dropped
        );
    }
}

fn redrive(args: &RedriveArgs) -> anyhow::Result<ExitCode> {
    let (app, letter) = match args.all {
        true => (args.first.clone(), None),
        false => (args.app.clone(), args.first.clone()),
    };
    let question = Question::Redrive {
        app: app.clone(),
        letter,
    };
    let done = match ask(args.run_dir.as_deref(), app.as_deref(), &question)? {
        Answer::Redriven(done) => done,
        other => return super::deploy::refused(other),
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&done)?);
    } else {
        done.iter().for_each(say);
        if done.is_empty() {
            eprintln!("sandpipe: there is no such letter; sandpipe bus dead lists them");
        }
    }
    let sent = !done.is_empty() && done.iter().all(|one| one.sent.is_some());
    Ok(ExitCode::from(if sent { 0 } else { super::FAILED }))
}

fn say(one: &Redriven) {
    match (&one.sent, &one.refused) {
        (Some(again), _) => println!("{}: {} is sent again: /results/{again}", one.app, one.id),
        (None, reason) => {
            let reason = reason.as_deref().unwrap_or("no reason is known");
            eprintln!("sandpipe: {}: {} was not sent: {reason}", one.app, one.id);
        }
    }
}

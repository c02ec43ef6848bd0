//! `sandpipe doctor`: proves each thing that Sandpipe uses of this machine by using it.

use std::process::ExitCode;

use crate::doctor::{Check, checks};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  sandpipe doctor\n  sandpipe doctor --json\n\n\
    Exit code 1 if something is missing without which nothing runs."
)]
pub(super) struct Args {
    /// Where a log would be kept, for the time that its disk needs
    #[arg(long, value_name = "DIR", env = "SANDPIPE_DATA_DIR")]
    data_dir: Option<std::path::PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn doctor(args: &Args) -> ExitCode {
    let directory = args.data_dir.clone().unwrap_or_else(std::env::temp_dir);
    let checks = checks(&directory);
    if args.json {
        println!(
            "{}",
            serde_json::to_string_pretty(&checks).expect("strings are always JSON")
        );
    } else {
        for check in &checks {
            println!("{}", line(check));
        }
    }
    let fit = checks.iter().all(|check| check.ok || !check.needed);
    ExitCode::from(if fit { 0 } else { super::FAILED })
}

fn line(check: &Check) -> String {
    let Check {
        name,
        ok,
        reason,
        remedy,
        needed,
    } = check;
    let mut line = match (ok, needed) {
        (true, _) => format!("ok    {name}"),
        (false, true) => format!("FAIL  {name}"),
        (false, false) => format!("off   {name}"),
    };
    if !reason.is_empty() {
        line += &format!("{}{reason}", if *ok { ": " } else { " because " });
    }
    if !remedy.is_empty() {
        line += &format!("\n      do this: {remedy}");
    }
    line
}

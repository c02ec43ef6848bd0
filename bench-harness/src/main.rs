//! `sandpipe-bench`: the harness by hand.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use sandpipe_bench::figures::{FIGURES, Profile, Setting, choose};
use sandpipe_bench::machine::Machine;
use sandpipe_bench::progress::Progress;
use sandpipe_bench::report::{Report, SCHEMA, to_json, write_histograms, write_report};
use sandpipe_bench::table;
use sandpipe_bench::validity::Watch;

/// Measures Sandpipe beside its floors, its peers and the values of the SAND paper.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:
  sandpipe-bench list
  sandpipe-bench run
  sandpipe-bench run --figures 5b,5c --json > report.json
  sandpipe-bench run --profile full --out results/tonight

Exit codes: 0 measured; 1 a figure could not be measured at all; 2 wrong arguments;
3 a ratio misses its bound (only with --strict)."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lists the figures.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Measures figures, prints them and writes the report.
    Run(Run),
}

#[derive(clap::Args)]
struct Run {
    /// Figures by name, comma separated; "all" is each of them.
    #[arg(long, value_delimiter = ',', default_value = "all")]
    figures: Vec<String>,
    /// How much to measure.
    #[arg(long, value_enum, default_value = "quick")]
    profile: ProfileName,
    /// Directory for report.json and the histograms.
    #[arg(long, value_name = "DIR", default_value = "results/local")]
    out: PathBuf,
    /// Prints report.json on stdout instead of tables.
    #[arg(long)]
    json: bool,
    /// Ends with 3 if a ratio misses its bound.
    #[arg(long)]
    strict: bool,
    /// The repository, for its scripts, examples and Python files.
    #[arg(long, value_name = "DIR", env = "SANDPIPE_ROOT")]
    root: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum ProfileName {
    /// One round: does everything run?
    Smoke,
    /// Six minutes or so.
    Quick,
    /// More rounds and samples.
    Full,
}

fn main() -> ExitCode {
    // The harness creates sandboxes; their init is this program, executed again.
    if sandpipe_sandbox::is_sandbox_init() {
        return sandpipe_sandbox::sandbox_init_main();
    }
    let result = match Arguments::parse().command {
        Command::List { json } => {
            list(json);
            Ok(ExitCode::SUCCESS)
        }
        Command::Run(arguments) => run(&arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("sandpipe-bench: {error:#}");
        ExitCode::FAILURE
    })
}

fn list(json: bool) {
    if json {
        let figures: Vec<_> = FIGURES
            .iter()
            .map(|f| serde_json::json!({"id": f.id, "title": f.title, "source": f.source}))
            .collect();
        println!("{}", serde_json::Value::Array(figures));
    } else {
        for figure in FIGURES {
            println!("{:<6} {} ({})", figure.id, figure.title, figure.source);
        }
    }
}

fn run(arguments: &Run) -> anyhow::Result<ExitCode> {
    let chosen = match choose(&arguments.figures) {
        Ok(chosen) => chosen,
        Err(error) => {
            eprintln!("sandpipe-bench: {error}");
            return Ok(ExitCode::from(2));
        }
    };
    let progress = Progress::stderr();
    let setting = Setting {
        profile: match arguments.profile {
            ProfileName::Smoke => Profile::Smoke,
            ProfileName::Quick => Profile::Quick,
            ProfileName::Full => Profile::Full,
        },
        progress: &progress,
        root: root(arguments.root.as_deref())?,
    };
    let (machine, watch) = (Machine::read(), Watch::start());
    let (mut figures, mut notes, mut failed) = (Vec::new(), Vec::new(), false);
    for kind in chosen {
        match kind.measure(&setting) {
            Ok(mut measured) => {
                write_histograms(&arguments.out, &mut measured)?;
                notes.extend(measured.notes);
                if !arguments.json {
                    progress.finish();
                    println!("{}", table::render_figure(&measured.figure));
                }
                figures.push(measured.figure);
            }
            Err(error) => {
                failed = true;
                progress.say(&format!("{}: {error}", kind.id));
                notes.push(format!("{}: not measured: {error}", kind.id));
            }
        }
    }
    progress.finish();
    let mut validity = watch.marks(&machine);
    validity.extend(notes);
    let report = Report {
        schema: SCHEMA.into(),
        machine,
        validity,
        figures,
    };
    write_report(&arguments.out, &report)?;
    finish(arguments, &report, failed)
}

fn finish(arguments: &Run, report: &Report, failed: bool) -> anyhow::Result<ExitCode> {
    if arguments.json {
        print!("{}", to_json(report));
    } else {
        println!("How far to believe this:");
        report
            .validity
            .iter()
            .for_each(|mark| println!("  - {mark}"));
        println!("\nReport: {}", arguments.out.join("report.json").display());
    }
    let missed = table::missed(report);
    if !missed.is_empty() {
        eprintln!("misses its bound: {}", missed.join(", "));
    }
    Ok(match (failed, arguments.strict && !missed.is_empty()) {
        (true, _) => ExitCode::FAILURE,
        (false, true) => ExitCode::from(3),
        (false, false) => ExitCode::SUCCESS,
    })
}

/// The repository: as told, else the nearest directory upwards from the binary or from here that
/// holds bench-harness/.
fn root(told: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(told) = told {
        return Ok(told.to_owned());
    }
    let here = std::env::current_dir().context("the current directory")?;
    let binary = std::env::current_exe().unwrap_or_default();
    let holds = |path: &&Path| path.join("bench-harness/python").is_dir();
    let found = here
        .ancestors()
        .find(holds)
        .or_else(|| binary.ancestors().find(holds));
    found
        .map(Path::to_owned)
        .context("no repository here or above: give it with --root DIR or SANDPIPE_ROOT")
}

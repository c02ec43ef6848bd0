//! Checks of the repository that cargo cannot express: `cargo xtask --help`.
#![forbid(unsafe_code)]

mod broken;
mod instructions;
mod mutate;
mod scratch;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

const HELP: &str = "\
Checks of the repository that cargo cannot express.

Usage: cargo xtask tidy [ROOT]     report each broken rule as file:line: rule: what to do
       cargo xtask instructions [--write]
                                   count the instructions of the local bus's hot operations, and
                                   compare them with dataplane/instructions.txt (needs valgrind)
       cargo xtask mutate-orderings [NAME]
                                   weaken each SYNC ordering (or those called NAME), one at a time:
                                   some loom model has to fail
       cargo xtask broken-builds   break the commit protocol in five ways: some crash test has to
                                   find each
       cargo xtask --help

Exit codes: 0 all rules hold (every mutant is killed, every broken build found),
1 a rule is broken (one survived),
2 wrong usage or an unreadable file.
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["tidy"] => run_tidy(workspace_root()),
        ["tidy", root] if !root.starts_with('-') => run_tidy(PathBuf::from(root)),
        ["instructions"] => run_instructions(false),
        ["instructions", "--write"] => run_instructions(true),
        ["mutate-orderings"] => verdict(mutate::run(&workspace_root(), None)),
        ["mutate-orderings", name] if !name.starts_with('-') => {
            verdict(mutate::run(&workspace_root(), Some(name)))
        }
        ["broken-builds"] => verdict(broken::run(&workspace_root())),
        ["--help" | "-h" | "help"] | ["tidy", "--help" | "-h"] => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        _ => {
            eprint!("{HELP}");
            ExitCode::from(2)
        }
    }
}

fn run_instructions(write: bool) -> ExitCode {
    match instructions::run(&workspace_root(), write) {
        Ok(same) => ExitCode::from(u8::from(!same)),
        Err(error) => {
            eprintln!("instructions: {error}");
            ExitCode::from(2)
        }
    }
}

fn workspace_root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent()
        .expect("xtask lies in the workspace")
        .to_path_buf()
}

fn verdict(good: std::io::Result<bool>) -> ExitCode {
    match good {
        Ok(good) => ExitCode::from(u8::from(!good)),
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::from(2)
        }
    }
}

fn run_tidy(root: PathBuf) -> ExitCode {
    let sources = match tidy::read_sources(&root) {
        Ok(sources) => sources,
        Err(error) => {
            eprintln!("tidy: {}: {error}", root.display());
            return ExitCode::from(2);
        }
    };
    let report = tidy::check(&sources, |path| root.join(path).exists());
    for note in &report.notes {
        println!("note: {note}");
    }
    for finding in &report.findings {
        println!("{finding}");
    }
    println!(
        "tidy: {} files, {} findings",
        sources.len(),
        report.findings.len()
    );
    ExitCode::from(u8::from(!report.findings.is_empty()))
}

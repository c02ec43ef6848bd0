//! `cargo xtask instructions`: counts the instructions of the local bus's hot operations under
//! callgrind and compares them with the kept counts. Unlike times, they are the same in every run.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

/// The kept counts, one `operation instructions` a line.
const KEPT: &str = "dataplane/instructions.txt";
/// The program that calls each operation in a function of its own.
const EXAMPLE: &str = "instructions";
/// How often it calls each.
const CALLS: [(&str, u64); 9] = [
    ("publish", 2000),
    ("publish_with_copy", 1000),
    ("receive", 2000),
    ("acknowledge", 2000),
    ("loan", 1000),
    ("release", 1000),
    ("claim", 1000),
    ("commit", 1000),
    ("finish", 1000),
];
/// Per cent by which a count may differ.
const TOLERANCE: u64 = 1;

type Counts = BTreeMap<String, u64>;

/// Counts, prints, and writes or compares; true if nothing differs by more than the tolerance.
///
/// # Errors
/// A text for the user: no valgrind, or the program does not build.
pub fn run(root: &Path, write: bool) -> Result<bool, String> {
    let counted = count(root)?;
    let path = root.join(KEPT);
    if write {
        let mut text = String::new();
        for (name, count) in &counted {
            writeln!(text, "{name} {count}").expect("a string takes everything");
        }
        std::fs::write(&path, text).map_err(|e| format!("{KEPT}: {e}"))?;
    }
    let kept = std::fs::read_to_string(&path).map_err(|e| format!("{KEPT}: {e}"))?;
    let kept = parse(&kept).ok_or(format!("{KEPT}: not \"operation instructions\" a line"))?;
    Ok(compare(&kept, &counted))
}

/// Prints a line an operation; true if all are within the tolerance.
fn compare(kept: &Counts, counted: &Counts) -> bool {
    let mut all = kept.keys().eq(counted.keys());
    if !all {
        println!("instructions: {KEPT} names other operations");
    }
    for (name, &now) in counted {
        let before = kept.get(name).copied().unwrap_or(0);
        let within = now.abs_diff(before) * 100 <= before * TOLERANCE;
        all &= within;
        let verdict = if within { "ok" } else { "DIFFERS" };
        println!("{name:20} {now:6} instructions, kept {before:6}  {verdict}");
    }
    if !all {
        println!(
            "instructions: if the change is meant: cargo xtask instructions --write, and say why"
        );
    }
    all
}

fn parse(text: &str) -> Option<Counts> {
    let lines = text.lines().map(|line| {
        let (name, count) = line.split_once(' ')?;
        Some((name.to_owned(), count.parse().ok()?))
    });
    lines.collect()
}

/// Instructions of one call of each operation.
fn count(root: &Path) -> Result<Counts, String> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), Into::into);
    let built = Command::new(env!("CARGO"))
        .args([
            "build",
            "--quiet",
            "--release",
            "-p",
            "sandpipe",
            "--example",
            EXAMPLE,
        ])
        .current_dir(root)
        .status();
    if !built.is_ok_and(|status| status.success()) {
        return Err(format!("the example {EXAMPLE} does not build"));
    }
    let raw = target.join("callgrind.out");
    let program = target.join("release/examples").join(EXAMPLE);
    let out = format!("--callgrind-out-file={}", raw.display());
    said(
        Command::new("valgrind")
            .args(["--tool=callgrind", &out])
            .arg(program),
    )?;
    let annotate = [
        "--inclusive=yes",
        "--threshold=100",
        "--tree=none",
        "--auto=no",
    ];
    let text = said(Command::new("callgrind_annotate").args(annotate).arg(&raw))?;
    CALLS
        .iter()
        .map(|&(name, calls)| {
            let total = inclusive(&text, name).ok_or(format!("callgrind saw no {name}"))?;
            Ok((name.to_owned(), total / calls))
        })
        .collect()
}

fn said(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .map_err(|e| format!("{name}: {e}; install valgrind (apt-get install valgrind)"))?;
    if !output.status.success() {
        return Err(format!(
            "{name}: {}",
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The inclusive count of a function of the example, of callgrind_annotate's lines
/// `1,090,782 (16.59%)  FILE:instructions::publish [PROGRAM]`. What was inlined from other files
/// has lines of its own; the whole function's is the largest.
fn inclusive(text: &str, name: &str) -> Option<u64> {
    let function = format!(":{EXAMPLE}::{name}");
    let lines = text.lines().filter(|line| {
        line.split_whitespace()
            .any(|word| word.ends_with(&function))
    });
    let counts = lines.filter_map(|line| {
        let count = line.split_whitespace().next()?;
        count.replace(',', "").parse().ok()
    });
    counts.max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_read_from_callgrinds_table() {
        let text = "\
6,279,607 (95.49%)  /x/instructions.rs:instructions::main [/x/instructions]
  927,255 (14.10%)  /x/instructions.rs:instructions::publish_with_copy [/x/instructions]
1,090,782 (16.59%)  /x/instructions.rs:instructions::publish [/x/instructions]
  322,800 ( 4.91%)  /x/src/instance.rs:instructions::publish [/x/instructions]
";
        assert_eq!(inclusive(text, "publish"), Some(1_090_782));
        assert_eq!(inclusive(text, "publish_with_copy"), Some(927_255));
        assert_eq!(inclusive(text, "claim"), None);
    }

    #[test]
    fn more_than_a_hundredth_differs_and_so_does_another_operation() {
        let counts = |publish| Counts::from([("publish".to_owned(), publish)]);
        assert!(compare(&counts(1000), &counts(1010)));
        assert!(!compare(&counts(1000), &counts(1011)));
        assert!(!compare(&counts(1000), &counts(989)));
        assert!(!compare(&Counts::new(), &counts(1)));
    }
}

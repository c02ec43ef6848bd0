//! `cargo xtask mutate-orderings`: weakens each annotated memory ordering of the data plane, one at
//! a time, and says whether some loom model fails. A mutant of which no model fails in time is
//! undecided: nothing says that its models would not pass.
//!
//! A `// SYNC(name)` comment stands in front of the statement that it annotates. An ordering with
//! two halves is weakened twice, a fence is removed. A comment in front of a statement without an
//! ordering (its partner is a fence elsewhere) has nothing to weaken.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::scratch::{Ended, Scratch};

const SOURCES: &str = "dataplane/src";

/// How long the models may take as they are.
const LIMIT: Duration = Duration::from_secs(1800);
/// A mutant gets so many times what they took as they are, since it may have more interleavings.
const MUTANT_SHARE: u32 = 10;

/// One weakened ordering.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutant {
    pub path: String,
    /// Counted from 1.
    pub line: usize,
    pub name: String,
    pub from: &'static str,
    pub to: &'static str,
}

/// What may be weakened, and into what.
const WEAKER: &[(&str, &[&str])] = &[
    (
        "Ordering::AcqRel",
        &["Ordering::Acquire", "Ordering::Release"],
    ),
    ("Ordering::SeqCst", &["Ordering::Relaxed"]),
    ("fence(Ordering::Release)", &["()"]),
    ("fence(Ordering::Acquire)", &["()"]),
    ("full_fence()", &["()"]),
    ("fence_after_exchange()", &["()"]),
    ("Ordering::Acquire", &["Ordering::Relaxed"]),
    ("Ordering::Release", &["Ordering::Relaxed"]),
];

/// Every mutant of one file.
pub fn mutants_of(path: &str, text: &str) -> Vec<Mutant> {
    let lines: Vec<&str> = text.lines().collect();
    let mut mutants: Vec<Mutant> = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some((_, after)) = line.split_once("// SYNC(") else {
            continue;
        };
        let Some((name, _)) = after.split_once(')') else {
            continue;
        };
        let Some((at, from, weaker)) = statement_after(&lines, index) else {
            continue;
        };
        // Two comments may stand in front of one statement.
        let again = mutants.iter_mut().filter(|mutant| mutant.line == at + 1);
        let mut known = false;
        for mutant in again {
            mutant.name = format!("{}, {name}", mutant.name);
            known = true;
        }
        if !known {
            mutants.extend(weaker.iter().map(|to| Mutant {
                path: path.to_string(),
                line: at + 1,
                name: name.to_string(),
                from,
                to,
            }));
        }
    }
    mutants
}

/// The first line of the statement behind a comment that has an ordering to weaken.
fn statement_after(
    lines: &[&str],
    comment: usize,
) -> Option<(usize, &'static str, &'static [&'static str])> {
    let is_comment = |index: &usize| lines[*index].trim_start().starts_with("//");
    let code = (comment..lines.len()).skip_while(is_comment);
    for index in code {
        let line = lines[index];
        if let Some(&(from, to)) = WEAKER.iter().find(|(from, _)| line.contains(from)) {
            return Some((index, from, to));
        }
        let end = line.trim_end();
        if end.ends_with(';') || end.ends_with('{') || end.ends_with('}') {
            return None;
        }
    }
    None
}

/// The file's text with one ordering weakened: the first of its kind in the line.
pub fn weakened(text: &str, mutant: &Mutant) -> String {
    let change = |(index, line): (usize, &str)| {
        if index + 1 == mutant.line {
            line.replacen(mutant.from, mutant.to, 1)
        } else {
            line.to_string()
        }
    };
    let lines: Vec<String> = text.lines().enumerate().map(change).collect();
    lines.join("\n") + "\n"
}

/// Runs all; true if every mutant is killed.
pub fn run(workspace: &Path, only: Option<&str>) -> io::Result<bool> {
    let scratch = Scratch::new(workspace, "mutate-orderings")?;
    let models = |limit| {
        let args = ["test", "-p", "sandpipe", "--release", "--lib"];
        // A lock-step copy compiles without warnings being errors: unused imports are expected.
        scratch.cargo(&args, "--cfg loom -Awarnings", limit, |log| {
            first_failure(log).is_some()
        })
    };
    let start = Instant::now();
    if models(LIMIT)? != Ended::Good {
        println!("{}", scratch.log());
        return Err(io::Error::other("the models fail without any mutation"));
    }
    let limit = start.elapsed() * MUTANT_SHARE;
    let (mut killed, mut all) = (0, 0);
    for path in scratch.sources(SOURCES)? {
        let text = scratch.read(&path)?;
        for mutant in mutants_of(&path, &text) {
            if only.is_some_and(|only| !mutant.name.split(", ").any(|name| name == only)) {
                continue;
            }
            let start = Instant::now();
            scratch.write(&path, &weakened(&text, &mutant))?;
            let ended = models(limit)?;
            let log = scratch.log();
            let verdict = match ended {
                Ended::Good => "SURVIVED".to_string(),
                _ if log.contains("could not compile") => {
                    println!("{log}");
                    return Err(io::Error::other(format!("{mutant:?} does not compile")));
                }
                Ended::TimedOut => "UNDECIDED: no model failed in time".to_string(),
                Ended::Failed => {
                    let model = first_failure(&log);
                    format!("killed by {}", model.unwrap_or("a model that aborts"))
                }
            };
            all += 1;
            killed += u32::from(ended == Ended::Failed);
            let Mutant {
                line,
                name,
                from,
                to,
                ..
            } = &mutant;
            let seconds = start.elapsed().as_secs();
            println!("{path}:{line}: {name}: {from} -> {to}: {verdict} ({seconds} s)");
        }
        scratch.write(&path, &text)?;
    }
    println!("mutate-orderings: {killed} of {all} weakened orderings killed");
    Ok(killed == all && all > 0)
}

/// The first model that failed.
fn first_failure(log: &str) -> Option<&str> {
    log.lines().find_map(|line| {
        let name = line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?;
        Some(name.rsplit("::").next().unwrap_or(name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
        // SYNC(a): Release.\n\
        word.store(1, Ordering::Release);\n\
        // SYNC(b): two\n\
        // SYNC(c): names\n\
        match word.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Acquire) {\n\
        // SYNC(d): its partner is a fence\n\
        word.load(Ordering::Relaxed);\n\
        x.store(2, Ordering::Release);\n";

    #[test]
    fn each_annotated_ordering_is_weakened_and_no_other() {
        let mutants = mutants_of("f.rs", TEXT);
        let lines: Vec<_> = mutants
            .iter()
            .map(|m| (m.line, m.name.as_str(), m.to))
            .collect();
        let expected = [
            (2, "a", "Ordering::Relaxed"),
            (5, "b, c", "Ordering::Acquire"),
            (5, "b, c", "Ordering::Release"),
        ];
        assert_eq!(lines, expected);
        let weak = weakened(TEXT, &mutants[2]);
        assert!(weak.contains("(0, 1, Ordering::Release, Ordering::Acquire)"));
        assert_eq!(weak.lines().count(), TEXT.lines().count());
    }
}

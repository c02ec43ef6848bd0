//! `cargo xtask tidy`: reads the sources once, asks every rule, reports `file:line: rule: remedy`.

mod functions;
mod lines;
mod links;
mod scripts;
mod source;
mod whole;

#[cfg(test)]
mod tests;

use std::fmt;

pub use source::{Source, read_sources};

/// A file longer than this is an error.
const FILE_LINES_MAX: usize = 500;
/// A file longer than this is worth a note: it is about to hold two ideas.
const FILE_LINES_NOTE: usize = 400;

/// One broken rule at one place.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    pub path: String,
    pub line: usize,
    pub rule: &'static str,
    pub remedy: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}: {}: {}",
            self.path, self.line, self.rule, self.remedy
        )
    }
}

/// What tidy has to say about a tree.
#[derive(Debug, Default)]
pub struct Report {
    pub findings: Vec<Finding>,
    pub notes: Vec<String>,
}

impl Report {
    fn add(&mut self, source: &Source, line: usize, rule: &'static str, remedy: String) {
        let path = source.path.clone();
        self.findings.push(Finding {
            path,
            line,
            rule,
            remedy,
        });
    }
}

/// Checks every rule over `sources`, where `exists` tells whether a path is in the tree; findings
/// come sorted by place.
pub fn check(sources: &[Source], exists: impl Fn(&str) -> bool) -> Report {
    let mut report = Report::default();
    for source in sources {
        file_length(source, &mut report);
        lines::check(source, &mut report);
        functions::check(source, &mut report);
        scripts::check(source, &mut report);
    }
    whole::sync_names(sources, &mut report);
    whole::specified_tests(sources, &mut report);
    links::check(sources, exists, &mut report);
    report.findings.sort();
    report
}

fn file_length(source: &Source, report: &mut Report) {
    if !source.is_code() {
        return;
    }
    let lines = source.text.lines().count();
    if lines > FILE_LINES_MAX {
        let remedy = format!("{lines} lines; split it, the limit is {FILE_LINES_MAX}");
        report.add(source, lines, "file-length", remedy);
    } else if lines > FILE_LINES_NOTE {
        report
            .notes
            .push(format!("{} has {lines} lines", source.path));
    }
}

//! What is wrong with an `app.toml`, where, and what to do.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

/// Why an `app.toml` was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{}: {}", path.display(), not_read(reason))]
    Read {
        /// The file as the caller named it.
        path: PathBuf,
        /// What the system said.
        reason: std::io::Error,
    },
    /// The file says something that cannot be.
    #[error("{}", listed(path, problems))]
    Invalid {
        /// The file as the caller named it.
        path: PathBuf,
        /// At least one problem, in the file's order.
        problems: Vec<Problem>,
    },
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line in the file, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.line, self.what, self.remedy)
    }
}

impl Problem {
    /// What the TOML reader says, in our form.
    pub(super) fn from_toml(text: &str, error: &toml::de::Error) -> Problem {
        let line = error.span().map_or(1, |span| line_of(text, span.start));
        let what = error.message().trim().replace('\n', " ");
        let remedy = if what.starts_with("unknown field") {
            "remove it or correct its spelling"
        } else if what.starts_with("missing field") {
            "add it"
        } else {
            "correct the line (see `sandpipe run --help` for an example)"
        };
        Problem {
            line,
            what,
            remedy: remedy.to_owned(),
        }
    }
}

/// Collects problems while a file is checked.
pub(super) struct Problems<'a> {
    text: &'a str,
    found: Vec<Problem>,
}

impl<'a> Problems<'a> {
    pub(super) fn new(text: &'a str) -> Problems<'a> {
        Problems {
            text,
            found: Vec::new(),
        }
    }

    /// Notes a problem at a place of the file.
    pub(super) fn add(
        &mut self,
        span: Range<usize>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let line = line_of(self.text, span.start);
        self.found.push(Problem {
            line,
            what: what.into(),
            remedy: remedy.into(),
        });
    }

    pub(super) fn into_vec(mut self) -> Vec<Problem> {
        self.found.sort_by_key(|problem| problem.line);
        self.found
    }
}

fn not_read(reason: &std::io::Error) -> String {
    let told = crate::open_files::told(reason);
    told.unwrap_or_else(|| {
        format!("{reason}; give the path of an app.toml that this user may read")
    })
}

fn line_of(text: &str, offset: usize) -> usize {
    let end = offset.min(text.len());
    1 + text.as_bytes()[..end]
        .iter()
        .filter(|&&byte| byte == b'\n')
        .count()
}

fn listed(path: &std::path::Path, problems: &[Problem]) -> String {
    let lines: Vec<String> = problems
        .iter()
        .map(|problem| format!("{}:{problem}", path.display()))
        .collect();
    lines.join("\n")
}

//! What can go wrong while measuring.

use std::io;

use thiserror::Error;

/// Why a probe, a case or a figure gave no number.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BenchError {
    /// Something that the machine or the build lacks; the rest of the run goes on without it.
    #[error("{what} cannot run: {why}; {remedy}")]
    Missing {
        /// The row, by name.
        what: String,
        /// What is lacking.
        why: String,
        /// How to get it.
        remedy: String,
    },
    /// The operating system refused something.
    #[error("{what}: {source}")]
    Os {
        /// What was tried.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A peer process died, stayed silent or answered nonsense.
    #[error("{what}: {detail}")]
    Peer {
        /// Who.
        what: String,
        /// What it did.
        detail: String,
    },
    /// A fork was asked for while other threads run.
    #[error(
        "this process has {threads} threads and a probe must fork from one: run it through the \
         binary sandpipe-bench"
    )]
    Threads {
        /// Number of threads seen.
        threads: usize,
    },
    /// A figure's name that does not exist.
    #[error("there is no figure \"{name}\"; the figures are: {known}")]
    UnknownFigure {
        /// What was asked for.
        name: String,
        /// All names, comma separated.
        known: String,
    },
    /// A line of a CSV file with the paper's values that cannot be read.
    #[error("{file}:{line}: {detail}")]
    Csv {
        /// The file.
        file: String,
        /// Line number, from 1.
        line: usize,
        /// What is wrong with it.
        detail: String,
    },
}

impl BenchError {
    /// An [`BenchError::Os`].
    pub fn os(what: impl Into<String>, source: io::Error) -> BenchError {
        BenchError::Os {
            what: what.into(),
            source,
        }
    }

    /// A [`BenchError::Missing`].
    pub fn missing(
        what: impl Into<String>,
        why: impl Into<String>,
        remedy: impl Into<String>,
    ) -> BenchError {
        BenchError::Missing {
            what: what.into(),
            why: why.into(),
            remedy: remedy.into(),
        }
    }

    /// A [`BenchError::Peer`].
    pub fn peer(what: impl Into<String>, detail: impl Into<String>) -> BenchError {
        BenchError::Peer {
            what: what.into(),
            detail: detail.into(),
        }
    }
}

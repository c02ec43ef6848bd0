//! Lines of a grain's output that say which message they belong to.
//!
//! Instances of a grain share one standard error, so a line that is to be told apart begins with a
//! mark: a record separator, the message's id and a space. Init takes the mark off. It is written
//! only where the sandbox asks for it ([`LOG_MARKS_VARIABLE`]); who writes nothing pays nothing.

use std::io::Write;
use std::sync::OnceLock;

use sandpipe::MessageId;

use crate::config::LOG_MARKS_VARIABLE;

/// ASCII's record separator.
const MARK: char = '\u{1e}';

/// The longest piece of a line that waits for its end.
const PARTIAL_MAX: usize = 4 << 10;

fn are_wanted() -> bool {
    static WANTED: OnceLock<bool> = OnceLock::new();
    *WANTED.get_or_init(|| std::env::var_os(LOG_MARKS_VARIABLE).is_some())
}

/// Writes whole lines, marked.
pub(crate) fn write_marked(message: MessageId, text: &[u8]) {
    let mut out = Vec::with_capacity(text.len() + 64);
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    for line in text.split(|&byte| byte == b'\n') {
        if are_wanted() {
            out.extend_from_slice(format!("{MARK}{message} ").as_bytes());
        }
        out.extend_from_slice(line);
        out.push(b'\n');
    }
    // In one piece, so that it is not mixed with another instance's. A closed stderr is no reason
    // to end.
    let _ = std::io::stderr().write_all(&out);
}

/// What a program writes while it handles a message, passed on line by line.
#[derive(Debug)]
pub(crate) struct Lines {
    message: MessageId,
    partial: Vec<u8>,
}

impl Lines {
    pub(crate) fn of(message: MessageId) -> Lines {
        Lines {
            message,
            partial: Vec::new(),
        }
    }

    pub(crate) fn pass_on(&mut self, bytes: &[u8]) {
        self.partial.extend_from_slice(bytes);
        let end = self.partial.iter().rposition(|&byte| byte == b'\n');
        match end {
            Some(end) => {
                let rest = self.partial.split_off(end + 1);
                let lines = std::mem::replace(&mut self.partial, rest);
                write_marked(self.message, &lines);
            }
            None if self.partial.len() > PARTIAL_MAX => self.end(),
            None => {}
        }
    }

    /// The program has ended, perhaps within a line.
    pub(crate) fn end(&mut self) {
        let rest = std::mem::take(&mut self.partial);
        if !rest.is_empty() {
            write_marked(self.message, &rest);
        }
    }
}

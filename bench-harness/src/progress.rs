//! Progress on stderr: a bar on a terminal, one line a figure elsewhere.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Where the harness says what it is doing. Starts no thread: probes fork.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    plain: bool,
}

impl Progress {
    /// On stderr.
    #[must_use]
    pub fn stderr() -> Progress {
        let plain = !std::io::stderr().is_terminal();
        let target = if plain {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        let style = ProgressStyle::with_template("{prefix:>8} [{bar:28}] {pos}/{len} {wide_msg}");
        bar.set_style(style.expect("the template is valid").progress_chars("=> "));
        Progress { bar, plain }
    }

    /// Nowhere.
    #[must_use]
    pub fn silent() -> Progress {
        Progress {
            bar: ProgressBar::hidden(),
            plain: false,
        }
    }

    /// A new figure begins.
    pub fn figure(&self, id: &str, title: &str) {
        self.bar.reset();
        self.bar.set_prefix(id.to_owned());
        self.doing("");
        if self.plain {
            eprintln!("{id}: {title}");
        }
    }

    /// The number of steps of the current figure.
    pub fn steps(&self, count: usize) {
        self.bar.set_length(count as u64);
    }

    /// One step done.
    pub fn step(&self) {
        self.bar.inc(1);
    }

    /// What is being done now.
    pub fn doing(&self, what: &str) {
        self.bar.set_message(what.to_owned());
    }

    /// A line that stays, above the bar.
    pub fn say(&self, line: &str) {
        if self.plain {
            eprintln!("{line}");
        } else {
            self.bar.println(line);
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

//! `cargo xtask broken-builds`: breaks the commit protocol in five known ways, one at a time, and
//! says which crash test finds it.

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::scratch::{Ended, Scratch};

const LIMIT: Duration = Duration::from_secs(600);

/// One broken build: what is replaced by what.
struct Broken {
    name: &'static str,
    path: &'static str,
    changes: &'static [(&'static str, &'static str)],
}

impl Broken {
    /// The source with its changes; an error if what they replace is no longer there.
    fn text(&self, sound: &str) -> Result<String, String> {
        let mut text = sound.to_owned();
        for (from, to) in self.changes {
            if text.matches(from).count() != 1 {
                let path = self.path;
                return Err(format!("{path}: the text to break has changed: {from}"));
            }
            text = text.replacen(from, to, 1);
        }
        Ok(text)
    }
}

const STAMP_LOOP: &str = "        for &Item { target, .. } in &self.items {
            self.outlets[target].lane.publish_next();
        }
";

const BROKEN: &[Broken] = &[
    Broken {
        name: "head moved before the entry is written",
        path: "dataplane/src/claim.rs",
        changes: &[
            (
                "        write_words(&self.own, message_at, &words);\n",
                "        let (position_after, slot) = (position + 1, self.slot.0);
        let early = Claim { position_after, slot, stage: Stage::Confirmed };
        self.own
            .word(claim_at(*head_at, reader.mask(), position))
            .store(early.to_word(), Ordering::Release);
        advance_head(&self.own, *head_at, reader.mask());
        kill_point();
        write_words(&self.own, message_at, &words);\n",
            ),
            (
                "        if mark(Stage::Claimed, Stage::Copied).is_err() {\n",
                "        if mark(Stage::Claimed, Stage::Copied).is_err() && lane == !0 {\n",
            ),
        ],
    },
    Broken {
        name: "visible before the commit",
        path: "dataplane/src/instance.rs",
        changes: &[
            (STAMP_LOOP, ""),
            (
                "        self.write_intent(ack);\n",
                "        for &Item { target, .. } in &self.items {
            self.outlets[target].lane.publish_next();
        }
        self.write_intent(ack);\n",
            ),
        ],
    },
    Broken {
        name: "stamp before the payload",
        path: "dataplane/src/lane.rs",
        changes: &[(
            "        write(self.own.array(at));\n",
            "        self.own
            .word(slot_at(self.slots_at, self.mask, position))
            .store(position + 1, Ordering::Release);
        kill_point();
        write(self.own.array(at));\n",
        )],
    },
    Broken {
        name: "entry freed without comparing its key",
        path: "dataplane/src/recover.rs",
        changes: &[(
            "let meant = word.load(Ordering::Relaxed) == key;",
            "let meant = word.load(Ordering::Relaxed) != 0;",
        )],
    },
    Broken {
        name: "no roll-forward",
        path: "dataplane/src/recover.rs",
        changes: &[(
            "        roll_forward(bus, slot, slot_at, &mut repair);\n",
            "        let _ = roll_forward::<M>;\n",
        )],
    },
];

/// The tests that may find one, the cheapest first.
const TESTS: &[(&str, &[&str])] = &[
    (
        "kill, with pauses",
        &["--features", "pauses", "--test", "kill"],
    ),
    ("sweep", &["--test", "sweep", "any_instruction"]),
];

/// Runs all; true if each broken build is found.
pub fn run(workspace: &Path) -> io::Result<bool> {
    let scratch = Scratch::new(workspace, "broken-builds")?;
    let mut found = 0;
    for broken in BROKEN {
        let sound = scratch.read(broken.path)?;
        let text = broken.text(&sound).map_err(io::Error::other)?;
        scratch.write(broken.path, &text)?;
        let catcher = first_catcher(&scratch)?;
        scratch.write(broken.path, &sound)?;
        found += usize::from(catcher.is_some());
        let verdict = catcher.unwrap_or("NOTHING".to_string());
        println!("{}: found by {verdict}", broken.name);
    }
    println!("broken-builds: {found} of {} found", BROKEN.len());
    Ok(found == BROKEN.len())
}

/// The first test that fails, with what it said.
fn first_catcher(scratch: &Scratch) -> io::Result<Option<String>> {
    for (name, args) in TESTS {
        let all = [&["test", "-p", "sandpipe", "--release"], *args].concat();
        let ended = scratch.cargo(&all, "-Awarnings", LIMIT, |_| false)?;
        let log = scratch.log();
        if log.contains("could not compile") {
            return Err(io::Error::other(format!("does not compile:\n{log}")));
        }
        if ended != Ended::Good {
            let said = log
                .lines()
                .find(|line| line.contains("lost ") || line.contains("step "));
            return Ok(Some(format!(
                "{name} ({})",
                said.unwrap_or("no details").trim()
            )));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_each_broken_build_replaces_is_in_the_source_once() {
        for broken in BROKEN {
            let path = crate::workspace_root().join(broken.path);
            let sound = std::fs::read_to_string(path).expect("a source file");
            broken.text(&sound).expect(broken.name);
        }
    }
}

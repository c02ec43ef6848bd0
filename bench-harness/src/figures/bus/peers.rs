//! The peers' rows: each a real library, in its own program.

use std::path::Path;

use sandpipe_link::program::{Kind, Task};

use crate::external::External;

/// A peer that is there.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) series: &'static str,
    pub(super) program: External,
    /// Largest message that it carries.
    pub(super) len_max: usize,
}

/// The peers that are built, and a sentence for each that is not.
#[derive(Debug, Default)]
pub(super) struct Peers {
    pub(super) iceoryx2: Option<Peer>,
    pub(super) aeron: Option<Peer>,
    pub(super) missing: Vec<String>,
}

impl Peers {
    pub(super) fn find(root: &Path) -> Peers {
        let mut missing = Vec::new();
        let mut find = |series, name, len_max| match External::find(root, name) {
            Ok(program) => Some(Peer {
                series,
                program,
                len_max,
            }),
            Err(error) => {
                missing.push(error.to_string());
                None
            }
        };
        Peers {
            iceoryx2: find("iceoryx2", "iceoryx2", usize::MAX),
            // A message is at most an eighth of a term; 16 MiB would need a log of 384 MiB.
            aeron: find("Aeron", "aeron", 2 << 20),
            missing,
        }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Peer> {
        self.iceoryx2.iter().chain(&self.aeron)
    }
}

/// A task of a peer that touches whole messages.
pub(super) fn task(
    kind: Kind,
    cpus: [usize; 2],
    len: usize,
    samples: usize,
    together: usize,
) -> Task {
    Task {
        kind,
        len,
        samples,
        together,
        touched: len,
        warm_up: 0,
        cpus,
    }
}

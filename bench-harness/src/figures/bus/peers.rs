//! The peers' rows: each a real library, in its own program.

use std::path::Path;

use sandpipe_link::program::{Kind, Task};

use crate::external::External;

/// A peer that is there.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) series: &'static str,
    pub(super) program: External,
}

/// A library that is a peer, in one form or several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Library {
    Iceoryx2,
    /// By its C client and by its Java client; compared is the faster one, in each block.
    Aeron,
}

impl Library {
    /// Largest message that it carries.
    fn len_max(self) -> usize {
        match self {
            Library::Iceoryx2 => usize::MAX,
            // A message is at most an eighth of a term; 16 MiB would need a log of 384 MiB.
            Library::Aeron => 2 << 20,
        }
    }
}

/// The peers that are built, and a sentence for each that is not.
#[derive(Debug, Default)]
pub(super) struct Peers {
    there: Vec<(Library, Vec<Peer>)>,
    pub(super) missing: Vec<String>,
}

impl Peers {
    pub(super) fn find(root: &Path) -> Peers {
        let mut peers = Peers::default();
        let forms: [(Library, &[(&str, &str)]); 2] = [
            (Library::Iceoryx2, &[("iceoryx2", "iceoryx2")]),
            (
                Library::Aeron,
                &[("Aeron C", "aeron"), ("Aeron Java", "aeron-java")],
            ),
        ];
        for (library, forms) in forms {
            let mut there = Vec::new();
            for &(series, name) in forms {
                match External::find(root, name) {
                    Ok(program) => there.push(Peer { series, program }),
                    Err(error) => peers.missing.push(error.to_string()),
                }
            }
            if !there.is_empty() {
                peers.there.push((library, there));
            }
        }
        peers
    }

    /// The libraries that carry messages of `len` bytes, each with all its forms.
    pub(super) fn carrying(&self, len: usize) -> impl Iterator<Item = (Library, &[Peer])> {
        let there = self.there.iter();
        there
            .filter(move |(library, _)| len <= library.len_max())
            .map(|(library, peers)| (*library, peers.as_slice()))
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

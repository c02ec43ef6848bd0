//! The embedded bus on a real file system and in real processes: the conformance suite, SIGKILL,
//! the lock, a full and a read-only disk.

mod child;
mod disk;
mod kill;

use sandpipe_global_bus::conformance::Subject;
use sandpipe_global_bus::{EmbeddedBus, EmbeddedOptions, GlobalBus, Limits, conformance_suite};
use tempfile::TempDir;

struct Embedded(TempDir);

impl Subject for Embedded {
    fn open(&mut self, limits: Limits) -> Box<dyn GlobalBus> {
        let options = EmbeddedOptions {
            limits,
            // Small, so that the suite also crosses segments and deletes some.
            segment_bytes: 4096,
            ..EmbeddedOptions::default()
        };
        Box::new(EmbeddedBus::open(self.0.path(), options).unwrap().0)
    }
}

fn embedded() -> Option<Embedded> {
    Some(Embedded(tempfile::tempdir().unwrap()))
}

conformance_suite!(embedded());

//! The time of a bus thread.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::core::Now;

/// One clock for deadlines and what is stored: it never runs backwards.
pub(super) struct Clock {
    begin: Instant,
    begin_unix_ms: u64,
}

impl Clock {
    pub(super) fn start() -> Clock {
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Clock {
            begin: Instant::now(),
            begin_unix_ms: u64::try_from(unix.as_millis()).unwrap_or(u64::MAX),
        }
    }

    pub(super) fn now(&self) -> Now {
        let elapsed = u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        Now {
            unix_ms: self.begin_unix_ms.saturating_add(elapsed),
            mono_ns: sandpipe::monotonic_ns(),
        }
    }
}

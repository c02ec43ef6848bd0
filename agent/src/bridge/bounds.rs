//! What an application may cost beside its sandbox: bytes of the log on this host's disk, wake-ups
//! of its bus thread, whose time is the agent's, and memory that it shares with the agent.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Bounds that the bus thread keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of the global bus's log on this host's disk; beyond it nothing new is accepted.
    pub spool_bytes: u64,
    /// Messages that wait in the first grain's queue; kept by the queue itself.
    pub queue_length: u64,
    /// Wake-ups in a second that find nothing; beyond it the bus thread looks by the clock.
    pub empty_wakes_per_s: u64,
    /// Wake-ups in a second of any kind; beyond it the bus thread looks by the clock.
    pub wakes_per_s: u64,
    /// Shared memory of its queues and pools; kept by the guardian.
    pub shared: Option<SharedBound>,
}

/// The limit of shared bytes, and how much of it is never given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedBound {
    /// All of it.
    pub limit_bytes: u64,
    /// The queues, and the pools as they are made.
    pub made_bytes: u64,
    /// What is left for the pools to grow by; more than they may anyhow where their own limit is
    /// the smaller one.
    pub growth_bytes: u64,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            // At the speed of a disk for a minute, which is how long an answer is kept.
            spool_bytes: 8 << 30,
            queue_length: 1024,
            // An honest application has some hundreds, when a message was taken before its ring.
            empty_wakes_per_s: 5000,
            // A bus thread that is woken more often than every 20 us does little else.
            wakes_per_s: 50_000,
            shared: None,
        }
    }
}

impl Bounds {
    /// Why nothing new is accepted, if so much is on the disk.
    pub(super) fn spool_is_full(&self, spooled_bytes: u64) -> Option<Arc<str>> {
        let full = spooled_bytes >= self.spool_bytes;
        full.then(|| {
            let (now, limit) = (spooled_bytes >> 20, self.spool_bytes >> 20);
            format!(
                "the application's log holds {now} MiB, its limit is {limit}: nothing was \
                 accepted, what is open goes on; it shrinks as requests finish and answers \
                 expire, or raise limits.spool_mb in app.toml"
            )
            .into()
        })
    }
}

/// One of an application's limits, and how it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitState {
    /// As `[limits]` of `app.toml` calls it, in that unit; `cpu` in thousandths of a core.
    pub name: String,
    /// The limit.
    pub limit: u64,
    /// How much is used now, where that can be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<u64>,
    /// How often it has refused a request; of wake-ups, the seconds in which it held; of the
    /// kernel's, how often the kernel says that it held.
    pub hits: u64,
}

impl LimitState {
    /// What a person is told of a limit that was hit; nothing of another one.
    #[must_use]
    pub fn told(&self) -> Option<String> {
        let LimitState {
            name,
            limit,
            now,
            hits,
        } = self;
        (*hits > 0).then(|| match now {
            Some(now) => format!("{name}: hit {hits} times, now {now} of {limit}"),
            None => format!("{name}: hit {hits} times, the limit is {limit}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_spool_says_both_figures_and_where_the_limit_stands() {
        let bounds = Bounds {
            spool_bytes: 16 << 20,
            ..Bounds::default()
        };
        assert_eq!(bounds.spool_is_full((16 << 20) - 1), None);
        let reason = bounds.spool_is_full(17 << 20).unwrap();
        for words in ["17 MiB", "is 16", "limits.spool_mb"] {
            assert!(reason.contains(words), "{reason}");
        }
    }
}

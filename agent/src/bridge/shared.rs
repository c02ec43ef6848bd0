//! How an application stands to its limit of shared bytes. The guardian keeps it: a pool does not
//! grow beyond it, and who publishes waits. Here it is told how often that was.

use super::bounds::{LimitState, SharedBound};

/// What of a family's pool counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PoolUse {
    /// Bytes of the pool with its extensions.
    pub bytes: u64,
    /// How many extensions are among them.
    pub extensions: u64,
    /// Loans that were refused to it since its sandbox was made.
    pub refused: u64,
}

impl PoolUse {
    /// Each extension is as large as the pool was made.
    fn extension_bytes(&self) -> u64 {
        self.bytes / (self.extensions + 1)
    }

    fn grown_bytes(&self) -> u64 {
        self.extensions * self.extension_bytes()
    }
}

/// Loans that were refused while the limit forbade the pool to grow.
#[derive(Debug, Default)]
pub(super) struct SharedBytes {
    /// Refused loans of each family at the last look.
    seen: Vec<u64>,
    grown_bytes: u64,
    hits: u64,
}

impl SharedBytes {
    /// Looks at all families' pools.
    pub(super) fn look(&mut self, bound: &SharedBound, pools: &[PoolUse]) {
        self.grown_bytes = pools.iter().map(PoolUse::grown_bytes).sum();
        self.seen.resize(pools.len(), 0);
        for (seen, pool) in self.seen.iter_mut().zip(pools) {
            let before = std::mem::replace(seen, pool.refused);
            // A sandbox that was made anew counts from zero.
            let more = pool.refused.checked_sub(before).unwrap_or(pool.refused);
            if self.grown_bytes + pool.extension_bytes() > bound.growth_bytes {
                self.hits += more;
            }
        }
    }

    pub(super) fn state(&self, bound: &SharedBound) -> LimitState {
        LimitState {
            name: "shared_mb".into(),
            limit: bound.limit_bytes >> 20,
            now: Some((bound.made_bytes + self.grown_bytes) >> 20),
            hits: self.hits,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_loan_is_a_hit_only_where_the_pool_may_not_grow_any_more() {
        let bound = SharedBound {
            limit_bytes: 100 << 20,
            made_bytes: 60 << 20,
            growth_bytes: 40 << 20,
        };
        let pool = |extensions: u64, refused| PoolUse {
            bytes: (1 + extensions) * (20 << 20),
            extensions,
            refused,
        };
        let mut shared = SharedBytes::default();
        shared.look(&bound, &[pool(1, 5), pool(0, 0)]);
        assert_eq!(shared.hits, 0, "one more fits");
        shared.look(&bound, &[pool(1, 7), pool(1, 1)]);
        assert_eq!((shared.hits, shared.grown_bytes), (3, 40 << 20));
        shared.look(&bound, &[pool(2, 2), pool(0, 0)]);
        assert_eq!(shared.hits, 5, "made anew, at the limit, refused twice");
        let state = shared.state(&bound);
        assert_eq!((state.limit, state.now), (100, Some(100)));
    }
}

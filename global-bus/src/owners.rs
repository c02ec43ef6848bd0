//! Who writes which partition index: the ownership log, and the table that all hosts fold from it.
//!
//! An index (partition i of all topics of an application) has one owner. The log is one topic
//! partition, `<app>.owners`; its order decides, so every reader folds the same table. A host says
//! that it lives ([`OwnerNews::Alive`]); whoever has not read that for the detection time, by its
//! own monotonic clock, takes the host for dead and claims its indices with the next epoch. Of two
//! claims of the same epoch the first in the log counts.
//!
//! The table says who *should* write. What an older owner writes nevertheless is void by the fence
//! in each topic partition (see [`crate::GlobalBus::fence`]), not by anybody's clock.

use std::collections::BTreeMap;
use std::sync::Arc;

/// The grain name under which the ownership log is kept: the topic `<app>.owners`, of one
/// partition. No grain may have it.
pub const OWNERS: &str = "owners";

/// A host agent, as the others know it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// The host's name; it outlives agents.
    pub host: Arc<str>,
    /// The number of this agent among those of the host; each next one has a greater.
    pub incarnation: u64,
}

/// One record of the ownership log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerRecord {
    /// Who says it.
    pub owner: Owner,
    /// What.
    pub news: OwnerNews,
}

/// What a host says of itself and of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerNews {
    /// It lives. The number ascends by one, so that who says it knows its own again.
    Alive {
        /// The number.
        beat: u64,
    },
    /// It takes the index. Void unless the epoch is greater than the index's.
    Claim {
        /// The index.
        index: u32,
        /// The epoch under which it will write.
        epoch: u64,
    },
    /// It gives the index back, all of whose messages are finished or durable. Void unless it is
    /// the owner under this epoch.
    Release {
        /// The index.
        index: u32,
        /// The epoch under which it wrote.
        epoch: u64,
    },
    /// It ends in order: nobody has to wait for the detection time.
    Leave,
}

/// Who owns an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ownership {
    /// The owner; `None` after a release.
    pub owner: Option<Owner>,
    /// The epoch under which it writes, or its last owner wrote.
    pub epoch: u64,
}

/// What all hosts know alike once they have read the same records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnerTable {
    indices: BTreeMap<u32, Ownership>,
}

impl OwnerTable {
    /// Takes the next record of the log; whether it changed the table.
    pub fn apply(&mut self, record: &OwnerRecord) -> bool {
        match record.news {
            OwnerNews::Alive { .. } => false,
            OwnerNews::Claim { index, epoch } => {
                if epoch <= self.epoch(index) {
                    return false;
                }
                let owner = Some(record.owner.clone());
                self.indices.insert(index, Ownership { owner, epoch });
                true
            }
            OwnerNews::Release { index, epoch } => {
                let known = self.indices.get_mut(&index);
                let Some(known) = known.filter(|known| {
                    known.epoch == epoch && known.owner.as_ref() == Some(&record.owner)
                }) else {
                    return false;
                };
                known.owner = None;
                true
            }
            OwnerNews::Leave => {
                let mut left = false;
                for known in self.indices.values_mut() {
                    if known.owner.as_ref() == Some(&record.owner) {
                        known.owner = None;
                        left = true;
                    }
                }
                left
            }
        }
    }

    /// Who owns an index; `None` if nobody ever did.
    #[must_use]
    pub fn get(&self, index: u32) -> Option<&Ownership> {
        self.indices.get(&index)
    }

    /// The newest epoch of an index; 0 if nobody ever owned it.
    #[must_use]
    pub fn epoch(&self, index: u32) -> u64 {
        self.get(index).map_or(0, |known| known.epoch)
    }

    /// The indices that somebody owned, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Ownership)> {
        self.indices.iter().map(|(&index, known)| (index, known))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(host: &str, news: OwnerNews) -> OwnerRecord {
        let owner = Owner {
            host: host.into(),
            incarnation: 1,
        };
        OwnerRecord { owner, news }
    }

    fn claim(host: &str, epoch: u64) -> OwnerRecord {
        says(host, OwnerNews::Claim { index: 2, epoch })
    }

    #[test]
    fn of_two_claims_of_an_epoch_the_first_counts() {
        let mut table = OwnerTable::default();
        assert!(table.apply(&claim("a", 1)));
        assert!(!table.apply(&claim("b", 1)));
        assert_eq!(&*table.get(2).unwrap().owner.as_ref().unwrap().host, "a");
        assert!(table.apply(&claim("b", 2)));
        assert!(!table.apply(&claim("a", 1)), "an old claim read again");
        assert_eq!(table.epoch(2), 2);
    }

    #[test]
    fn only_the_owner_gives_back_and_the_epoch_stays() {
        let mut table = OwnerTable::default();
        let release = OwnerNews::Release { index: 2, epoch: 1 };
        table.apply(&claim("a", 1));
        assert!(!table.apply(&says("b", release)));
        assert!(!table.apply(&says("b", OwnerNews::Leave)));
        assert!(table.apply(&says("a", release)));
        assert_eq!(table.get(2).unwrap().owner, None);
        assert!(!table.apply(&claim("b", 1)), "epochs are not used again");
        assert!(table.apply(&claim("b", 2)));
        assert!(table.apply(&says("b", OwnerNews::Leave)));
        assert_eq!(table.epoch(2), 2);
    }
}

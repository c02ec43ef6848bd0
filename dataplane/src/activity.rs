//! What a family has to do, as its guardian sees it: who keeps workers loaded by their use asks,
//! and so does who starts one again.

use crate::guardian::Guardian;
use crate::topology::{FamilyIndex, SlotIndex};

/// What one family does at the moment. A snapshot: the next message may come right after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// Messages that have left the family's incoming lanes since its sandbox was made. What a
    /// hostile family writes may be anything.
    pub received: u64,
    /// A message waits in the queue, or in the hands of nobody.
    pub waiting: bool,
    /// An instance has taken a message and not finished with it.
    pub at_work: bool,
}

impl Guardian {
    /// What a family has to do. Some loads for each of its lanes and slots, whatever stands there;
    /// no system call, never blocks.
    #[must_use]
    pub fn activity(&self, family: FamilyIndex) -> Activity {
        let Some(bus) = self.view(family) else {
            return Activity::default();
        };
        let mut slots = (0..bus.own_layout().slots).map(SlotIndex);
        Activity {
            received: bus.counters(family).received,
            waiting: bus.has_waiting(family),
            at_work: slots.any(|slot| bus.slot_started_ns(slot) != 0),
        }
    }

    /// Whether a message waits for a family, taken by nobody who lives. As cheap as
    /// [`Guardian::activity`].
    #[must_use]
    pub fn has_waiting(&self, family: FamilyIndex) -> bool {
        self.view(family).is_some_and(|bus| bus.has_waiting(family))
    }
}

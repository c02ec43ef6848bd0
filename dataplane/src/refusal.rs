//! What no honest peer writes, by its kind, and who is not read any more because of it.
//!
//! A family that wrote one such word has lost its word for everything else: whoever found out
//! reads none of its lanes again. The others go on.

use crate::topology::FamilyIndex;

/// A word of another family that its protocol cannot have written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// A lane slot is stamped for another time around the lane than this one or the last.
    #[error("stamp {stamp} where position {position} is next")]
    Stamp {
        /// The position that is read next.
        position: u64,
        /// What stands there.
        stamp: u64,
    },
    /// The message is of no known kind.
    #[error("a message of kind {0}, which does not exist")]
    Kind(u8),
    /// The message has flags that do not exist.
    #[error("a message with flags {0:#04x}, some of which do not exist")]
    Flags(u8),
    /// More bytes than a lane slot holds.
    #[error("a message of {0} bytes in a lane slot, which holds 64")]
    Length(u32),
    /// A chunk that does not exist, or fewer bytes than are named.
    #[error("a reference to {len} bytes in chunk {chunk}: no such")]
    Reference {
        /// The chunk that was named.
        chunk: u64,
        /// The length that was named.
        len: u32,
    },
    /// The message is for a queue to which its sender has no lane.
    #[error("a message for queue {0}, to which its sender has no lane")]
    Queue(u16),
    /// A consumer says that it has taken what was never published, or gives a slot back twice.
    #[error("head {head} in a lane of which {tail} messages were published and {seen} taken")]
    Head {
        /// What the consumer says.
        head: u64,
        /// What it said before.
        seen: u64,
        /// What was published.
        tail: u64,
    },
    /// It speaks for a message that another grain handles.
    #[error("news of a message that another grain handles")]
    Parent,
    /// A dead event's reason is longer than its message.
    #[error("a dead event whose reason ends behind its message of {0} bytes")]
    Reason(u32),
}

impl Violation {
    /// One word for the kind: the label of a counter.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Violation::Stamp { .. } => "stamp",
            Violation::Kind(_) => "kind",
            Violation::Flags(_) => "flags",
            Violation::Length(_) => "length",
            Violation::Reference { .. } => "reference",
            Violation::Queue(_) => "queue",
            Violation::Head { .. } => "head",
            Violation::Parent => "parent",
            Violation::Reason(_) => "reason",
        }
    }
}

/// A violation and who is to blame: the owner of the page that it lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Refusal {
    /// The family that wrote it.
    pub family: FamilyIndex,
    /// What it wrote.
    pub violation: Violation,
}

/// Who was refused, kept by one reader in its own memory.
#[derive(Clone, Debug, Default)]
pub struct Refusals {
    /// By family: what it wrote first.
    first: Vec<Option<Violation>>,
    count: u64,
    news: Option<Refusal>,
}

impl Refusals {
    pub(crate) fn new(families: usize) -> Refusals {
        Refusals {
            first: vec![None; families],
            count: 0,
            news: None,
        }
    }

    /// Records a refusal; true if it is the family's first.
    pub(crate) fn record(&mut self, refusal: Refusal) -> bool {
        self.count += 1;
        let Some(first @ None) = self.first.get_mut(refusal.family.index()) else {
            return false;
        };
        *first = Some(refusal.violation);
        self.news = Some(refusal);
        true
    }

    pub(crate) fn take_news(&mut self) -> Option<Refusal> {
        self.news.take()
    }

    /// How often something was refused.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Why a family is not read any more; `None` while it is.
    #[must_use]
    pub fn of(&self, family: FamilyIndex) -> Option<Violation> {
        *self.first.get(family.index())?
    }
}

//! An event message: its header, and its payload or where that lies.

mod dead;
mod words;

pub use dead::{DEAD_OVERHEAD_MAX, join_dead, split_dead};

use sandpipe_abi::MessageId;
use sandpipe_abi::layout::{HEAD_MAX, INLINE_MAX};

#[cfg(all(test, loom))]
pub(crate) use self::words::set_words;
pub(crate) use self::words::{MessageWords, SharedWords, read_words, write_words};
use crate::topology::FamilyIndex;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// An event for a grain; in `LQ(HA)` its backup copy.
    Event,
    /// The last grain's output: the answer. Only in `LQ(HA)`.
    Final,
    /// A grain could not handle its message; the payload is the reason. Only in `LQ(HA)`.
    Failed,
    /// A grain could not handle its message, and its attempts are used up; the payload is the
    /// reason and the message's own data ([`join_dead`]). Only in `LQ(HA)`.
    Dead,
}

impl Kind {
    pub(super) const fn code(self) -> u64 {
        match self {
            Kind::Event => 1,
            Kind::Final => 2,
            Kind::Failed => 3,
            Kind::Dead => 4,
        }
    }

    pub(super) const fn from_code(code: u64) -> Option<Kind> {
        match code {
            1 => Some(Kind::Event),
            2 => Some(Kind::Final),
            3 => Some(Kind::Failed),
            4 => Some(Kind::Dead),
            _ => None,
        }
    }
}

/// Why a grain failed to handle a message ([`Kind::Failed`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailureCode {
    /// The handler returned or raised an error.
    HandlerError,
    /// The instance passed its time limit, as often as it may be tried.
    Timeout,
    /// The instance ended without an answer, as often as it may be tried.
    Crashed,
    /// The output is larger than the application's limit.
    PayloadTooLarge,
    /// The output names no grain that may follow.
    BadRoute,
    /// Some other reason, in words only.
    Other,
}

impl FailureCode {
    pub(super) const fn code(self) -> u64 {
        match self {
            FailureCode::HandlerError => 1,
            FailureCode::Timeout => 2,
            FailureCode::Crashed => 3,
            FailureCode::PayloadTooLarge => 4,
            FailureCode::BadRoute => 5,
            FailureCode::Other => 6,
        }
    }

    pub(super) const fn from_code(code: u64) -> FailureCode {
        match code {
            1 => FailureCode::HandlerError,
            2 => FailureCode::Timeout,
            3 => FailureCode::Crashed,
            4 => FailureCode::PayloadTooLarge,
            5 => FailureCode::BadRoute,
            _ => FailureCode::Other,
        }
    }
}

/// The part of a message that is enough to continue its workflow elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageHeader {
    /// This message.
    pub id: MessageId,
    /// The request that it belongs to.
    pub root: MessageId,
    /// The message whose handling made it; [`MessageId::NONE`] for a root.
    pub parent: MessageId,
    /// What it is.
    pub kind: Kind,
    /// The grain that it is for (also in its backup copy).
    pub queue: FamilyIndex,
    /// The last message of its commit: the parent is finished.
    pub last: bool,
    /// Somebody wants to know when each step happened.
    pub traced: bool,
    /// The reason's class, if `kind` is [`Kind::Failed`] or [`Kind::Dead`].
    pub failure: FailureCode,
}

impl MessageHeader {
    /// A header for an event: not last, not traced.
    #[must_use]
    pub const fn event(
        id: MessageId,
        root: MessageId,
        parent: MessageId,
        queue: FamilyIndex,
    ) -> MessageHeader {
        MessageHeader {
            id,
            root,
            parent,
            kind: Kind::Event,
            queue,
            last: false,
            traced: false,
            failure: FailureCode::Other,
        }
    }
}

/// When a traced message passed each step: nanoseconds of `CLOCK_MONOTONIC`, 0 = not passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceStamps {
    /// The parent was taken from its queue by an instance.
    pub taken_ns: u64,
    /// The handler began.
    pub started_ns: u64,
    /// The handler ended.
    pub ended_ns: u64,
    /// The output was about to be committed.
    pub published_ns: u64,
    /// The number of the attempt that made it, from 1; 0 = not said.
    pub attempt: u64,
    /// The sandbox started the worker of whoever made it; 0 = not said.
    pub worker_started_ns: u64,
    /// That worker had loaded its handler.
    pub worker_loaded_ns: u64,
}

/// The first bytes of a payload that lies in a chunk, as they travel in the lane slot: whoever
/// needs no more of it is spared the chunk's cache line, whose address only the message tells.
pub type Head = [u64; HEAD_MAX / 8];

/// Where a message's payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// In the message itself.
    Inline([u64; INLINE_MAX / 8]),
    /// In a chunk of the publishing family's pool.
    Chunk {
        /// Index of the chunk.
        chunk: u32,
        /// What the payload began with when it was staged.
        head: Head,
    },
    /// In a chunk; a traced message carries its times in the head's place.
    Traced {
        /// Index of the chunk.
        chunk: u32,
        /// Its times.
        trace: TraceStamps,
    },
}

impl Body {
    /// The chunk that holds the payload, if one does.
    #[must_use]
    #[inline(always)]
    pub fn chunk(&self) -> Option<u32> {
        match *self {
            Body::Inline(_) => None,
            Body::Chunk { chunk, .. } | Body::Traced { chunk, .. } => Some(chunk),
        }
    }
}

/// A message out of shared memory: copied once, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// The header.
    pub header: MessageHeader,
    /// Payload bytes.
    pub len: u32,
    /// Where they are.
    pub body: Body,
}

/// The id of output `index` of the message `parent`: the same in every re-run (SAND, section 4.2.1
/// leaves ids open; derived ids let every reader fold what was done twice).
#[must_use]
pub fn derive_child(parent: MessageId, index: u32) -> MessageId {
    let mut bytes = [0; 20];
    bytes[..16].copy_from_slice(&parent.0.to_le_bytes());
    bytes[16..].copy_from_slice(&index.to_le_bytes());
    let hash = blake3::hash(&bytes);
    let half: [u8; 16] = hash.as_bytes()[..16]
        .try_into()
        .expect("a BLAKE3 hash has 32 bytes");
    MessageId(u128::from_le_bytes(half))
}

#[cfg(all(test, not(loom)))]
mod tests;

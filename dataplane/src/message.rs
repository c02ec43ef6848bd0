//! An event message as it lies in a lane: a header of eight words and eight words of payload.

use sandpipe_abi::MessageId;
use sandpipe_abi::layout::INLINE_MAX;

use crate::memory::Memory;
use crate::sync::Ordering;
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
}

impl Kind {
    const fn code(self) -> u64 {
        match self {
            Kind::Event => 1,
            Kind::Final => 2,
            Kind::Failed => 3,
        }
    }

    const fn from_code(code: u64) -> Option<Kind> {
        match code {
            1 => Some(Kind::Event),
            2 => Some(Kind::Final),
            3 => Some(Kind::Failed),
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
    const fn code(self) -> u64 {
        match self {
            FailureCode::HandlerError => 1,
            FailureCode::Timeout => 2,
            FailureCode::Crashed => 3,
            FailureCode::PayloadTooLarge => 4,
            FailureCode::BadRoute => 5,
            FailureCode::Other => 6,
        }
    }

    const fn from_code(code: u64) -> FailureCode {
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
    /// The reason's class, if `kind` is [`Kind::Failed`].
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
}

/// Where a message's payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// In the message itself.
    Inline([u64; INLINE_MAX / 8]),
    /// In a chunk of the publishing family's pool.
    Chunk {
        /// Index of the chunk.
        chunk: u32,
        /// Times of a traced message.
        trace: TraceStamps,
    },
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

/// Words of a message without its stamp, as a lane slot and an in-flight entry hold them.
pub(crate) type MessageWords = [u64; 15];

/// The words of a message that are copied into and out of shared memory: all of them; in a loom
/// model three, which are enough to see a torn message in a reasonable number of schedules.
pub(crate) const SHARED_WORDS: &[usize] = if cfg!(loom) {
    &[0, 6, 7]
} else {
    &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
};

/// Reads a message's words from memory at `at`.
#[inline]
pub(crate) fn read_words(memory: &impl Memory, at: usize) -> MessageWords {
    let mut words = [0; 15];
    for &index in SHARED_WORDS {
        words[index] = memory.word(at + index * 8).load(Ordering::Relaxed);
    }
    words
}

/// Writes a message's words to memory at `at`.
#[inline]
pub(crate) fn write_words(memory: &impl Memory, at: usize, words: &MessageWords) {
    for &index in SHARED_WORDS {
        memory
            .word(at + index * 8)
            .store(words[index], Ordering::Relaxed);
    }
}

const FLAG_CHUNK: u64 = 1;
const FLAG_LAST: u64 = 2;
const FLAG_TRACED: u64 = 4;

impl Message {
    pub(crate) fn to_words(self) -> MessageWords {
        let header = &self.header;
        let mut flags = 0;
        let mut words = [0; 15];
        match self.body {
            Body::Inline(payload) => words[7..].copy_from_slice(&payload),
            Body::Chunk { chunk, trace } => {
                flags |= FLAG_CHUNK;
                words[7] = u64::from(chunk);
                words[8..12].copy_from_slice(&[
                    trace.taken_ns,
                    trace.started_ns,
                    trace.ended_ns,
                    trace.published_ns,
                ]);
            }
        }
        flags |= if header.last { FLAG_LAST } else { 0 };
        flags |= if header.traced { FLAG_TRACED } else { 0 };
        words[0..2].copy_from_slice(&header.id.words());
        words[2..4].copy_from_slice(&header.root.words());
        words[4..6].copy_from_slice(&header.parent.words());
        words[6] = u64::from(self.len)
            | header.kind.code() << 32
            | u64::from(header.queue.0 & 0xff) << 40
            | flags << 48
            | header.failure.code() << 56;
        words
    }

    /// Parses words that another process wrote; `None` if they are no message.
    pub(crate) fn from_words(words: &MessageWords) -> Option<Message> {
        let meta = words[6];
        let flags = meta >> 48 & 0xff;
        let len = (meta & 0xffff_ffff) as u32;
        let body = if flags & FLAG_CHUNK != 0 {
            let trace = TraceStamps {
                taken_ns: words[8],
                started_ns: words[9],
                ended_ns: words[10],
                published_ns: words[11],
            };
            Body::Chunk {
                chunk: u32::try_from(words[7]).ok()?,
                trace,
            }
        } else {
            if len as usize > INLINE_MAX {
                return None;
            }
            Body::Inline(
                words[7..]
                    .try_into()
                    .expect("eight words follow the header"),
            )
        };
        let header = MessageHeader {
            id: MessageId::from_words([words[0], words[1]]),
            root: MessageId::from_words([words[2], words[3]]),
            parent: MessageId::from_words([words[4], words[5]]),
            kind: Kind::from_code(meta >> 32 & 0xff)?,
            queue: FamilyIndex((meta >> 40 & 0xff) as u16),
            last: flags & FLAG_LAST != 0,
            traced: flags & FLAG_TRACED != 0,
            failure: FailureCode::from_code(meta >> 56),
        };
        Some(Message { header, len, body })
    }
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
mod tests {
    use super::*;

    #[test]
    fn a_message_keeps_every_field_through_its_words() {
        let header = MessageHeader {
            id: MessageId(1 << 100 | 7),
            root: MessageId(2),
            parent: MessageId(3),
            kind: Kind::Failed,
            queue: FamilyIndex(31),
            last: true,
            traced: true,
            failure: FailureCode::Timeout,
        };
        let trace = TraceStamps {
            taken_ns: 1,
            started_ns: 2,
            ended_ns: 3,
            published_ns: 4,
        };
        for body in [Body::Inline([9; 8]), Body::Chunk { chunk: 5, trace }] {
            let message = Message {
                header,
                len: 60,
                body,
            };
            assert_eq!(Message::from_words(&message.to_words()), Some(message));
        }
    }

    #[test]
    fn words_that_are_no_message_are_refused() {
        assert_eq!(Message::from_words(&[0; 15]), None);
        let header =
            MessageHeader::event(MessageId(1), MessageId(1), MessageId::NONE, FamilyIndex(1));
        let mut words = Message {
            header,
            len: 64,
            body: Body::Inline([0; 8]),
        }
        .to_words();
        words[6] += 1; // 65 bytes cannot be inline
        assert_eq!(Message::from_words(&words), None);
    }

    #[test]
    fn the_golden_bytes_of_an_event_do_not_change() {
        let header = MessageHeader::event(
            MessageId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
            MessageId(2),
            MessageId(3),
            FamilyIndex(4),
        );
        let words = Message {
            header,
            len: 8,
            body: Body::Inline([5, 0, 0, 0, 0, 0, 0, 0]),
        };
        let golden = [
            0x090a_0b0c_0d0e_0f10,
            0x0102_0304_0506_0708,
            2,
            0,
            3,
            0,
            0x0600_0401_0000_0008,
            5,
        ];
        assert_eq!(words.to_words()[..8], golden);
    }

    #[test]
    fn a_childs_id_depends_on_parent_and_index_only() {
        let child = derive_child(MessageId(1), 0);
        assert_eq!(child, derive_child(MessageId(1), 0));
        assert_ne!(child, derive_child(MessageId(1), 1));
        assert_ne!(child, derive_child(MessageId(2), 0));
    }
}

//! An event message as it lies in a lane: a header of eight words and eight words of payload.

use core::mem::offset_of;
use sandpipe_abi::MessageId;

use sandpipe_abi::layout::{HEAD_MAX, INLINE_MAX, LaneSlot};

use crate::memory::Memory;
use crate::refusal::Violation;
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

    /// The words of a message that carries its payload itself.
    #[inline(always)]
    pub(crate) fn with_inline(&self, len: u32, payload: &[u64; INLINE_MAX / 8]) -> MessageWords {
        let mut words = [0; 15];
        self.put(len, 0, &mut words);
        words[PAYLOAD..PARENT].copy_from_slice(payload);
        words
    }

    /// The words of a message whose payload lies in a chunk; `beside` is its head or its times.
    #[inline(always)]
    pub(crate) fn with_chunk(&self, len: u32, chunk: u32, beside: &Head) -> MessageWords {
        let mut words = [0; 15];
        self.put(len, FLAG_CHUNK, &mut words);
        words[PAYLOAD] = u64::from(chunk);
        words[PAYLOAD + 1..PARENT].copy_from_slice(beside);
        words
    }

    #[inline(always)]
    fn put(&self, len: u32, flags: u64, words: &mut MessageWords) {
        let last = if self.last { FLAG_LAST } else { 0 };
        let traced = if self.traced { FLAG_TRACED } else { 0 };
        words[0..2].copy_from_slice(&self.id.words());
        words[2..4].copy_from_slice(&self.root.words());
        words[PARENT..].copy_from_slice(&self.parent.words());
        words[META] = u64::from(len)
            | self.kind.code() << 32
            | u64::from(self.queue.0 & 0xff) << 40
            | (flags | last | traced) << 48
            | self.failure.code() << 56;
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

impl TraceStamps {
    pub(crate) fn to_words(self) -> Head {
        let TraceStamps {
            taken_ns,
            started_ns,
            ended_ns,
            published_ns,
        } = self;
        [taken_ns, started_ns, ended_ns, published_ns, 0, 0, 0]
    }

    fn from_words(words: &Head) -> TraceStamps {
        TraceStamps {
            taken_ns: words[0],
            started_ns: words[1],
            ended_ns: words[2],
            published_ns: words[3],
        }
    }
}

/// The first bytes of a payload that lies in a chunk, as they travel in the lane slot: whoever needs
/// no more of it is spared the chunk's cache line, whose address only the message tells.
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

/// Words of a message without its stamp, as a lane slot and an in-flight entry hold them.
pub(crate) type MessageWords = [u64; 15];

/// Where in [`MessageWords`] the fields of a lane slot are, behind id and root.
const META: usize = (offset_of!(LaneSlot, meta) - offset_of!(LaneSlot, id)) / 8;
const PAYLOAD: usize = (offset_of!(LaneSlot, payload) - offset_of!(LaneSlot, id)) / 8;
const PARENT: usize = (offset_of!(LaneSlot, parent) - offset_of!(LaneSlot, id)) / 8;

/// Reads a message's words from memory at `at`.
#[inline(always)]
pub(crate) fn read_words(memory: &impl Memory, at: usize) -> MessageWords {
    memory.note_read(at);
    let shared = memory.array::<15>(at);
    core::array::from_fn(|index| match is_shared(index) {
        true => shared[index].load(Ordering::Relaxed),
        false => 0,
    })
}

/// Writes a message's words to memory at `at`.
#[inline(always)]
pub(crate) fn write_words(memory: &impl Memory, at: usize, words: &MessageWords) {
    memory.note_write(at);
    let shared = memory.array::<15>(at);
    for index in (0..15).filter(|&index| is_shared(index)) {
        shared[index].store(words[index], Ordering::Relaxed);
    }
}

/// Whether a word of a message is copied into and out of shared memory: all are; in a loom model
/// three, which are enough to see a torn message in a reasonable number of schedules.
#[inline(always)]
const fn is_shared(index: usize) -> bool {
    !cfg!(loom) || matches!(index, 0 | META | PAYLOAD)
}

const FLAG_CHUNK: u64 = 1;
const FLAG_LAST: u64 = 2;
const FLAG_TRACED: u64 = 4;
const FLAGS: u64 = FLAG_CHUNK | FLAG_LAST | FLAG_TRACED;

impl Message {
    /// No message: to be parsed into.
    pub(crate) const EMPTY: Message = Message {
        header: MessageHeader::event(
            MessageId::NONE,
            MessageId::NONE,
            MessageId::NONE,
            FamilyIndex::AGENT,
        ),
        len: 0,
        body: Body::Inline([0; INLINE_MAX / 8]),
    };

    #[cfg(test)]
    pub(crate) fn to_words(self) -> MessageWords {
        match self.body {
            Body::Inline(payload) => self.header.with_inline(self.len, &payload),
            Body::Chunk { chunk, head } => self.header.with_chunk(self.len, chunk, &head),
            Body::Traced { chunk, trace } => {
                self.header.with_chunk(self.len, chunk, &trace.to_words())
            }
        }
    }

    /// Parses words that another process wrote, copied out before; an error if they are no message.
    pub(crate) fn from_words(words: &MessageWords) -> Result<Message, Violation> {
        let mut message = Message::EMPTY;
        if message.parse(words) {
            Ok(message)
        } else {
            Err(Message::violation(words))
        }
    }

    /// Why words that [`Message::parse`] refused are no message.
    #[cold]
    pub(crate) fn violation(words: &MessageWords) -> Violation {
        let meta = words[META];
        let (flags, kind) = (meta >> 48 & 0xff, meta >> 32 & 0xff);
        let len = (meta & 0xffff_ffff) as u32;
        if Kind::from_code(kind).is_none() {
            Violation::Kind(kind as u8)
        } else if flags & !FLAGS != 0 {
            Violation::Flags(flags as u8)
        } else if flags & FLAG_CHUNK == 0 {
            Violation::Length(len)
        } else {
            let chunk = words[PAYLOAD];
            Violation::Reference { chunk, len }
        }
    }

    /// Parses words that another process wrote into this message; false if they are none, and the
    /// message is then of no use. In place: a message is large, and the processor waits when it
    /// copies in wide steps what was just written in narrow ones.
    #[inline(always)]
    pub(crate) fn parse(&mut self, words: &MessageWords) -> bool {
        let meta = words[META];
        let flags = meta >> 48 & 0xff;
        let Some(kind) = Kind::from_code(meta >> 32 & 0xff) else {
            return false;
        };
        if flags & !FLAGS != 0 {
            return false;
        }
        self.len = (meta & 0xffff_ffff) as u32;
        let header = &mut self.header;
        header.id = MessageId::from_words([words[0], words[1]]);
        header.root = MessageId::from_words([words[2], words[3]]);
        header.parent = MessageId::from_words([words[PARENT], words[PARENT + 1]]);
        header.kind = kind;
        header.queue = FamilyIndex((meta >> 40 & 0xff) as u16);
        header.last = flags & FLAG_LAST != 0;
        header.traced = flags & FLAG_TRACED != 0;
        header.failure = FailureCode::from_code(meta >> 56);
        if flags & FLAG_CHUNK == 0 {
            let payload = core::array::from_fn(|index| words[PAYLOAD + index]);
            self.body = Body::Inline(payload);
            return self.len as usize <= INLINE_MAX;
        }
        let Ok(chunk) = u32::try_from(words[PAYLOAD]) else {
            return false;
        };
        let head = core::array::from_fn(|index| words[PAYLOAD + 1 + index]);
        self.body = if header.traced {
            let trace = TraceStamps::from_words(&head);
            Body::Traced { chunk, trace }
        } else {
            Body::Chunk { chunk, head }
        };
        true
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
        let traced = MessageHeader {
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
        let untraced = MessageHeader {
            traced: false,
            ..traced
        };
        let (chunk, head) = (5, [1, 2, 3, 4, 5, 6, 7]);
        for (header, body) in [
            (traced, Body::Inline([9; 8])),
            (traced, Body::Traced { chunk, trace }),
            (untraced, Body::Chunk { chunk, head }),
        ] {
            let message = Message {
                header,
                len: 60,
                body,
            };
            assert_eq!(Message::from_words(&message.to_words()), Ok(message));
        }
    }

    #[test]
    fn words_that_are_no_message_are_refused() {
        assert_eq!(Message::from_words(&[0; 15]), Err(Violation::Kind(0)));
        let header =
            MessageHeader::event(MessageId(1), MessageId(1), MessageId::NONE, FamilyIndex(1));
        let mut words = Message {
            header,
            len: 64,
            body: Body::Inline([0; 8]),
        }
        .to_words();
        words[META] += 1; // 65 bytes cannot be inline
        assert_eq!(Message::from_words(&words), Err(Violation::Length(65)));
        words[META] |= 8 << 48;
        assert_eq!(Message::from_words(&words), Err(Violation::Flags(8)));
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
            0x0600_0401_0000_0008,
            5,
        ];
        let words = words.to_words();
        assert_eq!(words[..6], golden);
        assert_eq!(words[13..], [3, 0]);
    }

    #[test]
    fn a_childs_id_depends_on_parent_and_index_only() {
        let child = derive_child(MessageId(1), 0);
        assert_eq!(child, derive_child(MessageId(1), 0));
        assert_ne!(child, derive_child(MessageId(1), 1));
        assert_ne!(child, derive_child(MessageId(2), 0));
    }
}

//! A message as words: how it is written into a lane slot, read out of one, and checked.

use core::mem::offset_of;

use sandpipe_abi::MessageId;
use sandpipe_abi::layout::{INLINE_MAX, LaneSlot};

use super::{Body, FailureCode, Head, Kind, Message, MessageHeader, TraceStamps};
use crate::memory::Memory;
use crate::refusal::Violation;
use crate::sync::{AtomicU64, Ordering};
use crate::topology::FamilyIndex;

/// Words of a message without its stamp, as a lane slot and an in-flight entry hold them.
pub(crate) type MessageWords = [u64; 15];
/// The same where others can see them.
pub(crate) type SharedWords = [AtomicU64; 15];

/// Where in [`MessageWords`] the fields of a lane slot are, behind id and root.
pub(super) const META: usize = (offset_of!(LaneSlot, meta) - offset_of!(LaneSlot, id)) / 8;
const PAYLOAD: usize = (offset_of!(LaneSlot, payload) - offset_of!(LaneSlot, id)) / 8;
const PARENT: usize = (offset_of!(LaneSlot, parent) - offset_of!(LaneSlot, id)) / 8;

/// Reads a message's words from memory at `at`.
#[inline(always)]
pub(crate) fn read_words(memory: &impl Memory, at: usize) -> MessageWords {
    memory.note_read(at);
    let shared = memory.array::<15>(at);
    core::array::from_fn(|index| get(shared, index))
}

/// Writes a message's words to memory at `at`.
#[inline(always)]
pub(crate) fn write_words(memory: &impl Memory, at: usize, words: &MessageWords) {
    memory.note_write(at);
    set_words(memory.array(at), words);
}

#[inline(always)]
pub(crate) fn set_words(shared: &SharedWords, words: &MessageWords) {
    for (index, &word) in words.iter().enumerate() {
        set(shared, index, word);
    }
}

#[inline(always)]
fn get(shared: &SharedWords, index: usize) -> u64 {
    match is_shared(index) {
        true => shared[index].load(Ordering::Relaxed),
        false => 0,
    }
}

#[inline(always)]
fn set(shared: &SharedWords, index: usize, word: u64) {
    if is_shared(index) {
        shared[index].store(word, Ordering::Relaxed);
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

impl MessageHeader {
    /// Writes a message that carries its payload itself, straight into its slot: the processor
    /// fetches the slot's lines from the consumer's core while the rest is still being made.
    ///
    /// From the end to the beginning: the first line holds the stamp, and a consumer that looks at
    /// it between its first word and the stamp takes it away once more.
    #[inline(always)]
    pub(crate) fn write_inline(&self, slot: &SharedWords, payload: &[u8]) {
        // Word by word: whoever wrote the bytes a moment ago did so too, and a wider load would
        // wait for its stores.
        let mut words = [0; INLINE_MAX];
        let full: &[u8; INLINE_MAX] = match payload.try_into() {
            Ok(full) => full,
            Err(_) => {
                words[..payload.len()].copy_from_slice(payload);
                &words
            }
        };
        let (words, _) = full.as_chunks();
        for (index, &word) in words.iter().enumerate().rev() {
            set(slot, PAYLOAD + index, u64::from_le_bytes(word));
        }
        self.write(slot, payload.len() as u32, 0);
    }

    /// Writes a message whose payload lies in a chunk; `beside` is its head or its times.
    #[inline(always)]
    pub(crate) fn write_chunk(&self, slot: &SharedWords, len: u32, chunk: u32, beside: &Head) {
        for (index, &word) in beside.iter().enumerate().rev() {
            set(slot, PAYLOAD + 1 + index, word);
        }
        set(slot, PAYLOAD, u64::from(chunk));
        self.write(slot, len, FLAG_CHUNK);
    }

    #[inline(always)]
    fn write(&self, slot: &SharedWords, len: u32, flags: u64) {
        let last = if self.last { FLAG_LAST } else { 0 };
        let traced = if self.traced { FLAG_TRACED } else { 0 };
        let meta = u64::from(len)
            | self.kind.code() << 32
            | u64::from(self.queue.0 & 0xff) << 40
            | (flags | last | traced) << 48
            | self.failure.code() << 56;
        set(slot, META, meta);
        for (at, id) in [(PARENT, self.parent), (2, self.root), (0, self.id)] {
            let [low, high] = id.words();
            set(slot, at, low);
            set(slot, at + 1, high);
        }
    }
}

impl TraceStamps {
    pub(crate) fn to_words(self) -> Head {
        let TraceStamps {
            taken_ns,
            started_ns,
            ended_ns,
            published_ns,
            attempt,
            worker_started_ns,
            worker_loaded_ns,
        } = self;
        [
            taken_ns,
            started_ns,
            ended_ns,
            published_ns,
            attempt,
            worker_started_ns,
            worker_loaded_ns,
        ]
    }

    fn from_words(words: &Head) -> TraceStamps {
        TraceStamps {
            taken_ns: words[0],
            started_ns: words[1],
            ended_ns: words[2],
            published_ns: words[3],
            attempt: words[4],
            worker_started_ns: words[5],
            worker_loaded_ns: words[6],
        }
    }
}

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

    #[cfg(all(test, not(loom)))]
    pub(crate) fn to_words(self) -> MessageWords {
        let slot: SharedWords = Default::default();
        let Message { header, len, body } = self;
        match body {
            Body::Inline(payload) => {
                let bytes: Vec<u8> = payload.iter().flat_map(|word| word.to_le_bytes()).collect();
                header.write_inline(&slot, &bytes[..len as usize]);
            }
            Body::Chunk { chunk, head } => header.write_chunk(&slot, len, chunk, &head),
            Body::Traced { chunk, trace } => {
                header.write_chunk(&slot, len, chunk, &trace.to_words());
            }
        }
        slot.map(AtomicU64::into_inner)
    }

    /// Parses words that another process wrote, copied out before; an error if they are no message.
    pub(crate) fn from_words(words: &MessageWords) -> Result<Message, Violation> {
        let mut message = Message::EMPTY;
        message.parse(words).map(|()| message)
    }

    /// Parses words that another process wrote into this message, which is of no use if they are
    /// none. In place: a message is large, and the processor waits when it copies in wide steps
    /// what was just written in narrow ones.
    #[inline(always)]
    pub(crate) fn parse(&mut self, words: &MessageWords) -> Result<(), Violation> {
        self.parse_words(|index| words[index])
    }

    /// [`Message::parse`] out of memory at `at`. Each word is read once: what is checked is what is
    /// used, whatever its owner writes meanwhile.
    #[inline(always)]
    pub(crate) fn parse_at(&mut self, memory: &impl Memory, at: usize) -> Result<(), Violation> {
        memory.note_read(at);
        let shared = memory.array::<15>(at);
        self.parse_words(|index| get(shared, index))
    }

    #[inline(always)]
    fn parse_words(&mut self, word: impl Fn(usize) -> u64) -> Result<(), Violation> {
        let (meta, first) = (word(META), word(PAYLOAD));
        let flags = meta >> 48 & 0xff;
        let Some(kind) = Kind::from_code(meta >> 32 & 0xff) else {
            return Err(violation(meta, first));
        };
        self.len = (meta & 0xffff_ffff) as u32;
        let sound = match flags & FLAG_CHUNK == 0 {
            true => self.len as usize <= INLINE_MAX,
            false => first <= u64::from(u32::MAX),
        };
        if flags & !FLAGS != 0 || !sound {
            return Err(violation(meta, first));
        }
        let header = &mut self.header;
        header.id = MessageId::from_words([word(0), word(1)]);
        header.root = MessageId::from_words([word(2), word(3)]);
        header.parent = MessageId::from_words([word(PARENT), word(PARENT + 1)]);
        header.kind = kind;
        header.queue = FamilyIndex((meta >> 40 & 0xff) as u16);
        header.last = flags & FLAG_LAST != 0;
        header.traced = flags & FLAG_TRACED != 0;
        header.failure = match kind {
            Kind::Failed | Kind::Dead => FailureCode::from_code(meta >> 56),
            _ => FailureCode::Other,
        };
        if flags & FLAG_CHUNK == 0 {
            self.body = Body::Inline(core::array::from_fn(|index| match index {
                0 => first,
                _ => word(PAYLOAD + index),
            }));
            return Ok(());
        }
        let head = core::array::from_fn(|index| word(PAYLOAD + 1 + index));
        let chunk = first as u32;
        self.body = match header.traced {
            true => Body::Traced {
                chunk,
                trace: TraceStamps::from_words(&head),
            },
            false => Body::Chunk { chunk, head },
        };
        Ok(())
    }
}

/// Why a message's words are none, by the two that tell.
#[cold]
fn violation(meta: u64, first: u64) -> Violation {
    let (flags, kind) = (meta >> 48 & 0xff, meta >> 32 & 0xff);
    let len = (meta & 0xffff_ffff) as u32;
    if Kind::from_code(kind).is_none() {
        Violation::Kind(kind as u8)
    } else if flags & !FLAGS != 0 {
        Violation::Flags(flags as u8)
    } else if flags & FLAG_CHUNK == 0 {
        Violation::Length(len)
    } else {
        Violation::Reference { chunk: first, len }
    }
}

use core::fmt;

/// The identity of one event message, 128 bits, the same on every host and in every re-run.
///
/// A root's id is made at the front door; a child's is derived from its parent and its output's
/// index (`sandpipe::derive_child`), so that a re-run makes the same ids and every reader can fold
/// by id. Zero is no id: a zeroed page is a valid empty state.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(pub u128);

impl MessageId {
    /// No message.
    pub const NONE: MessageId = MessageId(0);

    /// Whether this is no id at all.
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// The id as the two 64-bit words in which it lies in shared memory, low word first.
    #[must_use]
    pub const fn words(self) -> [u64; 2] {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "each half is taken on purpose"
        )]
        let low = self.0 as u64;
        [low, (self.0 >> 64) as u64]
    }

    /// The id from the two words of [`MessageId::words`].
    #[must_use]
    pub const fn from_words(words: [u64; 2]) -> MessageId {
        MessageId((words[1] as u128) << 64 | words[0] as u128)
    }

    /// Parses the 32 hexadecimal digits that [`fmt::Display`] prints; `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<MessageId> {
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        u128::from_str_radix(text, 16).ok().map(MessageId)
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MessageId({self})")
    }
}

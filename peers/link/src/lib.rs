//! A link between two processes, and how it is timed: the same loops for the local bus, for its
//! floors and for every peer, so that a ratio compares transports and not measurements.
#![forbid(unsafe_code)]

pub mod one_way;
pub mod program;
pub mod round_trip;

use rustix::time::{ClockId, clock_gettime};

/// What a receiver saw of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its first eight bytes: the sender's count.
    pub first: u64,
    /// The sum over all words that were read.
    pub sum: u64,
}

/// One process's end of a link. An implementation copies what it is given to send into the
/// transport, and reads what it receives, word by word (of a link that touches the head only: the
/// first 64 bytes).
pub trait Link {
    /// Why a link breaks.
    type Error;

    /// Sends one message; waits while there is no room.
    ///
    /// # Errors
    /// The transport's.
    fn send(&mut self, message: &[u8]) -> Result<(), Self::Error>;

    /// Waits for a message and reads it.
    ///
    /// # Errors
    /// The transport's; also if nothing comes for a long time.
    fn receive(&mut self) -> Result<Seen, Self::Error>;

    /// Sends one message without waiting; false while there is no room.
    ///
    /// # Errors
    /// The transport's.
    fn try_send(&mut self, message: &[u8]) -> Result<bool, Self::Error>;

    /// Sends what was held back until now, where a transport publishes in batches.
    ///
    /// # Errors
    /// The transport's.
    fn flush(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }

    /// What a message out of its turn is.
    fn out_of_order(expected: u64, seen: Seen) -> Self::Error;
}

/// `CLOCK_MONOTONIC` in nanoseconds: the same clock in every process of the machine.
#[must_use]
#[inline]
pub fn now_ns() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    #[expect(clippy::cast_sign_loss, reason = "the monotonic clock starts at boot")]
    let ns = time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64;
    ns
}

/// Reads bytes as words and adds them up; what is left of the last word is not read.
#[must_use]
#[inline]
pub fn read(bytes: &[u8]) -> Seen {
    let (words, _) = bytes.as_chunks::<8>();
    let word = |bytes: &[u8; 8]| u64::from_le_bytes(*bytes);
    let first = words.first().map_or(0, word);
    let sum = words.iter().map(word).fold(0, u64::wrapping_add);
    Seen { first, sum }
}

/// Puts a count into a message's first eight bytes.
#[inline]
pub fn number(message: &mut [u8], count: u64) {
    message[..8].copy_from_slice(&count.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_as_words() {
        let mut message = [1_u8; 24];
        number(&mut message, 7);
        let rest = 2 * 0x0101_0101_0101_0101_u64;
        let seen = Seen {
            first: 7,
            sum: rest + 7,
        };
        assert_eq!(read(&message), seen);
    }
}

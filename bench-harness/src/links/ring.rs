//! The least that can carry 64 bytes: a ring of two cache lines a message (a stamp and the payload
//! in 128 bytes), no head, no commit, no bell, no recovery. Only one message is under way at a
//! time, so nothing overtakes it.

use std::array::from_fn;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use sandpipe_link::{Link, Seen};

use crate::clock::spin_until;
use crate::error::BenchError;
use crate::raw::SharedWords;

/// Messages that the ring holds.
const SLOTS: u64 = 1024;
/// Words of a slot: stamp, length, eight of payload, padding to 128 bytes.
const SLOT_WORDS: usize = 16;
/// Words of both rings.
const WORDS: usize = 2 * SLOTS as usize * SLOT_WORDS;

/// Where the ring lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In an anonymous file of memory.
    Memfd,
    /// In a named segment, as the crate `shared_memory` makes it.
    NamedSegment,
}

/// One end of two rings, one for each direction.
pub struct RingEnd {
    words: Rc<SharedWords>,
    out_at: usize,
    in_at: usize,
    sent: u64,
    received: u64,
}

/// Both ends.
///
/// # Errors
/// If the memory cannot be mapped.
pub fn ends(place: Place) -> Result<[RingEnd; 2], BenchError> {
    let words = Rc::new(match place {
        Place::Memfd => SharedWords::in_memfd(WORDS)?,
        Place::NamedSegment => SharedWords::in_named_segment(WORDS)?,
    });
    let end = |out_at, in_at| RingEnd {
        words: Rc::clone(&words),
        out_at,
        in_at,
        sent: 0,
        received: 0,
    };
    Ok([end(0, WORDS / 2), end(WORDS / 2, 0)])
}

#[inline]
fn slot(position: u64) -> usize {
    (position % SLOTS) as usize * SLOT_WORDS
}

impl Link for RingEnd {
    type Error = BenchError;

    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<(), BenchError> {
        let at = self.out_at + slot(self.sent);
        let word = |index: usize| self.words.word(at + index);
        word(1).store(message.len() as u64, Ordering::Relaxed);
        let (parts, _) = message.as_chunks::<8>();
        for (index, part) in parts.iter().enumerate().take(8) {
            word(2 + index).store(u64::from_le_bytes(*part), Ordering::Relaxed);
        }
        word(0).store(self.sent + 1, Ordering::Release);
        self.sent += 1;
        Ok(())
    }

    #[inline]
    fn receive(&mut self) -> Result<Seen, BenchError> {
        let at = self.in_at + slot(self.received);
        let (stamp, expected) = (self.words.word(at), self.received + 1);
        spin_until("the other end of the ring", || {
            stamp.load(Ordering::Acquire) == expected
        })?;
        self.received = expected;
        let payload: [u64; 8] =
            from_fn(|index| self.words.word(at + 2 + index).load(Ordering::Relaxed));
        Ok(Seen {
            first: payload[0],
            sum: payload.iter().copied().fold(0, u64::wrapping_add),
        })
    }

    fn try_send(&mut self, message: &[u8]) -> Result<bool, BenchError> {
        self.send(message).map(|()| true)
    }

    fn out_of_order(expected: u64, seen: Seen) -> BenchError {
        let detail = format!("message {} came in place of {expected}", seen.first);
        BenchError::peer("the ring", detail)
    }
}

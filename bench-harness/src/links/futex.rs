//! The least that wakes a sleeper and is woken: one word each way, FUTEX_WAKE and FUTEX_WAIT.

use std::rc::Rc;
use std::sync::atomic::Ordering;

use sandpipe_link::{Link, Seen};

use crate::clock::{futex_wait, futex_wake};
use crate::error::BenchError;
use crate::raw::SharedWords;

/// One end of a pair of futex words.
pub struct FutexEnd {
    words: Rc<SharedWords>,
    out: usize,
    sent: u32,
    received: u32,
}

/// Both ends.
///
/// # Errors
/// If the memory cannot be mapped.
pub fn ends() -> Result<[FutexEnd; 2], BenchError> {
    let words = Rc::new(SharedWords::new(2)?);
    let end = |out| FutexEnd {
        words: Rc::clone(&words),
        out,
        sent: 0,
        received: 0,
    };
    Ok([end(0), end(1)])
}

impl Link for FutexEnd {
    type Error = BenchError;

    #[inline]
    fn send(&mut self, _message: &[u8]) -> Result<(), BenchError> {
        self.sent += 1;
        let word = self.words.futex(self.out);
        word.store(self.sent, Ordering::Release);
        futex_wake(word);
        Ok(())
    }

    #[inline]
    fn receive(&mut self) -> Result<Seen, BenchError> {
        let word = self.words.futex(1 - self.out);
        while word.load(Ordering::Acquire) == self.received {
            futex_wait(word, self.received);
        }
        self.received += 1;
        let first = u64::from(self.received);
        Ok(Seen { first, sum: first })
    }

    fn try_send(&mut self, message: &[u8]) -> Result<bool, BenchError> {
        self.send(message).map(|()| true)
    }

    fn out_of_order(expected: u64, seen: Seen) -> BenchError {
        let detail = format!("wake-up {} came in place of {expected}", seen.first);
        BenchError::peer("the futex", detail)
    }
}

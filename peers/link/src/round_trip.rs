//! Round trips: one message under way at a time.
//!
//! The clock ticks in 10 ns on some machines and costs 30, so short trips are timed a hundred
//! together; singly only for the tail.

use std::hint::black_box;
use std::time::Duration;

use crate::{Link, now_ns, number};

/// Trips of one measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trips {
    /// Bytes of a message.
    pub len: usize,
    /// Samples wanted.
    pub samples: usize,
    /// Round trips timed together.
    pub together: usize,
    /// Sleep before each sample.
    pub pause: Duration,
}

impl Trips {
    /// Trips one after another.
    #[must_use]
    pub fn busy(len: usize, samples: usize, together: usize) -> Trips {
        Trips {
            len,
            samples,
            together,
            pause: Duration::ZERO,
        }
    }

    /// Trips that come first and are not counted.
    #[must_use]
    pub fn warm_up(&self) -> usize {
        self.together.max(8)
    }

    /// How many messages go each way.
    #[must_use]
    pub fn all(&self) -> usize {
        self.warm_up() + self.samples * self.together
    }
}

/// Sends and waits for the answers; gives the mean of each block in ns to `sample`.
///
/// # Errors
/// The link's, or an answer that is not the one expected.
pub fn ping<L: Link>(
    link: &mut L,
    trips: Trips,
    mut sample: impl FnMut(usize, u64),
) -> Result<(), L::Error> {
    let mut message = vec![1_u8; trips.len];
    let mut count = 0;
    let mut turn = |link: &mut L| {
        count += 1;
        number(&mut message, count);
        link.send(&message)?;
        let seen = link.receive()?;
        if seen.first != count {
            return Err(L::out_of_order(count, seen));
        }
        black_box(seen.sum);
        Ok(())
    };
    for _ in 0..trips.warm_up() {
        turn(link)?;
    }
    for index in 0..trips.samples {
        if !trips.pause.is_zero() {
            std::thread::sleep(trips.pause);
        }
        let start = now_ns();
        for _ in 0..trips.together {
            turn(link)?;
        }
        let ns = now_ns() - start;
        sample(index, ns / trips.together as u64);
        link.flush()?;
    }
    Ok(())
}

/// Answers every message of [`ping`] with one as long.
///
/// # Errors
/// The link's, or a message that is not the one expected.
pub fn echo<L: Link>(link: &mut L, trips: Trips) -> Result<(), L::Error> {
    let mut message = vec![2_u8; trips.len];
    for count in 1..=trips.all() as u64 {
        let seen = link.receive()?;
        if seen.first != count {
            return Err(L::out_of_order(count, seen));
        }
        black_box(seen.sum);
        number(&mut message, count);
        link.send(&message)?;
    }
    Ok(())
}

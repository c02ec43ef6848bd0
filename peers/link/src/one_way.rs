//! One way: as many messages as the link takes, counted where they arrive. Nothing is dropped: a
//! producer that finds no room waits.

use std::hint::{black_box, spin_loop};

use crate::{Link, now_ns, number};

/// A stream of one measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// Bytes of a message.
    pub len: usize,
    /// Samples wanted.
    pub samples: usize,
    /// Messages timed together.
    pub together: usize,
    /// Messages that come first and are not counted: more than the link's buffers hold, so that
    /// no page is touched for the first time.
    pub warm_up: usize,
}

/// Messages whose time a sample gives: a single one takes a few ns, below the unit of a sample.
pub const PER_SAMPLE: u64 = 1000;
/// Looks for room before the core is given to somebody else.
const LOOKS: u32 = 64;

/// Receives; gives the time for [`PER_SAMPLE`] messages in ns, by each block, to `sample`.
///
/// # Errors
/// The link's.
pub fn consume<L: Link>(
    link: &mut L,
    stream: Stream,
    mut sample: impl FnMut(usize, u64),
) -> Result<(), L::Error> {
    for _ in 0..stream.warm_up {
        black_box(link.receive()?.sum);
    }
    let mut start = now_ns();
    for index in 0..stream.samples {
        for _ in 0..stream.together {
            black_box(link.receive()?.sum);
        }
        let now = now_ns();
        sample(index, (now - start) * PER_SAMPLE / stream.together as u64);
        start = now;
    }
    Ok(())
}

/// Sends until `stop` says so.
///
/// # Errors
/// The link's.
pub fn produce<L: Link>(link: &mut L, len: usize, stop: impl Fn() -> bool) -> Result<(), L::Error> {
    let mut message = vec![1_u8; len];
    let mut count = 0;
    loop {
        count += 1;
        number(&mut message, count);
        let mut looks = 0;
        while !link.try_send(&message)? {
            if stop() {
                return Ok(());
            }
            looks += 1;
            if looks < LOOKS {
                spin_loop();
            } else {
                looks = 0;
                std::thread::yield_now();
            }
        }
        if count % 64 == 0 && stop() {
            return Ok(());
        }
    }
}

//! What the harness's grains append to their messages: when each handler started and ended, as two
//! little-endian words.

use crate::error::BenchError;

/// One handler's times, ns of the shared clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamps {
    /// The handler's first line.
    pub start_ns: u64,
    /// Its last.
    pub end_ns: u64,
}

impl Stamps {
    /// The times of the last `N` handlers of a chain, in the chain's order.
    ///
    /// # Errors
    /// [`BenchError::Peer`] if the payload is too short or a grain started before the one before
    /// it ended.
    pub fn of_grains<const N: usize>(payload: &[u8]) -> Result<[Stamps; N], BenchError> {
        let wrong = |detail: &str| {
            BenchError::peer(
                "the grains' stamps",
                format!("{detail}: {} bytes", payload.len()),
            )
        };
        let first = payload
            .len()
            .checked_sub(N * 16)
            .ok_or_else(|| wrong("too short"))?;
        let word = |at: usize| {
            let bytes = payload[at..at + 8].try_into().expect("eight bytes");
            u64::from_le_bytes(bytes)
        };
        let stamps: [Stamps; N] = std::array::from_fn(|grain| {
            let at = first + grain * 16;
            Stamps {
                start_ns: word(at),
                end_ns: word(at + 8),
            }
        });
        let ordered = stamps.iter().all(|s| s.start_ns <= s.end_ns)
            && stamps
                .windows(2)
                .all(|pair| pair[0].end_ns <= pair[1].start_ns);
        if ordered {
            Ok(stamps)
        } else {
            Err(wrong("out of order"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Stamps {
        fn append(self, before: &[u8]) -> Vec<u8> {
            [
                before,
                &self.start_ns.to_le_bytes(),
                &self.end_ns.to_le_bytes(),
            ]
            .concat()
        }
    }

    #[test]
    fn stamps_travel_through_a_chain() {
        let one = Stamps {
            start_ns: 1,
            end_ns: 2,
        };
        let two = Stamps {
            start_ns: 3,
            end_ns: 5,
        };
        let payload = two.append(&one.append(b"request"));
        assert_eq!(Stamps::of_grains(&payload).unwrap(), [one, two]);
    }

    #[test]
    fn stamps_that_cannot_be_are_refused() {
        assert!(Stamps::of_grains::<2>(&[0; 31]).is_err());
        let late = Stamps {
            start_ns: 9,
            end_ns: 10,
        };
        let early = Stamps {
            start_ns: 3,
            end_ns: 5,
        };
        assert!(Stamps::of_grains::<2>(&early.append(&late.append(b""))).is_err());
    }
}

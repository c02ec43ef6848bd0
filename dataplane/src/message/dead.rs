//! The payload of [`Kind::Dead`](super::Kind::Dead): why an event's attempts were used up, and the
//! event's own data, so that it can be sent again. Length of the reason (2 bytes, little-endian),
//! the reason, the data.

/// Bytes that the payload has beyond the event's data, at the most.
pub const DEAD_OVERHEAD_MAX: usize = 1024;

/// Makes the payload. Of the reason at most [`DEAD_OVERHEAD_MAX`] − 2 bytes are kept, whole
/// characters. Allocates.
#[must_use]
pub fn join_dead(reason: &str, data: &[u8]) -> Vec<u8> {
    let mut end = reason.len().min(DEAD_OVERHEAD_MAX - 2);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let length = u16::try_from(end).expect("it is at most 1022");
    let parts = [&length.to_le_bytes(), &reason.as_bytes()[..end], data];
    parts.concat()
}

/// Reason and data of such a payload; `None` if it is none. The bytes may be hostile.
#[must_use]
pub fn split_dead(payload: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = payload.split_first_chunk()?;
    rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_joined_is_split_into_the_same() {
        for (reason, data) in [("it died", &b"event"[..]), ("", b""), ("x", &[0; 5000])] {
            let payload = join_dead(reason, data);
            assert_eq!(split_dead(&payload), Some((reason.as_bytes(), data)));
        }
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let payload = join_dead(&"é".repeat(2000), b"event");
        let (reason, data) = split_dead(&payload).unwrap();
        assert_eq!(
            (str::from_utf8(reason).unwrap().len(), data),
            (1022, &b"event"[..])
        );
        assert!(payload.len() <= DEAD_OVERHEAD_MAX + 5);
        let odd = join_dead(&format!("x{}", "é".repeat(2000)), b"");
        assert_eq!(split_dead(&odd).unwrap().0.len(), 1021);
    }

    #[test]
    fn a_length_that_is_not_there_is_refused() {
        for payload in [&b""[..], b"\x01", b"\x02\x00a", b"\xff\xffabc"] {
            assert_eq!(split_dead(payload), None, "{payload:?}");
        }
    }
}

//! The bytes of a segment file. All numbers are little-endian.
//!
//! ```text
//! segment header, 32 bytes           frame
//!   0  8  magic "SNDPBLOG"             0  4  length of the body in bytes
//!   8  4  format version = 1           4  4  CRC-32C of bytes 0..4, 8..20 and the body
//!  12  4  zero                         8  8  sequence number of the record
//!  16  8  first sequence number       16  1  frame version = 1
//!  24  4  zero                        17  1  kind: 1 record, 2 synced
//!  28  4  CRC-32C of bytes 0..28      18  2  zero
//!                                     20     body
//! ```
//!
//! A *record* frame's body is an encoded record (see the codec); sequence numbers have no gaps. A
//! *synced* frame begins each group of records that is written and synced together; its sequence
//! number is that of the group's first record, its body (8 bytes) the sequence number below which
//! everything was durable before the group was written. So a reader can tell a torn tail, which
//! nobody was told about, from damage to an acknowledged record.

/// The length of a segment's header.
pub(crate) const SEGMENT_HEADER_BYTES: usize = 32;

/// The length of a frame without its body.
pub(crate) const FRAME_HEADER_BYTES: usize = 20;

/// The length of a synced frame.
pub(crate) const SYNCED_BYTES: usize = FRAME_HEADER_BYTES + 8;

const MAGIC: [u8; 8] = *b"SNDPBLOG";
const FORMAT_VERSION: u32 = 1;
const FRAME_VERSION: u8 = 1;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Record = 1,
    Synced = 2,
}

/// A frame whose checksum is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) kind: Kind,
    pub(crate) sequence: u64,
    pub(crate) body: &'a [u8],
}

/// Why a segment's header is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderError {
    /// Too short, not ours, or damaged.
    Damaged,
    /// Written by a newer build.
    Version(u32),
}

impl<'a> Frame<'a> {
    /// Reads the frame at the beginning of `bytes`; `None` if there is no valid one.
    pub(crate) fn read(bytes: &'a [u8]) -> Option<Frame<'a>> {
        let (header, rest) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>()?;
        let length = usize::try_from(u32_at(header, 0)).ok()?;
        let body = rest.get(..length)?;
        let kind = match header[17] {
            1 => Kind::Record,
            2 if length == 8 => Kind::Synced,
            _ => return None,
        };
        if header[16] != FRAME_VERSION || header[18..] != [0; 2] {
            return None;
        }
        (u32_at(header, 4) == checksum(header, body)).then(|| Frame {
            kind,
            sequence: u64_at(header, 8),
            body,
        })
    }

    /// Like [`Frame::read`], for bytes that this process has just written: no checksum.
    pub(crate) fn read_trusted(bytes: &'a [u8]) -> Option<Frame<'a>> {
        let (header, rest) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>()?;
        let length = usize::try_from(u32_at(header, 0)).ok()?;
        Some(Frame {
            kind: if header[17] == Kind::Record as u8 {
                Kind::Record
            } else {
                Kind::Synced
            },
            sequence: u64_at(header, 8),
            body: rest.get(..length)?,
        })
    }

    /// The length of the frame in its file.
    pub(crate) fn bytes(&self) -> usize {
        FRAME_HEADER_BYTES + self.body.len()
    }

    /// For a synced frame: the sequence number below which everything was durable.
    pub(crate) fn durable_below(&self) -> Option<u64> {
        (self.kind == Kind::Synced).then(|| u64_at(self.body, 0))
    }
}

/// Appends a record frame to `out`, its body written by `body`.
pub(crate) fn put_record(out: &mut Vec<u8>, sequence: u64, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME_HEADER_BYTES]);
    body(out);
    finish(&mut out[start..], Kind::Record, sequence);
}

/// A synced frame.
pub(crate) fn synced(sequence: u64, durable_below: u64) -> [u8; SYNCED_BYTES] {
    let mut bytes = [0; SYNCED_BYTES];
    bytes[FRAME_HEADER_BYTES..].copy_from_slice(&durable_below.to_le_bytes());
    finish(&mut bytes, Kind::Synced, sequence);
    bytes
}

/// Looks for a synced frame anywhere in `bytes`, also where no frame is known to begin; returns
/// the highest sequence number that one vouches for.
pub(crate) fn highest_durable_below(bytes: &[u8]) -> Option<u64> {
    let length = 8u32.to_le_bytes();
    bytes
        .windows(SYNCED_BYTES)
        .filter(|window| window[..4] == length && window[17] == Kind::Synced as u8)
        .filter_map(|window| Frame::read(window)?.durable_below())
        .max()
}

/// The header of a segment.
pub(crate) fn segment_header(first: u64) -> [u8; SEGMENT_HEADER_BYTES] {
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes[16..24].copy_from_slice(&first.to_le_bytes());
    let checksum = crc32c::crc32c(&bytes[..28]);
    bytes[28..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Reads a segment's header; returns its first sequence number.
pub(crate) fn read_segment_header(bytes: &[u8]) -> Result<u64, HeaderError> {
    let header = bytes
        .get(..SEGMENT_HEADER_BYTES)
        .ok_or(HeaderError::Damaged)?;
    if header[..8] != MAGIC || u32_at(header, 28) != crc32c::crc32c(&header[..28]) {
        return Err(HeaderError::Damaged);
    }
    match u32_at(header, 8) {
        FORMAT_VERSION => Ok(u64_at(header, 16)),
        found => Err(HeaderError::Version(found)),
    }
}

fn finish(frame: &mut [u8], kind: Kind, sequence: u64) {
    let (header, body) = frame.split_at_mut(FRAME_HEADER_BYTES);
    let length = u32::try_from(body.len()).expect("a record's size was checked against the limit");
    header[..4].copy_from_slice(&length.to_le_bytes());
    header[8..16].copy_from_slice(&sequence.to_le_bytes());
    header[16] = FRAME_VERSION;
    header[17] = kind as u8;
    let checksum = checksum(header, body);
    header[4..8].copy_from_slice(&checksum.to_le_bytes());
}

fn checksum(header: &[u8], body: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&header[..4]);
    let crc = crc32c::crc32c_append(crc, &header[8..FRAME_HEADER_BYTES]);
    crc32c::crc32c_append(crc, body)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_segment_are_the_documented_ones() {
        let mut bytes = segment_header(5).to_vec();
        bytes.extend_from_slice(&synced(5, 5));
        put_record(&mut bytes, 5, |out| out.extend_from_slice(b"ab"));
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        // Worked out by an independent implementation of the table above.
        let expected = "\
            534e4450424c4f4701000000000000000500000000000000 00000000 b5f8c3d0 \
            08000000 ebcecbdc 0500000000000000 01020000 0500000000000000 \
            02000000 8ce5e312 0500000000000000 01010000 6162";
        assert_eq!(hex, expected.replace(' ', ""));
        assert_eq!(read_segment_header(&bytes), Ok(5));
    }

    #[test]
    fn a_flipped_bit_anywhere_makes_a_frame_invalid() {
        let mut bytes = Vec::new();
        put_record(&mut bytes, 9, |out| out.extend_from_slice(b"body"));
        assert_eq!(Frame::read(&bytes).unwrap().body, b"body");
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Frame::read(&bytes), None, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn zeros_are_no_frame() {
        assert_eq!(Frame::read(&[0; 64]), None);
    }

    #[test]
    fn a_synced_frame_is_found_among_damaged_bytes() {
        let mut bytes = vec![8; 37];
        bytes.extend_from_slice(&synced(7, 6));
        bytes.extend_from_slice(&[0; 11]);
        assert_eq!(highest_durable_below(&bytes), Some(6));
        assert_eq!(highest_durable_below(&bytes[..60]), None);
    }
}

//! What a message carries: found, checked, copied out.

use sandpipe_abi::layout::{HEAD_MAX, INLINE_MAX};

use crate::bus::Bus;
use crate::claim::Delivery;
use crate::memory::Memory;
use crate::message::{Body, Head};

/// Why a payload could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PayloadError {
    /// The publishing family's segment is not mapped.
    #[error("family {0}, which published the payload, is not attached")]
    NotAttached(u16),
    /// The reference names no chunk, or more bytes than the chunk has.
    #[error("family {family} published a reference to chunk {chunk} with {len} bytes: no such")]
    BadReference {
        /// The publisher.
        family: u16,
        /// The chunk that it named.
        chunk: u32,
        /// The length that it named.
        len: u32,
    },
    /// The payload lies in a file that this process does not map and its family's worker does:
    /// hand the message back ([`crate::Claimer::hand_back`]) and make place for a newer process.
    #[error("this process maps an older file of family {0} than the payload's")]
    Outdated(u16),
}

/// The payload of a [`Delivery`]: in the message itself, or in the publisher's segment, which the
/// publisher may still write to. So it can be copied, and a second copy may differ from the first.
#[derive(Clone, Copy, Debug)]
pub struct DeliveredPayload<'a, M> {
    len: usize,
    place: PayloadPlace<'a, M>,
}

#[derive(Clone, Copy, Debug)]
enum PayloadPlace<'a, M> {
    Inline(&'a [u64; INLINE_MAX / 8]),
    /// Its head in the message, the whole in a segment.
    Headed(&'a Head, &'a M, usize),
    Chunk(&'a M, usize),
}

impl<M: Memory> DeliveredPayload<'_, M> {
    /// Bytes of the payload.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the payload is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies the first `bytes.len()` bytes into `bytes`. No system call. Up to 56 bytes of an
    /// untraced message come out of the message itself, as they were when it was staged.
    ///
    /// # Panics
    /// If `bytes` is longer than the payload.
    pub fn copy_to(&self, bytes: &mut [u8]) {
        assert!(bytes.len() <= self.len, "more bytes than the payload has");
        match self.place {
            PayloadPlace::Inline(words) => copy_words(words, bytes),
            PayloadPlace::Headed(head, ..) if bytes.len() <= HEAD_MAX => copy_words(head, bytes),
            PayloadPlace::Headed(_, segment, at) | PayloadPlace::Chunk(segment, at) => {
                segment.copy_out(at, bytes);
            }
        }
    }

    /// A copy of the payload.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.copy_to(&mut bytes);
        bytes
    }
}

#[inline]
fn copy_words(words: &[u64], bytes: &mut [u8]) {
    let (whole, rest) = bytes.as_chunks_mut::<8>();
    for (bytes, word) in whole.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
    if let (false, Some(word)) = (rest.is_empty(), words.get(whole.len())) {
        rest.copy_from_slice(&word.to_le_bytes()[..rest.len()]);
    }
}

impl<M: Memory> Bus<M> {
    /// A delivery's payload where it lies, its place checked. No system call.
    ///
    /// # Errors
    /// [`PayloadError`] if the publisher named something that is not there.
    pub fn payload_of<'a>(
        &'a self,
        delivery: &'a Delivery,
    ) -> Result<DeliveredPayload<'a, M>, PayloadError> {
        let place = match &delivery.message.body {
            Body::Inline(words) => PayloadPlace::Inline(words),
            Body::Chunk { head, .. } => {
                let (segment, at) = self.locate(delivery)?;
                PayloadPlace::Headed(head, segment, at)
            }
            Body::Traced { .. } => {
                let (segment, at) = self.locate(delivery)?;
                PayloadPlace::Chunk(segment, at)
            }
        };
        let len = delivery.message.len as usize;
        Ok(DeliveredPayload { len, place })
    }

    /// Copies a delivery's payload out of shared memory, checked. No system call.
    ///
    /// # Errors
    /// [`PayloadError`] if the publisher named something that is not there.
    pub fn payload(&self, delivery: &Delivery) -> Result<Vec<u8>, PayloadError> {
        Ok(self.payload_of(delivery)?.to_vec())
    }

    /// Where the payload of a chunked delivery lies: the publisher's segment and an offset whose
    /// whole length was checked.
    ///
    /// # Errors
    /// [`PayloadError`] if the publisher named something that is not there, or sent it inline, or
    /// if this process maps too little.
    pub fn locate(&self, delivery: &Delivery) -> Result<(&M, usize), PayloadError> {
        let family = delivery.source;
        let len = delivery.message.len;
        let chunk = delivery.message.body.chunk().unwrap_or(u32::MAX);
        let segment = self
            .segment(family)
            .ok_or(PayloadError::NotAttached(family.0))?;
        match self.layout_of(family).chunk_data(chunk) {
            Some((at, bytes)) if u64::from(len) <= bytes => Ok((segment, at)),
            _ => self.locate_extended(delivery, segment),
        }
    }
}

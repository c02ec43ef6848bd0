//! Reading hostile bytes field by field: each length is checked against what is left.

use std::sync::Arc;

use sandpipe_abi::MessageId;

use super::DecodeError;
use crate::record::ObjectRef;

/// The smallest attribute: two empty strings.
const ATTRIBUTE_BYTES_MIN: usize = 8;

/// The bytes that are not read yet.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self
            .0
            .split_at_checked(count)
            .ok_or(DecodeError::Truncated { field })?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self
            .0
            .split_first_chunk()
            .ok_or(DecodeError::Truncated { field })?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        self.array(field).map(u64::from_le_bytes)
    }

    pub(super) fn id(&mut self, field: &'static str) -> Result<MessageId, DecodeError> {
        self.array(field)
            .map(|id| MessageId(u128::from_le_bytes(id)))
    }

    pub(super) fn bytes(&mut self, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let length = self.u32(field)?;
        let length = usize::try_from(length).map_err(|_| DecodeError::Truncated { field })?;
        self.take(length, field)
    }

    pub(super) fn string(&mut self, field: &'static str) -> Result<&'a str, DecodeError> {
        str::from_utf8(self.bytes(field)?).map_err(|_| DecodeError::Invalid { field })
    }

    pub(super) fn object(&mut self, field: &'static str) -> Result<ObjectRef, DecodeError> {
        Ok(ObjectRef {
            name: self.string(field)?.to_owned(),
            size: self.u64(field)?,
            hash: self.array(field)?,
        })
    }

    pub(super) fn attributes(
        &mut self,
        count: u32,
    ) -> Result<Arc<[(String, String)]>, DecodeError> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        // A forged count must not make us allocate: each attribute takes room in the input.
        if count > self.0.len() / ATTRIBUTE_BYTES_MIN {
            return Err(DecodeError::Truncated {
                field: "attributes",
            });
        }
        (0..count)
            .map(|_| {
                let name = self.string("attribute name")?.to_owned();
                Ok((name, self.string("attribute value")?.to_owned()))
            })
            .collect()
    }
}

//! The bytes of a record, version 1. All numbers are little-endian; a string or a byte string is
//! its length (u32) and its bytes; an object is its name, its size (u64) and its hash (32 bytes).
//!
//! ```text
//! offset size
//!      0    1  version = 1
//!      1    1  flag: 1 processing, 2 data, 3 finished
//!      2    1  payload: 1 inline, 2 reference
//!      3    1  reply-to: 0 none, 1 present
//!      4    4  partition index
//!      8    4  attempt
//!     12    4  number of CloudEvents attributes
//!     16   16  id
//!     32   16  root
//!     48   16  parent
//!     64    8  deadline, Unix milliseconds, 0 = none
//!     72    8  epoch
//!     80       application, grain, workflow, content type, traceparent
//!              attributes: name, value, …
//!              front door, its partition (u32)                       if reply-to = 1
//!              object                                                if flag = 2
//!              byte string (payload = 1) or object (payload = 2)
//! ```
//!
//! The next version keeps bytes 0..80, the application and the grain where they are and appends
//! its fields at the end; a reader takes all versions up to its own, and refuses a newer one by
//! name. So an old log is always readable, and a downgrade fails loudly instead of guessing.

use std::sync::Arc;

use sandpipe_abi::MessageId;

use crate::record::{Flag, ObjectRef, Payload, Record, ReplyTo};

mod reader;
#[cfg(test)]
mod tests;

use reader::Reader;

/// The version of the record format that this build writes.
pub const RECORD_VERSION: u8 = 1;

/// The part before the first string.
const FIXED_BYTES: usize = 80;

/// Why bytes are no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Written by a newer build.
    #[error(
        "the record has version {found}, this build reads up to {RECORD_VERSION}: use a newer one"
    )]
    Version {
        /// The version found.
        found: u8,
    },
    /// The bytes end within a field.
    #[error("the record ends within its {field}")]
    Truncated {
        /// The field.
        field: &'static str,
    },
    /// A field has a value that it cannot have.
    #[error("the record's {field} is not valid")]
    Invalid {
        /// The field.
        field: &'static str,
    },
    /// There is something behind the last field.
    #[error("{bytes} bytes follow the record")]
    Trailing {
        /// How many.
        bytes: usize,
    },
}

/// What a fold needs of a record, borrowed from its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head<'a> {
    pub(crate) id: MessageId,
    pub(crate) app: &'a str,
    pub(crate) grain: &'a str,
    pub(crate) partition: u32,
    pub(crate) finished: bool,
    pub(crate) deadline_unix_ms: u64,
    pub(crate) epoch: u64,
}

impl Record {
    /// The length of [`Record::encode`]'s output in bytes.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        let object = |object: &ObjectRef| 4 + object.name.len() + 8 + 32;
        let attribute = |(name, value): &(String, String)| 8 + name.len() + value.len();
        let strings = [
            self.app.len(),
            self.grain.len(),
            self.workflow.len(),
            self.content_type.len(),
            self.traceparent.len(),
        ];
        FIXED_BYTES
            + strings.iter().map(|bytes| 4 + bytes).sum::<usize>()
            + self.attributes.iter().map(attribute).sum::<usize>()
            + self
                .reply_to
                .as_ref()
                .map_or(0, |to| 8 + to.front_door.len())
            + match &self.flag {
                Flag::Data(output) => object(output),
                Flag::Processing | Flag::Finished => 0,
            }
            + match &self.payload {
                Payload::Inline(bytes) => 4 + bytes.len(),
                Payload::Reference(payload) => object(payload),
            }
    }

    /// Appends the record's bytes, version 1, to `out`.
    ///
    /// # Panics
    /// If a part is longer than 4 GiB; every bus refuses such a record before.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let flag = match self.flag {
            Flag::Processing => 1,
            Flag::Data(_) => 2,
            Flag::Finished => 3,
        };
        let payload = match self.payload {
            Payload::Inline(_) => 1,
            Payload::Reference(_) => 2,
        };
        out.extend_from_slice(&[
            RECORD_VERSION,
            flag,
            payload,
            u8::from(self.reply_to.is_some()),
        ]);
        put_u32(out, self.partition);
        put_u32(out, self.attempt);
        put_length(out, self.attributes.len());
        for id in [self.id, self.root, self.parent] {
            out.extend_from_slice(&id.0.to_le_bytes());
        }
        put_u64(out, self.deadline_unix_ms);
        put_u64(out, self.epoch);
        debug_assert!(out.len() >= FIXED_BYTES);
        put_bytes(out, self.app.as_bytes());
        put_bytes(out, self.grain.as_bytes());
        put_bytes(out, &self.workflow);
        put_bytes(out, self.content_type.as_bytes());
        put_bytes(out, self.traceparent.as_bytes());
        for (name, value) in self.attributes.iter() {
            put_bytes(out, name.as_bytes());
            put_bytes(out, value.as_bytes());
        }
        if let Some(to) = &self.reply_to {
            put_bytes(out, to.front_door.as_bytes());
            put_u32(out, to.partition);
        }
        if let Flag::Data(output) = &self.flag {
            put_object(out, output);
        }
        match &self.payload {
            Payload::Inline(bytes) => put_bytes(out, bytes),
            Payload::Reference(object) => put_object(out, object),
        }
    }

    /// Reads what [`Record::encode`] wrote. The bytes may be hostile: every length is checked, and
    /// nothing larger than the input is allocated.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(bytes: &[u8]) -> Result<Record, DecodeError> {
        let (fixed, mut rest) = Fixed::read(bytes)?;
        let app = rest.string("application")?;
        let grain = rest.string("grain")?;
        let workflow = Arc::from(rest.bytes("workflow")?);
        let content_type = Arc::from(rest.string("content type")?);
        let traceparent = Arc::from(rest.string("traceparent")?);
        let attributes = rest.attributes(fixed.attributes)?;
        let reply_to = match fixed.reply_to {
            0 => None,
            1 => Some(ReplyTo {
                front_door: Arc::from(rest.string("front door")?),
                partition: rest.u32("front door's partition")?,
            }),
            _ => return Err(DecodeError::Invalid { field: "reply-to" }),
        };
        let flag = match fixed.flag {
            1 => Flag::Processing,
            2 => Flag::Data(rest.object("output")?),
            3 => Flag::Finished,
            _ => return Err(DecodeError::Invalid { field: "flag" }),
        };
        let payload = match fixed.payload {
            1 => Payload::Inline(rest.bytes("payload")?.to_vec()),
            2 => Payload::Reference(rest.object("payload reference")?),
            _ => {
                return Err(DecodeError::Invalid {
                    field: "payload kind",
                });
            }
        };
        if !rest.0.is_empty() {
            return Err(DecodeError::Trailing {
                bytes: rest.0.len(),
            });
        }
        Ok(Record {
            id: fixed.id,
            root: fixed.root,
            parent: fixed.parent,
            app: Arc::from(app),
            grain: Arc::from(grain),
            partition: fixed.partition,
            flag,
            attempt: fixed.attempt,
            deadline_unix_ms: fixed.deadline_unix_ms,
            epoch: fixed.epoch,
            workflow,
            reply_to,
            content_type,
            traceparent,
            attributes,
            payload,
        })
    }
}

impl<'a> Head<'a> {
    /// Reads the head alone; the rest of the bytes is not looked at.
    pub(crate) fn peek(bytes: &'a [u8]) -> Result<Head<'a>, DecodeError> {
        let (fixed, mut rest) = Fixed::read(bytes)?;
        Ok(Head {
            id: fixed.id,
            app: rest.string("application")?,
            grain: rest.string("grain")?,
            partition: fixed.partition,
            finished: match fixed.flag {
                1 | 2 => false,
                3 => true,
                _ => return Err(DecodeError::Invalid { field: "flag" }),
            },
            deadline_unix_ms: fixed.deadline_unix_ms,
            epoch: fixed.epoch,
        })
    }

    #[cfg(feature = "kafka")]
    pub(crate) fn of(record: &'a Record) -> Head<'a> {
        Head {
            id: record.id,
            app: &record.app,
            grain: &record.grain,
            partition: record.partition,
            finished: record.flag == Flag::Finished,
            deadline_unix_ms: record.deadline_unix_ms,
            epoch: record.epoch,
        }
    }
}

/// The part of fixed length, as it lies.
struct Fixed {
    flag: u8,
    payload: u8,
    reply_to: u8,
    partition: u32,
    attempt: u32,
    attributes: u32,
    id: MessageId,
    root: MessageId,
    parent: MessageId,
    deadline_unix_ms: u64,
    epoch: u64,
}

impl Fixed {
    fn read(bytes: &[u8]) -> Result<(Fixed, Reader<'_>), DecodeError> {
        let mut reader = Reader(bytes);
        match reader.u8("version")? {
            RECORD_VERSION => {}
            0 => return Err(DecodeError::Invalid { field: "version" }),
            found => return Err(DecodeError::Version { found }),
        }
        let fixed = Fixed {
            flag: reader.u8("flag")?,
            payload: reader.u8("payload kind")?,
            reply_to: reader.u8("reply-to")?,
            partition: reader.u32("partition index")?,
            attempt: reader.u32("attempt")?,
            attributes: reader.u32("number of attributes")?,
            id: reader.id("id")?,
            root: reader.id("root")?,
            parent: reader.id("parent")?,
            deadline_unix_ms: reader.u64("deadline")?,
            epoch: reader.u64("epoch")?,
        };
        debug_assert_eq!(bytes.len() - reader.0.len(), FIXED_BYTES);
        Ok((fixed, reader))
    }
}

fn put_u32(out: &mut Vec<u8>, number: u32) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    put_u32(
        out,
        u32::try_from(length).expect("a record's size was checked against the limit"),
    );
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_length(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn put_object(out: &mut Vec<u8>, object: &ObjectRef) {
    put_bytes(out, object.name.as_bytes());
    put_u64(out, object.size);
    out.extend_from_slice(&object.hash);
}

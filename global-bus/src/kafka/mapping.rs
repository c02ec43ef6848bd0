//! A record as a Kafka message, format version 1.
//!
//! | part | content |
//! |---|---|
//! | topic | `<app>.<grain>` |
//! | partition | the partition index |
//! | key | the id, 32 hexadecimal digits |
//! | value | the inline payload; empty if it is passed by reference; null for `finished` |
//! | `sandpipe_version` | `1` |
//! | `sandpipe_flag` | `processing`, `data` or `finished` |
//! | `sandpipe_root`, `sandpipe_parent` | 32 hexadecimal digits; no header for no parent |
//! | `sandpipe_attempt`, `sandpipe_deadline`, `sandpipe_epoch` | decimal; no header for 0 |
//! | `sandpipe_workflow` | the rest of the workflow, as it is |
//! | `sandpipe_reply_to`, `sandpipe_reply_partition` | front door, decimal |
//! | `sandpipe_data_name`, `_size`, `_hash` | the output of flag `data` |
//! | `sandpipe_payload_name`, `_size`, `_hash` | where the payload lies |
//! | `content-type`, `traceparent` | as CloudEvents and W3C name them |
//! | `ce_<name>` | CloudEvents attributes (Kafka protocol binding, binary mode) |
//!
//! Absent means empty, zero or none. The next version adds headers; readers pass over headers that
//! they do not know, and refuse a version above their own by name.

use std::fmt::Write;
use std::sync::Arc;

use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use sandpipe_abi::MessageId;

use crate::record::{Flag, ObjectRef, Payload, Record, ReplyTo};

/// The format version that this build writes.
const VERSION: u32 = 1;

/// The prefix of a CloudEvents attribute.
const ATTRIBUTE: &str = "ce_";

/// Why a Kafka message is no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum MappingError {
    #[error("its {0} is missing or not valid")]
    Field(&'static str),
    #[error("it has format version {0}, this build reads up to {VERSION}: use a newer one")]
    Version(u32),
}

/// The headers of `record`, in the order of the table above.
pub(super) fn headers(record: &Record) -> OwnedHeaders {
    let mut out = Out(OwnedHeaders::new_with_capacity(
        12 + record.attributes.len(),
    ));
    out.put("sandpipe_version", VERSION.to_string());
    out.put(
        "sandpipe_flag",
        match record.flag {
            Flag::Processing => "processing",
            Flag::Data(_) => "data",
            Flag::Finished => "finished",
        },
    );
    out.put("sandpipe_root", record.root.to_string());
    if !record.parent.is_none() {
        out.put("sandpipe_parent", record.parent.to_string());
    }
    out.put_number("sandpipe_attempt", record.attempt.into());
    out.put_number("sandpipe_deadline", record.deadline_unix_ms);
    out.put_number("sandpipe_epoch", record.epoch);
    out.put_filled("sandpipe_workflow", &record.workflow);
    if let Some(to) = &record.reply_to {
        out.put("sandpipe_reply_to", &*to.front_door);
        out.put_number("sandpipe_reply_partition", to.partition.into());
    }
    if let Flag::Data(output) = &record.flag {
        out.put_object(&DATA, output);
    }
    if let Payload::Reference(object) = &record.payload {
        out.put_object(&PAYLOAD, object);
    }
    out.put_filled("content-type", record.content_type.as_bytes());
    out.put_filled("traceparent", record.traceparent.as_bytes());
    for (name, value) in record.attributes.iter() {
        out.put(&format!("{ATTRIBUTE}{name}"), value);
    }
    out.0
}

/// The value of `record`'s message; `None` is a tombstone.
pub(super) fn value(record: &Record) -> Option<&[u8]> {
    match (&record.flag, &record.payload) {
        (Flag::Finished, _) => None,
        (_, Payload::Inline(bytes)) => Some(bytes),
        (_, Payload::Reference(_)) => Some(&[]),
    }
}

/// Reads a message back. Its content may be hostile: everything is checked.
pub(super) fn record(message: &impl Message) -> Result<Record, MappingError> {
    let (app, grain) = message
        .topic()
        .split_once('.')
        .ok_or(MappingError::Field("topic"))?;
    let key = message.key().and_then(|key| str::from_utf8(key).ok());
    let id = key
        .and_then(MessageId::parse)
        .ok_or(MappingError::Field("key"))?;
    let partition = message.partition();
    let mut record = Record::new(id, app, grain, Vec::new());
    record.partition = u32::try_from(partition).map_err(|_| MappingError::Field("partition"))?;
    let read = In::read(message, &mut record)?;
    record.flag = match read.flag {
        Some(b"processing") => Flag::Processing,
        Some(b"data") => Flag::Data(read.data.finish("output")?),
        Some(b"finished") => Flag::Finished,
        // A tombstone that someone else has written, by hand perhaps.
        None if message.payload().is_none() => Flag::Finished,
        _ => return Err(MappingError::Field("sandpipe_flag")),
    };
    if (record.flag == Flag::Finished) != message.payload().is_none() {
        return Err(MappingError::Field("value"));
    }
    record.payload = if read.payload.name.is_some() {
        Payload::Reference(read.payload.finish("payload reference")?)
    } else {
        Payload::Inline(message.payload().unwrap_or_default().to_vec())
    };
    record.reply_to = read.front_door.map(|front_door| ReplyTo {
        front_door,
        partition: read.reply_partition,
    });
    Ok(record)
}

/// The header names of an object.
struct ObjectNames {
    name: &'static str,
    size: &'static str,
    hash: &'static str,
}

const DATA: ObjectNames = ObjectNames {
    name: "sandpipe_data_name",
    size: "sandpipe_data_size",
    hash: "sandpipe_data_hash",
};

const PAYLOAD: ObjectNames = ObjectNames {
    name: "sandpipe_payload_name",
    size: "sandpipe_payload_size",
    hash: "sandpipe_payload_hash",
};

/// Headers being written.
struct Out(OwnedHeaders);

impl Out {
    fn put(&mut self, key: &str, value: impl AsRef<[u8]>) {
        let headers = std::mem::take(&mut self.0);
        self.0 = headers.insert(Header {
            key,
            value: Some(value.as_ref()),
        });
    }

    fn put_filled(&mut self, key: &str, value: &[u8]) {
        if !value.is_empty() {
            self.put(key, value);
        }
    }

    fn put_number(&mut self, key: &str, value: u64) {
        if value != 0 {
            self.put(key, value.to_string());
        }
    }

    fn put_object(&mut self, names: &ObjectNames, object: &ObjectRef) {
        let mut hash = String::with_capacity(64);
        for byte in object.hash {
            write!(hash, "{byte:02x}").expect("a string takes everything");
        }
        self.put(names.name, &object.name);
        self.put(names.size, object.size.to_string());
        self.put(names.hash, hash);
    }
}

/// Headers being read, as far as they do not go straight into the record.
#[derive(Default)]
struct In<'a> {
    flag: Option<&'a [u8]>,
    front_door: Option<Arc<str>>,
    reply_partition: u32,
    data: ObjectIn,
    payload: ObjectIn,
}

#[derive(Default)]
struct ObjectIn {
    name: Option<String>,
    size: Option<u64>,
    hash: Option<[u8; 32]>,
}

impl<'a> In<'a> {
    fn read(message: &'a impl Message, record: &mut Record) -> Result<In<'a>, MappingError> {
        let mut read = In::default();
        let mut attributes = Vec::new();
        let Some(headers) = message.headers() else {
            return Ok(read);
        };
        for index in 0..headers.count() {
            let Some(header) = headers.try_get(index) else {
                break;
            };
            let value = header.value.unwrap_or_default();
            match header.key {
                "sandpipe_version" => check_version(value)?,
                "sandpipe_flag" => read.flag = Some(value),
                "sandpipe_root" => record.root = id("sandpipe_root", value)?,
                "sandpipe_parent" => record.parent = id("sandpipe_parent", value)?,
                "sandpipe_attempt" => record.attempt = number("sandpipe_attempt", value)?,
                "sandpipe_deadline" => {
                    record.deadline_unix_ms = number("sandpipe_deadline", value)?;
                }
                "sandpipe_epoch" => record.epoch = number("sandpipe_epoch", value)?,
                "sandpipe_workflow" => record.workflow = value.into(),
                "sandpipe_reply_to" => {
                    read.front_door = Some(text("sandpipe_reply_to", value)?.into());
                }
                "sandpipe_reply_partition" => {
                    read.reply_partition = number("sandpipe_reply_partition", value)?;
                }
                "content-type" => record.content_type = text("content-type", value)?.into(),
                "traceparent" => record.traceparent = text("traceparent", value)?.into(),
                key => {
                    if let Some(name) = key.strip_prefix(ATTRIBUTE) {
                        attributes.push((name.to_owned(), text("CloudEvents", value)?.to_owned()));
                    } else {
                        read.data.read(&DATA, key, value)?;
                        read.payload.read(&PAYLOAD, key, value)?;
                    }
                }
            }
        }
        record.attributes = attributes.into();
        Ok(read)
    }
}

impl ObjectIn {
    fn read(&mut self, names: &ObjectNames, key: &str, value: &[u8]) -> Result<(), MappingError> {
        if key == names.name {
            self.name = Some(text(names.name, value)?.to_owned());
        } else if key == names.size {
            self.size = Some(number(names.size, value)?);
        } else if key == names.hash {
            self.hash = Some(hash(names.hash, value)?);
        }
        Ok(())
    }

    fn finish(self, what: &'static str) -> Result<ObjectRef, MappingError> {
        match (self.name, self.size, self.hash) {
            (Some(name), Some(size), Some(hash)) => Ok(ObjectRef { name, size, hash }),
            _ => Err(MappingError::Field(what)),
        }
    }
}

fn check_version(value: &[u8]) -> Result<(), MappingError> {
    match number("sandpipe_version", value)? {
        0 => Err(MappingError::Field("sandpipe_version")),
        1..=VERSION => Ok(()),
        found => Err(MappingError::Version(found)),
    }
}

fn text<'a>(field: &'static str, value: &'a [u8]) -> Result<&'a str, MappingError> {
    str::from_utf8(value).map_err(|_| MappingError::Field(field))
}

fn number<T: std::str::FromStr>(field: &'static str, value: &[u8]) -> Result<T, MappingError> {
    text(field, value)?
        .parse()
        .map_err(|_| MappingError::Field(field))
}

fn id(field: &'static str, value: &[u8]) -> Result<MessageId, MappingError> {
    MessageId::parse(text(field, value)?).ok_or(MappingError::Field(field))
}

fn hash(field: &'static str, value: &[u8]) -> Result<[u8; 32], MappingError> {
    let mut bytes = [0; 32];
    let digits = text(field, value)?;
    if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(MappingError::Field(field));
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * index..2 * index + 2], 16)
            .map_err(|_| MappingError::Field(field))?;
    }
    Ok(bytes)
}

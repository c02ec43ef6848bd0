//! One record of the global bus: a backed-up event message, or an answer.

use std::sync::Arc;

use sandpipe_abi::MessageId;

/// The grain name under which answers are stored: the topic `<app>.results`. No grain may have it.
pub const RESULTS: &str = "results";

/// The longest name of an application or a grain, in bytes: two and a dot fit a Kafka topic (249).
pub const NAME_BYTES_MAX: usize = 100;

/// What the bus stores about one event message (or one answer, in the topic [`RESULTS`]).
///
/// A record is complete: the newest record of an id is all that a re-run needs, since the older
/// ones may have been compacted away. Shared strings are `Arc`s, so that the agent makes a record
/// without copying what all messages of an application have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The message; the key of the record. An answer carries its root's id.
    pub id: MessageId,
    /// The message with which the workflow began.
    pub root: MessageId,
    /// The message whose handling made this one; [`MessageId::NONE`] for a root.
    pub parent: MessageId,
    /// The application.
    pub app: Arc<str>,
    /// The grain that the message is for, or [`RESULTS`].
    pub grain: Arc<str>,
    /// The partition index, the unit of ownership; a lineage keeps its index.
    pub partition: u32,
    /// How far the message is.
    pub flag: Flag,
    /// How often its handling has begun, counted from zero.
    pub attempt: u32,
    /// Milliseconds of the Unix clock after which nobody waits for the message (an answer: after
    /// which it is forgotten); 0 = never.
    pub deadline_unix_ms: u64,
    /// The epoch of the index's owner. A reader drops what an older owner wrote after a newer one
    /// of the same topic partition. 0 = the writer is no owner (a front door): never dropped.
    pub epoch: u64,
    /// The rest of the workflow; opaque here.
    pub workflow: Arc<[u8]>,
    /// Where the answer goes; `None` if nobody waits for it.
    pub reply_to: Option<ReplyTo>,
    /// The media type of the payload; empty = unknown.
    pub content_type: Arc<str>,
    /// The W3C trace context; empty = none.
    pub traceparent: Arc<str>,
    /// CloudEvents attributes (`id`, `source`, `type`, extensions …), without the prefix `ce_`.
    pub attributes: Arc<[(String, String)]>,
    /// The event's data.
    pub payload: Payload,
}

/// The condition flag of an event message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flag {
    /// Accepted, and perhaps being handled.
    Processing,
    /// Handled as far as its output, which lies in the data layer under this name.
    Data(ObjectRef),
    /// Done: a tombstone. Of its record only the identity, the attempt and the epoch count.
    Finished,
}

/// An object of the data layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectRef {
    /// Its name.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
    /// The BLAKE3 hash of its bytes.
    pub hash: [u8; 32],
}

/// The data of an event message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// The bytes themselves.
    Inline(Vec<u8>),
    /// Where the bytes lie.
    Reference(ObjectRef),
}

/// The front door that waits for an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyTo {
    /// The name of the front door.
    pub front_door: Arc<str>,
    /// Its partition of the results topic.
    pub partition: u32,
}

/// A record that no bus accepts; a fault of the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidRecord {
    /// A name that is no part of a topic's name.
    #[error(
        "the {what} name {name:?} is not allowed: use 1 to {NAME_BYTES_MAX} of the characters \
         a-z A-Z 0-9 _ -"
    )]
    Name {
        /// "application" or "grain".
        what: &'static str,
        /// The name.
        name: String,
    },
    /// The zero id, which means "no message".
    #[error("a record for {topic} has no id")]
    NoId {
        /// The topic it was for.
        topic: String,
    },
    /// A partition index that the topic does not have.
    #[error("partition {partition} of {topic} does not exist: it has {partitions} partitions")]
    Partition {
        /// The topic.
        topic: String,
        /// The record's index.
        partition: u32,
        /// How many there are.
        partitions: u32,
    },
    /// Larger than the bus takes; the payload belongs into the data layer.
    #[error(
        "message {id} of {bytes} bytes is over the limit of {limit_bytes} bytes: pass its payload \
         by reference"
    )]
    TooLarge {
        /// The message.
        id: MessageId,
        /// The record's size, encoded.
        bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
}

impl Record {
    /// A record of `app` for `grain` with the flag `processing`, an inline payload and nothing
    /// else: no parent, no deadline, attempt 0, epoch 0, index 0.
    #[must_use]
    pub fn new(id: MessageId, app: &str, grain: &str, payload: Vec<u8>) -> Record {
        Record {
            id,
            root: id,
            parent: MessageId::NONE,
            app: app.into(),
            grain: grain.into(),
            partition: 0,
            flag: Flag::Processing,
            attempt: 0,
            deadline_unix_ms: 0,
            epoch: 0,
            workflow: Arc::default(),
            reply_to: None,
            content_type: Arc::default(),
            traceparent: Arc::default(),
            attributes: Arc::default(),
            payload: Payload::Inline(payload),
        }
    }

    /// The tombstone of this message: the same identity, nothing to re-run.
    #[must_use]
    pub fn finished(&self) -> Record {
        Record {
            flag: Flag::Finished,
            deadline_unix_ms: 0,
            workflow: Arc::default(),
            reply_to: None,
            content_type: Arc::default(),
            traceparent: Arc::default(),
            attributes: Arc::default(),
            payload: Payload::Inline(Vec::new()),
            app: Arc::clone(&self.app),
            grain: Arc::clone(&self.grain),
            ..*self
        }
    }

    /// The topic that holds the record: `<app>.<grain>`.
    #[must_use]
    pub fn topic(&self) -> String {
        format!("{}.{}", self.app, self.grain)
    }

    /// Whether this is an answer rather than a message for a grain.
    #[must_use]
    pub fn is_result(&self) -> bool {
        &*self.grain == RESULTS
    }

    /// Checks what every bus needs.
    ///
    /// # Errors
    /// Names the part that is wrong; see [`InvalidRecord`].
    pub fn check(&self, partitions: u32) -> Result<(), InvalidRecord> {
        check_name("application", &self.app)?;
        check_name("grain", &self.grain)?;
        if self.id.is_none() {
            return Err(InvalidRecord::NoId {
                topic: self.topic(),
            });
        }
        if self.partition >= partitions {
            return Err(InvalidRecord::Partition {
                topic: self.topic(),
                partition: self.partition,
                partitions,
            });
        }
        Ok(())
    }
}

/// Checks that `name` can be an application's or a grain's: a part of a topic's name, without the
/// dot that parts them. `what` is "application" or "grain", for the message.
///
/// # Errors
/// [`InvalidRecord::Name`].
pub fn check_name(what: &'static str, name: &str) -> Result<(), InvalidRecord> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(allowed) {
        return Err(InvalidRecord::Name {
            what,
            name: name.chars().take(NAME_BYTES_MAX).collect(),
        });
    }
    Ok(())
}

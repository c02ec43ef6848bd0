//! Dead letters: events whose attempts are used up, with the reason, until they are sent again.
//!
//! A letter is a record among the application's answers, in the partition of its request's answer
//! and before that. A bus keeps that order, so an answer that says an event died is never there
//! without the letter. The record's key is derived from the dead event's id, since a request's own
//! id is the key of its answer; it does not expire; its tombstone takes it off the list. Nothing
//! else is stored: what is listed is folded from those records.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sandpipe_abi::MessageId;
use sandpipe_global_bus::{Payload, Record};
use serde::{Deserialize, Serialize};

use super::ids::hash;
use super::message::Cause;

/// Letters of an application at the most, and bytes of their events; beyond it the oldest go.
const LETTERS_MAX: usize = 1000;
const BYTES_MAX: usize = 64 << 20;

/// Names of the attributes that a letter has beside those of its request. The first tells it from
/// other records.
const CAUSE: &str = "sandpipedeadcause";
const GRAIN: &str = "sandpipedeadgrain";
const REASON: &str = "sandpipedeadreason";
const TIME: &str = "sandpipedeadtime";
const OWN: [&str; 4] = [CAUSE, GRAIN, REASON, TIME];

/// An event that died, as it is listed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The event's id, 32 hexadecimal digits.
    pub id: String,
    /// The request that it belonged to.
    pub root: String,
    /// The grain that could not handle it.
    pub grain: String,
    /// The [`Cause`]'s name.
    pub cause: String,
    /// The reason in words.
    pub reason: String,
    /// When, in milliseconds of the Unix clock.
    pub died_unix_ms: u64,
    /// How often it was tried; not known of letters that an older version wrote.
    #[serde(default)]
    pub attempts: Option<u32>,
    /// Bytes of the event's data.
    pub bytes: usize,
}

/// A letter with its event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WholeLetter {
    /// What is listed of it.
    #[serde(flatten)]
    pub letter: DeadLetter,
    /// The media type of its request; empty = unknown.
    pub content_type: String,
    /// The W3C trace context of its request; empty = none.
    pub traceparent: String,
    /// The CloudEvents attributes of its request, without the prefix `ce-`.
    pub attributes: Vec<(String, String)>,
    /// The event's data, in base64.
    pub data_base64: String,
}

/// The newest letters of an application.
#[derive(Debug)]
pub(super) struct DeadLetters {
    by_event: BTreeMap<MessageId, Record>,
    bytes: usize,
    letters_max: usize,
    bytes_max: usize,
}

impl Default for DeadLetters {
    fn default() -> DeadLetters {
        DeadLetters::bounded(LETTERS_MAX, BYTES_MAX)
    }
}

impl DeadLetters {
    fn bounded(letters_max: usize, bytes_max: usize) -> DeadLetters {
        DeadLetters {
            by_event: BTreeMap::new(),
            bytes: 0,
            letters_max,
            bytes_max,
        }
    }

    /// Keeps a letter; returns those that have to go for it, the oldest first. The newest one
    /// stays, however large it is.
    pub(super) fn keep(&mut self, record: Record) -> Vec<Record> {
        self.remove(record.parent);
        self.bytes += size(&record);
        self.by_event.insert(record.parent, record);
        let mut gone = Vec::new();
        while self.by_event.len() > self.letters_max.max(1)
            || (self.bytes > self.bytes_max && self.by_event.len() > 1)
        {
            let oldest = self
                .by_event
                .iter()
                .min_by_key(|(id, record)| (time(record), **id));
            let Some((&oldest, _)) = oldest else { break };
            gone.extend(self.remove(oldest));
        }
        gone
    }

    /// The letter of an event.
    pub(super) fn find(&self, event: MessageId) -> Option<&Record> {
        self.by_event.get(&event)
    }

    /// Takes a letter off the list.
    pub(super) fn remove(&mut self, event: MessageId) -> Option<Record> {
        let record = self.by_event.remove(&event)?;
        self.bytes -= size(&record);
        Some(record)
    }

    /// The events that died.
    pub(super) fn events(&self) -> impl Iterator<Item = MessageId> {
        self.by_event.keys().copied()
    }

    /// All letters, the oldest first.
    pub(super) fn list(&self) -> Vec<DeadLetter> {
        let mut records: Vec<&Record> = self.by_event.values().collect();
        records.sort_by_key(|record| (time(record), record.parent));
        records.into_iter().map(describe).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.by_event.len()
    }

    /// Bytes of the letters' events.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Why an event died.
pub(super) struct Death<'d> {
    pub event: MessageId,
    pub grain: &'d str,
    pub cause: Cause,
    pub reason: &'d str,
    pub attempts: u16,
    pub unix_ms: u64,
}

/// Makes a letter of the record with which the event would be accepted.
pub(super) fn letter(mut record: Record, death: &Death<'_>) -> Record {
    record.id = key(&record.app, death.event);
    record.parent = death.event;
    record.grain = sandpipe_global_bus::RESULTS.into();
    record.deadline_unix_ms = 0;
    record.attempt = u32::from(death.attempts);
    let own = [
        (CAUSE, death.cause.name().to_owned()),
        (GRAIN, death.grain.to_owned()),
        (REASON, death.reason.to_owned()),
        (TIME, death.unix_ms.to_string()),
    ];
    let own = own.map(|(name, value)| (name.to_owned(), value));
    record.attributes = own.into_iter().chain(of_request(&record)).collect();
    record
}

/// Whether a record among the answers is a letter.
pub(super) fn is_letter(record: &Record) -> bool {
    let first = record.attributes.first();
    first.is_some_and(|(name, _)| name == CAUSE) && !record.parent.is_none()
}

/// The grain that is to get the event of a letter.
pub(super) fn grain(letter: &Record) -> &str {
    find(letter, GRAIN)
}

/// The attributes of the request that a letter's event belonged to.
pub(super) fn attributes(letter: &Record) -> Arc<[(String, String)]> {
    of_request(letter).collect()
}

fn of_request(record: &Record) -> impl Iterator<Item = (String, String)> {
    let all = record.attributes.iter();
    all.filter(|(name, _)| !OWN.contains(&name.as_str()))
        .cloned()
        .collect::<Vec<_>>()
        .into_iter()
}

fn key(app: &str, event: MessageId) -> MessageId {
    hash(&[b"dead", app.as_bytes(), &event.0.to_le_bytes()])
}

fn describe(letter: &Record) -> DeadLetter {
    DeadLetter {
        id: letter.parent.to_string(),
        root: letter.root.to_string(),
        grain: grain(letter).to_owned(),
        cause: find(letter, CAUSE).to_owned(),
        reason: find(letter, REASON).to_owned(),
        died_unix_ms: time(letter),
        attempts: (letter.attempt > 0).then_some(letter.attempt),
        bytes: size(letter),
    }
}

/// All that a letter holds.
pub(super) fn whole(letter: &Record) -> WholeLetter {
    let data = match &letter.payload {
        Payload::Inline(data) => data.as_slice(),
        Payload::Reference(_) => &[],
    };
    WholeLetter {
        letter: describe(letter),
        content_type: letter.content_type.to_string(),
        traceparent: letter.traceparent.to_string(),
        attributes: of_request(letter).collect(),
        data_base64: STANDARD.encode(data),
    }
}

fn find<'r>(letter: &'r Record, name: &str) -> &'r str {
    let found = letter.attributes.iter().find(|(known, _)| known == name);
    found.map_or("", |(_, value)| value)
}

fn time(letter: &Record) -> u64 {
    find(letter, TIME).parse().unwrap_or(0)
}

fn size(letter: &Record) -> usize {
    match &letter.payload {
        Payload::Inline(data) => data.len(),
        Payload::Reference(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(event: u128, unix_ms: u64, bytes: usize) -> Record {
        let record = Record::new(MessageId(1), "app", "g0", vec![0; bytes]);
        let death = Death {
            event: MessageId(event),
            grain: "g0",
            cause: Cause::Crashed,
            reason: "it died",
            attempts: 3,
            unix_ms,
        };
        letter(record, &death)
    }

    #[test]
    fn the_oldest_letters_go_when_there_are_too_many_or_too_many_bytes() {
        let mut letters = DeadLetters::bounded(3, 100);
        for (event, unix_ms) in [(9, 1), (1, 3), (5, 2)] {
            assert!(letters.keep(of(event, unix_ms, 20)).is_empty());
        }
        let gone = letters.keep(of(2, 4, 20));
        assert_eq!(gone.iter().map(|r| r.parent.0).collect::<Vec<_>>(), [9]);
        let gone = letters.keep(of(3, 5, 80));
        assert_eq!(gone.iter().map(|r| r.parent.0).collect::<Vec<_>>(), [5, 1]);
        assert_eq!((letters.len(), letters.bytes()), (2, 100));
        let gone = letters.keep(of(4, 6, 1000));
        assert_eq!((gone.len(), letters.len(), letters.bytes()), (2, 1, 1000));
    }

    #[test]
    fn a_letter_that_is_kept_twice_counts_once() {
        let mut letters = DeadLetters::bounded(3, 100);
        letters.keep(of(1, 1, 30));
        assert!(letters.keep(of(1, 2, 30)).is_empty());
        assert_eq!((letters.len(), letters.bytes()), (1, 30));
        assert_eq!(letters.list()[0].died_unix_ms, 2);
    }

    #[test]
    fn an_attribute_of_the_request_that_is_called_like_one_of_a_letter_is_no_letters() {
        let mut record = Record::new(MessageId(1), "app", "g0", Vec::new());
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        record.attributes = Arc::new([pair("type", "t"), pair(GRAIN, "other")]);
        assert!(!is_letter(&record));
        let death = Death {
            event: MessageId(7),
            grain: "g0",
            cause: Cause::Timeout,
            reason: "slow",
            attempts: 3,
            unix_ms: 5,
        };
        let letter = letter(record, &death);
        assert!(is_letter(&letter) && letter.id != letter.root);
        assert_eq!(
            (grain(&letter), describe(&letter).cause.as_str()),
            ("g0", "timeout")
        );
        assert_eq!(*attributes(&letter), [pair("type", "t")]);
    }
}

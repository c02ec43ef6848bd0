//! What a handler sees and what it gives back.

use std::cell::OnceCell;
use std::fmt;

use bytes::Bytes;
use sandpipe::{Bus, DeliveredPayload, Delivery, Mapping, MessageId, PayloadError};

use crate::config::{self, WorkerConfig};

/// One event for a grain.
#[derive(Debug)]
pub struct Event<'d> {
    delivery: &'d Delivery,
    payload: DeliveredPayload<'d, Mapping>,
    /// Made when somebody asks: a runtime with bytes of its own copies straight into them.
    copy: OnceCell<Vec<u8>>,
}

impl<'d> Event<'d> {
    /// # Errors
    /// [`PayloadError`] if the publisher named a payload that is not there.
    pub(crate) fn new(
        bus: &'d Bus<Mapping>,
        delivery: &'d Delivery,
    ) -> Result<Event<'d>, PayloadError> {
        Ok(Event {
            delivery,
            payload: bus.payload_of(delivery)?,
            copy: OnceCell::new(),
        })
    }

    /// The event's identity: the same in every attempt and on every host.
    #[must_use]
    pub fn id(&self) -> MessageId {
        self.delivery.message.header.id
    }

    /// The request that the event belongs to.
    #[must_use]
    pub fn root(&self) -> MessageId {
        self.delivery.message.header.root
    }

    /// 1 the first time the event is handled; more if earlier instances died on it.
    #[must_use]
    pub fn attempt(&self) -> u16 {
        self.delivery.attempt
    }

    /// The payload. The first call copies it out of shared memory, so it stays as it is.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        self.copy.get_or_init(|| self.payload.to_vec())
    }

    /// The payload where it lies, for a runtime that copies it once into memory of its own. Its
    /// publisher might write to it: a second copy may differ from the first.
    #[must_use]
    pub fn shared_data(&self) -> &DeliveredPayload<'d, Mapping> {
        &self.payload
    }
}

/// Where a handler runs.
#[derive(Debug)]
pub struct Context<'w> {
    pub(crate) config: &'w WorkerConfig,
    pub(crate) event: MessageId,
}

impl Context<'_> {
    /// The application's name.
    #[must_use]
    pub fn app(&self) -> &str {
        &self.config.app
    }

    /// The grain's name.
    #[must_use]
    pub fn grain(&self) -> &str {
        &self.config.grain
    }

    /// A key to pass to outside services, so that they do once what a handler asks for twice: it
    /// is the same in every attempt of this event.
    #[must_use]
    pub fn idempotency_key(&self) -> String {
        config::idempotency_key(&self.config.app, &self.config.grain, self.event)
    }

    /// Writes to standard error, each line with this event's id where logs are kept. What is
    /// written without this has its application and grain, but no event. One system call.
    pub fn log(&self, text: impl fmt::Display) {
        crate::logging::write_marked(self.event, text.to_string().as_bytes());
    }

    /// The grains that may follow; none in the last grain.
    pub fn next(&self) -> impl Iterator<Item = &str> {
        self.config.next.iter().map(|next| next.grain.as_str())
    }
}

/// What a handler answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    pub(crate) to: Option<String>,
    pub(crate) data: Bytes,
}

impl Output {
    /// An output for one grain, chosen by the handler: for workflows with `next = "by_output"`.
    #[must_use]
    pub fn to(grain: impl Into<String>, data: impl Into<Vec<u8>>) -> Output {
        Output {
            to: Some(grain.into()),
            data: data.into().into(),
        }
    }

    /// An output whose bytes belong to a language's own object; they are copied once, into shared
    /// memory. Without a grain's name it goes where the workflow says.
    #[must_use]
    pub fn from_owner(grain: Option<String>, owner: impl AsRef<[u8]> + Send + 'static) -> Output {
        Output {
            to: grain,
            data: Bytes::from_owner(owner),
        }
    }
}

impl<T: Into<Vec<u8>>> From<T> for Output {
    fn from(data: T) -> Output {
        Output {
            to: None,
            data: data.into().into(),
        }
    }
}

/// A handler's error: a text for the caller. Any error converts into it, with its causes.
#[derive(Clone, PartialEq, Eq)]
pub struct HandlerError {
    pub(crate) text: String,
}

impl HandlerError {
    /// The text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The error of a handler that panicked.
    pub(crate) fn panicked(payload: &(dyn std::any::Any + Send)) -> HandlerError {
        let text = payload.downcast_ref::<&str>().map(ToString::to_string);
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        let text = text.unwrap_or_else(|| "(no message)".to_string());
        HandlerError {
            text: format!("the handler panicked: {text}"),
        }
    }
}

/// `HandlerError` is no `std::error::Error` itself: only so every error can convert into it.
impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> From<E> for HandlerError {
    fn from(error: E) -> HandlerError {
        let error = error.into();
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        HandlerError { text }
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HandlerError({:?})", self.text)
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_error_and_any_text_becomes_a_handler_error() {
        let parse = || -> Result<u8, HandlerError> { Ok("300".parse::<u8>()?) };
        assert!(parse().unwrap_err().text().contains("too large"));
        assert_eq!(HandlerError::from("no").text(), "no");
        assert_eq!(HandlerError::from(String::from("no")).text(), "no");
    }

    #[test]
    fn the_causes_of_an_error_are_told() {
        #[derive(Debug, thiserror::Error)]
        #[error("the picture cannot be read")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("disk on fire"));
        let text = HandlerError::from(error).text;
        assert_eq!(text, "the picture cannot be read: disk on fire");
    }

    #[test]
    fn an_output_is_made_of_bytes_or_text() {
        assert_eq!(Output::from("ab"), Output::from(vec![b'a', b'b']));
        assert_eq!(Output::to("next", "ab").to.as_deref(), Some("next"));
    }
}

//! CloudEvents in HTTP's structured mode: one JSON object holds attributes and data.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::http::StatusCode;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::value::RawValue;
use serde_json::{Value, from_slice, from_str};

use super::cloud_events::{VALUE_BYTES_MAX, bad, check};
use super::invoke::Event;
use super::problem::Problem;

/// Whether a body of this media type is one.
pub(super) fn is_event(content_type: &str) -> Result<bool, Problem> {
    let media = content_type.split(';').next().unwrap_or_default().trim();
    if media.eq_ignore_ascii_case("application/cloudevents+json") {
        return Ok(true);
    }
    let media = media.to_ascii_lowercase();
    if media.starts_with("application/cloudevents") {
        let detail = format!(
            "{media} is not taken; send one event as application/cloudevents+json, or its \
             attributes as ce-* headers"
        );
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            detail,
        ));
    }
    Ok(false)
}

/// Takes an event apart: what describes it, and its data as the grain gets it.
pub(super) fn event(body: &[u8]) -> Result<(Event, Vec<u8>), Problem> {
    let mut members: BTreeMap<String, &RawValue> =
        from_slice(body).map_err(|error| bad(format!("application/cloudevents+json: {error}")))?;
    let data = members.remove("data");
    let base64 = members.remove("data_base64");
    let mut attributes = Vec::new();
    for (name, raw) in members {
        let Some(value) = text(&name, raw)? else {
            continue;
        };
        attributes.push((name, value));
    }
    check(&attributes)?;
    let said = attributes
        .iter()
        .find(|(name, _)| name == "datacontenttype")
        .map(|(_, value)| value.clone());
    attributes.retain(|(name, _)| name != "datacontenttype");
    let is_json = said.as_deref().is_none_or(is_json);
    let payload = match (data, base64) {
        (Some(_), Some(_)) => return Err(bad("both data and data_base64; leave one out".into())),
        (None, Some(raw)) => decode(raw)?,
        (Some(raw), None) => data_bytes(raw, is_json)?,
        (None, None) => Vec::new(),
    };
    let content_type = said.unwrap_or_else(|| "application/json".to_owned());
    let event = Event {
        attributes: Arc::from(attributes),
        content_type: content_type.into(),
    };
    Ok((event, payload))
}

/// An attribute as a header would carry it; a null one is as good as none.
fn text(name: &str, raw: &RawValue) -> Result<Option<String>, Problem> {
    let is_name = name
        .chars()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    if name.is_empty() || name.len() > 64 || !is_name {
        return Err(bad(
            "an attribute's name has 1 to 64 of a-z and 0-9; rename it".into(),
        ));
    }
    let value = match from_str(raw.get()) {
        Ok(Value::Null) => return Ok(None),
        Ok(Value::String(value)) => value,
        Ok(Value::Bool(value)) => value.to_string(),
        Ok(Value::Number(value)) if value.is_i64() => value.to_string(),
        _ => {
            let detail = format!("attribute {name}: use a string, an integer or a boolean");
            return Err(bad(detail));
        }
    };
    let value = (!value.chars().any(char::is_control)).then(|| encoded(&value));
    match value.filter(|value| value.len() <= VALUE_BYTES_MAX) {
        Some(value) => Ok(Some(value)),
        None => {
            let detail = format!("attribute {name}: use at most {VALUE_BYTES_MAX} printable bytes");
            Err(bad(detail))
        }
    }
}

/// As the binary mode writes it, so that one event is the same in both: all but printable ASCII,
/// and space, quote and percent, as %XX.
fn encoded(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_graphic() && !matches!(byte, b'"' | b'%') {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

fn is_json(media: &str) -> bool {
    let media = media.split(';').next().unwrap_or_default().trim();
    let subtype = media.rsplit('/').next().unwrap_or_default();
    subtype.eq_ignore_ascii_case("json") || subtype.to_ascii_lowercase().ends_with("+json")
}

/// JSON data goes on exactly as it was written; other data stands in a string.
fn data_bytes(raw: &RawValue, is_json: bool) -> Result<Vec<u8>, Problem> {
    if is_json {
        return Ok(raw.get().as_bytes().to_vec());
    }
    from_str::<String>(raw.get())
        .map(String::into_bytes)
        .map_err(|_| bad("data that is no JSON has to be a string".into()))
}

fn decode(raw: &RawValue) -> Result<Vec<u8>, Problem> {
    let text: String =
        from_str(raw.get()).map_err(|_| bad("data_base64 has to be a string".into()))?;
    BASE64_STANDARD
        .decode(text)
        .map_err(|error| bad(format!("data_base64: {error}")))
}

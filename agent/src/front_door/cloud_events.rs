//! CloudEvents: their attributes, which travel as `ce-*` headers in HTTP's binary mode.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::problem::Problem;
use crate::core::{Answer, Identity};

/// Attributes that a request may carry at the most, and the longest value of one.
const ATTRIBUTES_MAX: usize = 32;
pub(super) const VALUE_BYTES_MAX: usize = 1024;

/// The attributes of a request, without the prefix.
pub(super) fn attributes(headers: &HeaderMap) -> Result<Arc<[(String, String)]>, Problem> {
    let mut found = Vec::new();
    for (name, value) in headers {
        let Some(name) = name.as_str().strip_prefix("ce-") else {
            continue;
        };
        let value = value
            .to_str()
            .ok()
            .filter(|value| value.len() <= VALUE_BYTES_MAX);
        let Some(value) = value else {
            let detail = format!(
                "ce-{name}: use at most {VALUE_BYTES_MAX} ASCII characters, others percent-encoded"
            );
            return Err(bad(detail));
        };
        found.push((name.to_owned(), value.to_owned()));
    }
    if !found.is_empty() {
        check(&found)?;
    }
    Ok(found.into())
}

/// What an event's attributes have to be, however they came.
pub(super) fn check(found: &[(String, String)]) -> Result<(), Problem> {
    if found.len() > ATTRIBUTES_MAX {
        let detail = format!("{} attributes; at most {ATTRIBUTES_MAX}", found.len());
        return Err(bad(detail));
    }
    if find(found, "specversion") != Some("1.0") {
        return Err(bad("a CloudEvent without specversion 1.0; add it".into()));
    }
    for needed in ["id", "source", "type"] {
        if find(found, needed).is_none_or(str::is_empty) {
            return Err(bad(format!("a CloudEvent without {needed}; add it")));
        }
    }
    Ok(())
}

/// Which request it is: by its key, by its event, or a new one.
pub(super) fn identity(
    headers: &HeaderMap,
    attributes: &[(String, String)],
) -> Result<Identity, Problem> {
    if let Some(key) = headers.get("idempotency-key") {
        let key = key
            .to_str()
            .ok()
            .filter(|key| !key.is_empty() && key.len() <= VALUE_BYTES_MAX);
        let detail = format!("Idempotency-Key: use 1 to {VALUE_BYTES_MAX} ASCII characters");
        return key
            .map(|key| Identity::Key(key.into()))
            .ok_or_else(|| bad(detail));
    }
    Ok(match (find(attributes, "source"), find(attributes, "id")) {
        (Some(source), Some(id)) => Identity::Event {
            source: source.into(),
            id: id.into(),
        },
        _ => Identity::Fresh,
    })
}

/// The attributes of an answer: an event of its own, with the request's extensions and subject.
pub(super) fn describe(app: &str, answer: &Answer, headers: &mut HeaderMap) {
    let mut put = |name: &str, value: &str| {
        if let (Ok(name), Ok(value)) = (
            HeaderName::try_from(format!("ce-{name}")),
            HeaderValue::try_from(value),
        ) {
            headers.insert(name, value);
        }
    };
    for (name, value) in answer.attributes.iter() {
        if !matches!(name.as_str(), "time" | "dataschema" | "datacontenttype") {
            put(name, value);
        }
    }
    put("specversion", "1.0");
    put("id", &answer.root.to_string());
    put("source", &format!("/{app}"));
    put("type", "sandpipe.answer");
}

fn find<'a>(attributes: &'a [(String, String)], name: &str) -> Option<&'a str> {
    attributes
        .iter()
        .find(|(known, _)| known == name)
        .map(|(_, value)| value.as_str())
}

pub(super) fn bad(detail: String) -> Problem {
    Problem::new(axum::http::StatusCode::BAD_REQUEST, "bad_request", detail)
}

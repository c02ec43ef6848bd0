//! The W3C trace context of a request: checked, kept with its messages on the global bus, and given
//! back with its answer, whoever collects that and whatever died in between.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue};

use crate::core::Answer;

const HEADER: &str = "traceparent";

/// The request's `traceparent`. One that is no trace context is dropped, as the recommendation
/// asks: the request is handled without.
pub(super) fn of(headers: &HeaderMap) -> Arc<str> {
    // Two of them contradict each other.
    let mut all = headers.get_all(HEADER).iter();
    let (first, second) = (all.next(), all.next());
    let text = first.filter(|_| second.is_none());
    let text = text.and_then(|value| value.to_str().ok());
    text.filter(|text| is_valid(text))
        .unwrap_or_default()
        .into()
}

/// Puts it into an answer.
pub(super) fn describe(answer: &Answer, headers: &mut HeaderMap) {
    if let Ok(value) = HeaderValue::try_from(&*answer.traceparent)
        && !value.is_empty()
    {
        headers.insert(HEADER, value);
    }
}

/// `VERSION-TRACE-PARENT-FLAGS` in lower-case hexadecimal; a later version than 00 may go on behind
/// another hyphen, up to a length that nobody needs.
fn is_valid(text: &str) -> bool {
    let fields: Vec<&str> = text.splitn(5, '-').collect();
    let [version, trace, parent, flags, rest @ ..] = fields.as_slice() else {
        return false;
    };
    let is_hex = |field: &str, len: usize| {
        let digits = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        field.len() == len && field.bytes().all(digits)
    };
    let is_zero = |field: &str| field.bytes().all(|byte| byte == b'0');
    is_hex(version, 2)
        && *version != "ff"
        && (rest.is_empty() || *version != "00")
        && text.len() <= 256
        && is_hex(trace, 32)
        && !is_zero(trace)
        && is_hex(parent, 16)
        && !is_zero(parent)
        && is_hex(flags, 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn only_a_trace_context_is_taken() {
        assert!(is_valid(GOOD));
        assert!(is_valid(&format!("01{}-more-of-it", &GOOD[2..])));
        for bad in [
            "",
            "00",
            &GOOD[..54],
            &format!("{GOOD}-more"),
            &format!("ff{}", &GOOD[2..]),
            &GOOD.to_uppercase(),
            &GOOD.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &GOOD.replace("b7ad6b7169203331", &"0".repeat(16)),
            &GOOD.replace('a', "g"),
            &format!("01{}-{}", &GOOD[2..], "x".repeat(256)),
        ] {
            assert!(!is_valid(bad), "{bad}");
        }
    }

    #[test]
    fn two_contexts_are_none() {
        let mut headers = HeaderMap::new();
        headers.append(HEADER, HeaderValue::from_static(GOOD));
        assert_eq!(&*of(&headers), GOOD);
        headers.append(HEADER, HeaderValue::from_static(GOOD));
        assert_eq!(&*of(&headers), "");
    }
}

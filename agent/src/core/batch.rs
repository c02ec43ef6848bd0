//! The answer of a fan-out: several outputs in one body, as a JSON batch of CloudEvents
//! (`application/cloudevents-batch+json`), ordered by grain and message id.

use serde_json::{Value, json};

use super::Workflow;
use super::message::Outcome;
use super::root::Final;

/// Media type of several outputs in one answer.
pub(super) const MEDIA_TYPE: &str = "application/cloudevents-batch+json";

/// Makes one answer of several outputs, emptying the vector.
pub(super) fn outcome(workflow: &Workflow, finals: &mut Vec<Final>) -> Outcome {
    finals.sort_by_key(|output| (output.grain, output.id));
    let events: Vec<Value> = finals
        .drain(..)
        .map(|output| event(workflow, output))
        .collect();
    Outcome::Output {
        content_type: MEDIA_TYPE.into(),
        body: Value::from(events).to_string().into(),
    }
}

fn event(workflow: &Workflow, output: Final) -> Value {
    let grain = &*workflow.grains[output.grain];
    let mut event = json!({
        "specversion": "1.0",
        "id": output.id.to_string(),
        "source": format!("/{}/{grain}", workflow.app),
        "type": "sandpipe.output",
    });
    let (name, data) = match serde_json::from_slice::<Value>(&output.payload) {
        Ok(value) => ("data", value),
        Err(_) => match String::from_utf8(output.payload) {
            Ok(text) => ("data", Value::String(text)),
            Err(bytes) => ("data_base64", Value::String(base64(bytes.as_bytes()))),
        },
    };
    event[name] = data;
    event
}

/// Standard base64 with padding (RFC 4648, section 4), as the CloudEvents JSON format asks for.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let word = group
            .iter()
            .fold(0u32, |word, &byte| word << 8 | u32::from(byte));
        let word = word << (8 * (3 - group.len()));
        for index in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * index)) as usize & 63];
            text.push(if index <= group.len() {
                char::from(digit)
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}

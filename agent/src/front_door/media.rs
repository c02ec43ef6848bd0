//! What an answer's bytes are, as far as they show: grains return bytes without a media type.

use serde::de::IgnoredAny;

/// The media type of a body.
pub(super) fn media_type(body: &[u8]) -> &'static str {
    const MAGIC: [(&[u8], &str); 5] = [
        (b"\xff\xd8\xff", "image/jpeg"),
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"GIF8", "image/gif"),
        (b"%PDF-", "application/pdf"),
        (b"\x1f\x8b", "application/gzip"),
    ];
    if let Some((_, media)) = MAGIC.iter().find(|(magic, _)| body.starts_with(magic)) {
        return media;
    }
    let looks_like_json = matches!(body.trim_ascii_start().first(), Some(b'{' | b'['));
    if looks_like_json && serde_json::from_slice::<IgnoredAny>(body).is_ok() {
        return "application/json";
    }
    let is_text = std::str::from_utf8(body).is_ok_and(|text| {
        !text
            .chars()
            .any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'))
    });
    if is_text {
        "text/plain; charset=utf-8"
    } else {
        "application/octet-stream"
    }
}

#[cfg(test)]
mod tests {
    use super::media_type;

    #[test]
    fn bytes_are_recognised() {
        for (body, media) in [
            (b"hello".as_slice(), "text/plain; charset=utf-8"),
            (b"", "text/plain; charset=utf-8"),
            (b" {\"a\": [1]}", "application/json"),
            (b"{not json}", "text/plain; charset=utf-8"),
            (b"\xff\xd8\xff\xe0", "image/jpeg"),
            (b"\x89PNG\r\n\x1a\n", "image/png"),
            (b"a\0b", "application/octet-stream"),
            (b"\xfe\xfe", "application/octet-stream"),
        ] {
            assert_eq!(media_type(body), media, "{body:?}");
        }
    }
}

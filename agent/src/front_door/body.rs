//! Reading a request's body, within its application's limits and a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;

use super::AppDoor;
use super::problem::Problem;

/// Seconds after which a caller may try again when the bytes were too many.
const RETRY_S: u64 = 1;

/// Bytes of requests that an application holds.
#[derive(Debug, Default)]
pub struct HeldBytes {
    held: AtomicUsize,
}

impl HeldBytes {
    /// How many there are now.
    #[must_use]
    pub fn now(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

/// One request's part of them; given back when it is dropped.
#[derive(Debug)]
struct Share {
    all: Arc<HeldBytes>,
    bytes: usize,
}

impl Share {
    /// Takes more; whether that was still within `max`.
    fn take(&mut self, bytes: usize, max: usize) -> bool {
        let before = self.all.held.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        before + bytes <= max
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.all.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A whole body. Its bytes count as held until it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    /// The bytes.
    pub payload: Vec<u8>,
    _share: Share,
}

/// Reads the whole body, up to the application's limits and for at most `patience`.
pub(super) async fn read(
    app: &AppDoor,
    headers: &HeaderMap,
    body: Body,
    patience: Duration,
) -> Result<Held, Problem> {
    let said = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if said.is_some_and(|len| len > app.max_payload_bytes) {
        return Err(too_large(app));
    }
    tokio::time::timeout(patience, collect(app, body))
        .await
        .unwrap_or_else(|_| Err(too_slow(patience)))
}

async fn collect(app: &AppDoor, mut body: Body) -> Result<Held, Problem> {
    let mut share = Share {
        all: Arc::clone(&app.held_bytes),
        bytes: 0,
    };
    let mut payload = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            let detail = format!("the body could not be read: {error}");
            Problem::new(StatusCode::BAD_REQUEST, "bad_request", detail)
        })?;
        // Trailers say nothing to us.
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if payload.len() + data.len() > app.max_payload_bytes {
            return Err(too_large(app));
        }
        if !share.take(data.len(), app.max_bytes_in_flight) {
            return Err(too_many(app));
        }
        payload.extend_from_slice(&data);
    }
    Ok(Held {
        payload,
        _share: share,
    })
}

fn too_large(app: &AppDoor) -> Problem {
    let detail = format!(
        "the body is over the limit of {} bytes; send less, or raise \
         limits.max_payload_bytes in app.toml",
        app.max_payload_bytes
    );
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", detail)
}

fn too_many(app: &AppDoor) -> Problem {
    let detail = format!(
        "the application's open requests hold {} bytes already; nothing was accepted, try again, \
         or raise limits.max_bytes_in_flight in app.toml",
        app.max_bytes_in_flight
    );
    let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "bytes_in_flight", detail);
    problem.retry_after(RETRY_S)
}

fn too_slow(patience: Duration) -> Problem {
    let seconds = patience.as_secs_f64();
    let detail = format!("the body was not whole after {seconds} s; nothing was accepted");
    Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail)
}

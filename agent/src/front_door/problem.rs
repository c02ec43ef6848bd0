//! Errors as JSON problem bodies (RFC 9457), each with what to do.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::core::{Cause, Failure};

/// An answer that is no output.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    error: &'static str,
    detail: String,
    failure: Option<Box<Failure>>,
    retry_after_s: Option<u64>,
    location: Option<String>,
}

impl Problem {
    pub(super) fn new(
        status: StatusCode,
        error: &'static str,
        detail: impl Into<String>,
    ) -> Problem {
        Problem {
            status,
            error,
            detail: detail.into(),
            failure: None,
            retry_after_s: None,
            location: None,
        }
    }

    /// A grain failed.
    pub(super) fn of_failure(failure: &Failure) -> Problem {
        let status = match failure.cause {
            Cause::SandboxLost => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let mut problem = Problem::new(status, failure.cause.name(), failure.detail.clone());
        problem.failure = Some(Box::new(failure.clone()));
        problem
    }

    pub(super) fn retry_after(mut self, seconds: u64) -> Problem {
        self.retry_after_s = Some(seconds);
        self
    }

    pub(super) fn location(mut self, place: String) -> Problem {
        self.location = Some(place);
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = json!({
            "status": self.status.as_u16(),
            "title": self.status.canonical_reason().unwrap_or_default(),
            "error": self.error,
            "detail": self.detail,
        });
        if let Some(failure) = &self.failure {
            body["grain"] = json!(&*failure.grain);
            body["message"] = json!(failure.message.to_string());
        }
        let mut response = (self.status, body.to_string() + "\n").into_response();
        let headers = response.headers_mut();
        let media = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, media);
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(place) = self
            .location
            .and_then(|place| HeaderValue::try_from(place).ok())
        {
            headers.insert(header::LOCATION, place);
        }
        response
    }
}

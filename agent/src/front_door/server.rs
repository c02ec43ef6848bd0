//! Routes, and the socket that they are served on.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::net::TcpListener;

use super::problem::Problem;
use super::{FrontDoor, invoke, results};

/// Why the front door cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Somebody has the port.
    #[error("{address} is in use; stop what listens there or choose another with --listen")]
    InUse {
        /// The address.
        address: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; choose another address with --listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Opens the socket. Anything but loopback is warned of, since there is no authentication.
///
/// # Errors
/// [`ServeError`].
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| match source.kind() {
            std::io::ErrorKind::AddrInUse => ServeError::InUse { address },
            _ => ServeError::Listen { address, source },
        })?;
    if !address.ip().is_loopback() {
        tracing::warn!(
            %address,
            "NOT LOOPBACK: everybody who reaches this address can call the applications; the \
             front door has no authentication and no TLS, put a proxy that has both before it"
        );
    }
    Ok(listener)
}

/// The routes.
pub fn router(door: Arc<FrontDoor>) -> Router {
    Router::new()
        .route("/{app}", post(invoke::invoke).get(how_to))
        .route("/results/{id}", get(results::collect))
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .fallback(nothing_here)
        // Each application has its own limit.
        .layer(DefaultBodyLimit::disable())
        .with_state(door)
}

async fn metrics(State(door): State<Arc<FrontDoor>>) -> Response {
    let apps = door.apps();
    let (connections, spans) = (door.connections.counts(), door.telemetry.counts());
    let status = door.status().await;
    let page = door
        .metrics
        .render(&status, apps.iter(), connections, spans);
    let media = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, media)], page).into_response()
}

async fn ready(State(door): State<Arc<FrontDoor>>) -> Response {
    let waiting: Vec<String> = door
        .status()
        .await
        .into_iter()
        .filter_map(|status| Some(format!("{}: {}", status.app, status.not_ready?)))
        .collect();
    if waiting.is_empty() {
        return "ready\n".into_response();
    }
    let detail = waiting.join("\n");
    let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", detail);
    problem.retry_after(1).into_response()
}

async fn how_to() -> Response {
    let detail = "send the event with POST";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail).into_response()
}

async fn nothing_here() -> Response {
    let detail = "there is POST /{app}, GET /results/{id}, /metrics, /healthz and /readyz";
    Problem::new(StatusCode::NOT_FOUND, "not_found", detail).into_response()
}

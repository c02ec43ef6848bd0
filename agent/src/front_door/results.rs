//! `GET /results/{id}`: the answer of a request that was made before.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use sandpipe_abi::MessageId;
use tokio::sync::oneshot;

use super::FrontDoor;
use super::invoke::respond;
use super::problem::Problem;
use crate::bridge::Post;
use crate::core::Reply;

/// An id belongs to one application only, but does not name it: each is asked.
pub(super) async fn collect(
    State(door): State<Arc<FrontDoor>>,
    Path(text): Path<String>,
) -> Response {
    let Some(id) = MessageId::parse(&text) else {
        let detail = "an id has 32 hexadecimal digits";
        return Problem::new(StatusCode::NOT_FOUND, "unknown_result", detail).into_response();
    };
    let mut found = (Arc::default(), Reply::Unknown);
    for app in door.apps() {
        let (waiter, reply) = oneshot::channel();
        app.mailbox.post(Post::Collect(id, waiter));
        match reply.await {
            Ok(Reply::Unknown) | Err(_) => {}
            Ok(reply) => {
                found = (app.name, reply);
                break;
            }
        }
    }
    respond(&found.0, found.1).unwrap_or_else(IntoResponse::into_response)
}

//! `POST /{app}`: a request becomes the first message of a workflow.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::oneshot;

use super::problem::Problem;
use super::{
    AppDoor, FrontDoor, TRACE_HEADER, body, cloud_events, media, structured, trace_context,
};
use crate::bridge::Post;
use crate::core::{Answer, Outcome, Reply, Submit, Wait};

/// Seconds after which a refused caller may try again.
const RETRY_BUSY_S: u64 = 1;
const RETRY_UNAVAILABLE_S: u64 = 2;

/// Takes the request, waits for what the caller wants to hear, and answers.
pub(super) async fn invoke(
    State(door): State<Arc<FrontDoor>>,
    Path(name): Path<String>,
    request: Request,
) -> Response {
    let begin = Instant::now();
    let Some(app) = door.app(&name) else {
        // A name that a stranger chose is no label: it would grow the metrics without bound.
        return unknown_app(&door, &name).into_response();
    };
    let response = match handle(&door, &app, request).await {
        Ok(response) => response,
        Err(problem) => problem.into_response(),
    };
    door.metrics
        .request(&app.name, response.status(), begin.elapsed());
    response
}

async fn handle(door: &FrontDoor, app: &AppDoor, request: Request) -> Result<Response, Problem> {
    let (head, body) = request.into_parts();
    let wait = if wants_async(&head.headers, &head.uri) {
        Wait::Durable
    } else {
        Wait::Answer
    };
    let mut event = Event::of_headers(&head.headers)?;
    let mut held = body::read(app, &head.headers, body, door.limits.body).await?;
    if structured::is_event(&event.content_type)? {
        (event, held.payload) = structured::event(&held.payload)?;
    }
    let identity = cloud_events::identity(&head.headers, &event.attributes)?;
    let traceparent = trace_context::of(&head.headers);
    let shows_trace = head.headers.contains_key(TRACE_HEADER);
    let traced = shows_trace || door.telemetry.wants(&traceparent);
    let (waiter, reply) = oneshot::channel();
    app.mailbox.post(Post::Submit(Submit {
        identity,
        wait,
        waiter,
        payload: std::mem::take(&mut held.payload),
        content_type: event.content_type,
        traceparent,
        attributes: event.attributes,
        traced_since_ns: traced.then(sandpipe::monotonic_ns),
        shows_trace,
    }));
    // Without an answer the bus thread has ended: it answers everything that it took.
    let stopped = || unavailable("the agent is stopping; try again".into());
    respond(&app.name, reply.await.map_err(|_| stopped())?)
}

/// A request's event without its data.
#[derive(Debug)]
pub(super) struct Event {
    /// Its CloudEvents attributes; none if it is no CloudEvent.
    pub attributes: Arc<[(String, String)]>,
    /// The media type of its data; empty if it is not said.
    pub content_type: Arc<str>,
}

impl Event {
    fn of_headers(headers: &HeaderMap) -> Result<Event, Problem> {
        Ok(Event {
            attributes: cloud_events::attributes(headers)?,
            content_type: text(headers, header::CONTENT_TYPE.as_str()),
        })
    }
}

fn wants_async(headers: &HeaderMap, uri: &Uri) -> bool {
    let preferred = headers
        .get_all("prefer")
        .iter()
        .filter_map(|value| value.to_str().ok());
    let mut preferences = preferred.flat_map(|value| value.split(','));
    preferences.any(|one| one.trim().eq_ignore_ascii_case("respond-async"))
        || uri
            .query()
            .unwrap_or_default()
            .split('&')
            .any(|pair| pair == "async=1")
}

fn text(headers: &HeaderMap, name: &str) -> Arc<str> {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .into()
}

/// What the core said, as HTTP.
pub(super) fn respond(app: &str, reply: Reply) -> Result<Response, Problem> {
    match reply {
        Reply::Done(answer) => output(app, &answer),
        Reply::Accepted(id) | Reply::Pending(id) => {
            let place = format!("/results/{id}");
            let body = format!("{{\"id\":\"{id}\",\"location\":\"{place}\"}}\n");
            let headers = [
                (header::LOCATION, place),
                (header::CONTENT_TYPE, "application/json".into()),
            ];
            Ok((StatusCode::ACCEPTED, headers, body).into_response())
        }
        Reply::Unknown => Err(Problem::new(
            StatusCode::NOT_FOUND,
            "unknown_result",
            "no such request, or its answer has expired or was given to who waited for it",
        )),
        Reply::Late(id) => {
            let place = format!("/results/{id}");
            let detail = format!("no answer within the deadline; the work goes on: GET {place}");
            let problem = Problem::new(StatusCode::GATEWAY_TIMEOUT, "deadline", detail);
            Err(problem.location(place))
        }
        Reply::Busy => {
            let detail = "the application's queue is full; nothing was accepted, try again";
            let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", detail);
            Err(problem.retry_after(RETRY_BUSY_S))
        }
        Reply::Unavailable(reason) => Err(unavailable(reason.to_string())),
    }
}

fn output(app: &str, answer: &Answer) -> Result<Response, Problem> {
    let (content_type, body) = match &answer.outcome {
        Outcome::Output { content_type, body } => (content_type, body),
        Outcome::Failed(failure) => return Err(Problem::of_failure(failure)),
    };
    let media = if content_type.is_empty() {
        media::media_type(body)
    } else {
        content_type
    };
    let mut response = Response::new(Body::from(body.clone()));
    let headers = response.headers_mut();
    if let Ok(media) = HeaderValue::try_from(media) {
        headers.insert(header::CONTENT_TYPE, media);
    }
    // A grain's bytes must not become a page because a browser guesses so.
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    cloud_events::describe(app, answer, headers);
    trace_context::describe(answer, headers);
    if let Some(trace) = &answer.trace
        && let Ok(value) = HeaderValue::try_from(serde_json::to_string(trace).unwrap_or_default())
    {
        headers.insert(TRACE_HEADER, value);
    }
    Ok(response)
}

fn unavailable(detail: String) -> Problem {
    let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail);
    problem.retry_after(RETRY_UNAVAILABLE_S)
}

fn unknown_app(door: &FrontDoor, name: &str) -> Problem {
    let known: Vec<Arc<str>> = door.apps().into_iter().map(|app| app.name).collect();
    let name: String = name.chars().take(64).collect();
    let detail = match known.is_empty() {
        true => format!("no application \"{name}\" here; none is deployed"),
        false => format!(
            "no application \"{name}\" here; there is: {}",
            known.join(", ")
        ),
    };
    Problem::new(StatusCode::NOT_FOUND, "unknown_application", detail)
}

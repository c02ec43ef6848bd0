//! Serves HTTP/1.1 and HTTP/2 (prior knowledge) on the front door's socket, with a limit on
//! everything that a client decides: connections, heads, streams, and how long it takes.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};

use super::connections::{Connection, ConnectionLimits};
use super::{FrontDoor, router};

/// Bytes of a request's head, and headers in it.
const HEAD_BYTES_MAX: usize = 64 << 10;
const HEADERS_MAX: usize = 100;

/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 128;

/// How long sent bytes may stay unacknowledged, or a full window closed, before the system gives
/// the connection up: the client is gone, or takes nothing.
const SILENT_PEER_MS: u32 = 30_000;

/// A pause when the system gives no descriptor.
const PAUSE: Duration = Duration::from_millis(50);

/// What a connection is told when all others are at work.
const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\n\
    connection: close\r\ncontent-length: 0\r\n\r\n";

/// Serves until `stop` is done and what was at work then is answered.
pub async fn serve(listener: TcpListener, door: Arc<FrontDoor>, stop: impl Future<Output = ()>) {
    let builder = builder(&door.limits);
    let routes = router(Arc::clone(&door));
    let open = GracefulShutdown::new();
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                pause_if_exhausted(&door, &error).await;
                continue;
            }
        };
        let Some(connection) = door.connections.admit(door.limits.open_max) else {
            // Whether it arrives is the client's concern: nobody waits for that.
            let _ = stream.try_write(REFUSAL);
            continue;
        };
        prepare(&stream);
        let service = service(routes.clone(), Arc::clone(&connection));
        let served = builder.serve_connection(TokioIo::new(stream), service);
        let served = open.watch(served.into_owned());
        let idle = door.limits.idle;
        tokio::spawn(async move {
            tokio::select! {
                // An error here is the client's: nonsense, or it has gone.
                _ = served => {}
                () = connection.closing(idle) => {}
            }
        });
    }
    drop(listener);
    open.shutdown().await;
}

fn builder(limits: &ConnectionLimits) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .keep_alive_interval(limits.head)
        .keep_alive_timeout(limits.head);
    builder
}

fn service(
    routes: Router,
    connection: Arc<Connection>,
) -> impl Service<
    Request<Incoming>,
    Response = Response,
    Error = Infallible,
    Future: Future<Output = Result<Response, Infallible>> + Send,
> {
    service_fn(move |request: Request<Incoming>| {
        let at_work = connection.begin();
        let answer = TowerToHyperService::new(routes.clone()).call(request);
        async move {
            let answer = answer.await;
            drop(at_work);
            answer
        }
    })
}

/// Options that help against silent peers; a system without them serves all the same.
fn prepare(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = sockopt::set_tcp_user_timeout(stream, SILENT_PEER_MS);
    let _ = sockopt::set_socket_keepalive(stream, true);
}

/// Without a descriptor a new connection cannot be taken, and asking again at once is in vain:
/// one that is idle makes room.
async fn pause_if_exhausted(door: &FrontDoor, error: &io::Error) {
    if matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    ) {
        return;
    }
    let made_room = door.connections.displace();
    tracing::warn!(%error, made_room, "a connection cannot be accepted");
    tokio::time::sleep(PAUSE).await;
}

//! HTTP/2 with prior knowledge, by the client of hyper.

use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::*;

#[test]
fn fifty_requests_at_once_share_one_connection() {
    let served = Served::chain();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let answers = runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(served.address)
            .await
            .unwrap();
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        let calls: Vec<_> = (0..50)
            .map(|number| {
                let mut sender = sender.clone();
                tokio::spawn(async move {
                    let request = Request::post("http://front/app")
                        .body(Body::from(format!("{number}")))
                        .unwrap();
                    let answer = sender.send_request(request).await.unwrap();
                    let status = answer.status().as_u16();
                    let body = answer.into_body().collect().await.unwrap().to_bytes();
                    (status, String::from_utf8(body.to_vec()).unwrap())
                })
            })
            .collect();
        let mut answers = Vec::new();
        for call in calls {
            answers.push(call.await.unwrap());
        }
        answers
    });
    for (number, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer, (200, format!("{number}ab")));
    }
    // The metrics are asked for over connections of their own.
    assert!(served.metric("sandpipe_connections_accepted_total") < 2.5);
    assert_eq!(served.handled(), 100);
}

//! Callers that ask until they have their answer, whoever dies meanwhile.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::Duration;

use sandpipe_agent::client::{Response, request};

use super::super::harness::WATCHDOG;
use super::super::kills::Accepted;

/// Where the agent of the moment is.
pub type Address = RwLock<SocketAddr>;

/// A pause between two requests: the load is steady, the kills are what matters.
const PAUSE: Duration = Duration::from_millis(5);
/// A pause before the same is asked again.
const AGAIN: Duration = Duration::from_millis(20);
/// One request may wait for several new sandboxes, and for workers that rest before their start.
const PATIENCE: Duration = Duration::from_secs(240);

/// What was asked of the applications, and what they answered.
#[derive(Default)]
pub struct Asked {
    /// Letter and text of each request; each has got its right answer, or was accepted.
    pub texts: Mutex<Vec<(&'static str, String)>>,
    pub accepted: Mutex<Vec<Accepted>>,
    /// Answers that said what was wrong.
    pub refusals: AtomicUsize,
    /// Connections that broke, or were refused.
    pub broken: AtomicUsize,
}

/// One that asks an application, one request after the other.
#[derive(Clone, Copy)]
pub struct Caller<'c> {
    pub address: &'c Address,
    pub asked: &'c Asked,
    pub letter: &'static str,
    pub path: &'c str,
    pub number: usize,
}

impl Caller<'_> {
    /// Every third request is accepted for later, the others wait for their answer.
    pub fn ask_until(self, stop: &AtomicBool) {
        for count in 0.. {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let text = format!("{}{}n{count}", self.letter, self.number);
            let body = format!("*: effect {text} .");
            if count % 3 == 0 {
                self.accept(&text, body);
            } else {
                let answer = self.insist("POST", self.path, &[("idempotency-key", &text)], &body);
                assert_eq!((answer.status, answer.text()), (200, body + "ab"));
            }
            let mut texts = self.asked.texts.lock().unwrap();
            texts.push((self.letter, text));
            drop(texts);
            std::thread::sleep(PAUSE);
        }
    }

    fn accept(&self, text: &str, body: String) {
        let headers = [("idempotency-key", text), ("prefer", "respond-async")];
        let answer = self.insist("POST", self.path, &headers, &body);
        match answer.status {
            202 => {
                let place = answer.header("location").unwrap().to_owned();
                self.asked.accepted.lock().unwrap().push(Accepted {
                    letter: self.letter,
                    text: body,
                    place,
                });
            }
            // Asked again after a broken connection, it had ended meanwhile.
            _ => assert_eq!((answer.status, answer.text()), (200, body + "ab")),
        }
    }

    /// Asks the same, under the same key, until there is an answer that is no clear refusal.
    fn insist(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Response {
        let begin = std::time::Instant::now();
        loop {
            assert!(begin.elapsed() < PATIENCE, "no answer to {body}");
            let address = *self.address.read().unwrap();
            match request(address, method, path, headers, body.as_bytes(), WATCHDOG) {
                Ok(answer) if answer.status < 300 => return answer,
                Ok(answer) => {
                    assert_clear(&answer);
                    self.asked.refusals.fetch_add(1, Ordering::Relaxed);
                }
                Err(_) => {
                    self.asked.broken.fetch_add(1, Ordering::Relaxed);
                }
            }
            std::thread::sleep(AGAIN);
        }
    }
}

/// It says in JSON what is wrong, and when to come again; nothing has failed for good.
fn assert_clear(answer: &Response) {
    let said: serde_json::Value = serde_json::from_str(&answer.text()).unwrap_or_default();
    let is_clear = [429, 503].contains(&answer.status)
        && said["error"].is_string()
        && said["detail"].as_str().is_some_and(|why| !why.is_empty());
    assert!(is_clear, "{}: {}", answer.status, answer.text());
}

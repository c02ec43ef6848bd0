//! Between the bus threads and the thread that exports: a bounded queue that nobody waits for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};

use crate::core::Path;

/// The path of a request to this application.
#[derive(Debug)]
pub struct Queued {
    /// The application.
    pub app: Arc<str>,
    /// The path.
    pub path: Path,
}

impl Queued {
    /// One for the request and one for each handling.
    #[must_use]
    pub fn spans(&self) -> u64 {
        1 + self.path.trace.hops.len() as u64
    }
}

/// How many spans there have been.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpanCounts {
    /// A receiver has taken them.
    pub exported: u64,
    /// They went nowhere: the queue was full, or the receiver did not take them.
    pub dropped: u64,
    /// They wait, or are just being sent.
    pub queued: u64,
}

/// Who is told of paths; without a queue nobody is, and nobody wants to be.
#[derive(Clone, Debug, Default)]
pub struct Telemetry {
    line: Option<Arc<Line>>,
}

#[derive(Debug)]
struct Line {
    queue: mpsc::Sender<Queued>,
    counts: Arc<Counts>,
    max_spans: u64,
}

#[derive(Debug, Default)]
struct Counts {
    exported: AtomicU64,
    dropped: AtomicU64,
    queued: AtomicU64,
}

impl Telemetry {
    /// A queue of at most `max_spans` spans, those included that are just being sent.
    #[must_use]
    pub fn with_queue(max_spans: u64) -> (Telemetry, Queue) {
        let (queue, paths) = mpsc::channel();
        let counts = Arc::<Counts>::default();
        let line = Line {
            queue,
            counts: Arc::clone(&counts),
            max_spans,
        };
        let line = Some(Arc::new(line));
        (Telemetry { line }, Queue { paths, counts })
    }

    /// Whether the path of a request with this (valid or empty) `traceparent` is wanted: of one
    /// that is sampled, or that nobody has decided about.
    #[must_use]
    pub fn wants(&self, traceparent: &str) -> bool {
        let flags = traceparent.split('-').nth(3);
        let flags = flags.and_then(|flags| u8::from_str_radix(flags, 16).ok());
        self.line.is_some() && flags.is_none_or(|flags| flags & 1 == 1)
    }

    /// Queues a path, or counts its spans as dropped. Never blocks; no system call.
    pub fn offer(&self, app: &Arc<str>, path: Path) {
        let Some(line) = self.line.as_ref().filter(|_| self.wants(&path.traceparent)) else {
            return;
        };
        let app = Arc::clone(app);
        let queued = Queued { app, path };
        let (spans, counts) = (queued.spans(), &line.counts);
        let before = counts.queued.fetch_add(spans, Ordering::Relaxed);
        let is_full = before + spans > line.max_spans;
        // Without a receiver the exporting thread has panicked.
        if is_full || line.queue.send(queued).is_err() {
            counts.queued.fetch_sub(spans, Ordering::Relaxed);
            counts.dropped.fetch_add(spans, Ordering::Relaxed);
        }
    }

    /// How many spans there have been, if any are wanted.
    #[must_use]
    pub fn counts(&self) -> Option<SpanCounts> {
        let counts = &self.line.as_ref()?.counts;
        Some(SpanCounts {
            exported: counts.exported.load(Ordering::Relaxed),
            dropped: counts.dropped.load(Ordering::Relaxed),
            queued: counts.queued.load(Ordering::Relaxed),
        })
    }
}

/// The other end.
#[derive(Debug)]
pub struct Queue {
    paths: mpsc::Receiver<Queued>,
    counts: Arc<Counts>,
}

impl Queue {
    /// The next paths, oldest first: as many as have `spans` spans together, or one more. Never
    /// blocks.
    #[must_use]
    pub fn take(&self, spans: u64) -> Vec<Queued> {
        let mut taken = 0;
        let mut paths = Vec::new();
        while taken < spans
            && let Ok(queued) = self.paths.try_recv()
        {
            taken += queued.spans();
            paths.push(queued);
        }
        paths
    }

    /// So many spans of those taken have been sent, or could not be.
    pub fn settle(&self, spans: u64, exported: bool) {
        let count = match exported {
            true => &self.counts.exported,
            false => &self.counts.dropped,
        };
        count.fetch_add(spans, Ordering::Relaxed);
        self.counts.queued.fetch_sub(spans, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Hop, Trace};

    const SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn path(hops: usize, traceparent: &str) -> Path {
        let trace = Box::new(Trace {
            hops: vec![Hop::default(); hops],
            ..Trace::default()
        });
        Path {
            root: sandpipe_abi::MessageId(1),
            traceparent: traceparent.into(),
            trace,
            failed: None,
        }
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_counted_and_room_comes_back() {
        let (telemetry, queue) = Telemetry::with_queue(7);
        let app: Arc<str> = "app".into();
        let counts = || {
            let counts = telemetry.counts().unwrap();
            (counts.exported, counts.dropped, counts.queued)
        };
        for _ in 0..3 {
            telemetry.offer(&app, path(2, SAMPLED));
        }
        assert_eq!(counts(), (0, 3, 6));
        // What is being sent still counts.
        assert_eq!(queue.take(1).len(), 1);
        telemetry.offer(&app, path(2, SAMPLED));
        assert_eq!(counts(), (0, 6, 6));
        queue.settle(3, true);
        telemetry.offer(&app, path(3, SAMPLED));
        assert_eq!(counts(), (3, 6, 7));
        assert_eq!(queue.take(100).len(), 2);
        queue.settle(7, false);
        assert_eq!(counts(), (3, 13, 0));
        drop(queue);
        telemetry.offer(&app, path(0, SAMPLED));
        assert_eq!(counts(), (3, 14, 0));
    }

    #[test]
    fn what_the_caller_did_not_sample_is_not_wanted_and_nobody_wants_without_a_queue() {
        let (telemetry, queue) = Telemetry::with_queue(9);
        let unsampled = format!("{}02", &SAMPLED[..53]);
        assert!(telemetry.wants(SAMPLED) && telemetry.wants(""));
        assert!(!telemetry.wants(&unsampled));
        assert!(!Telemetry::default().wants(SAMPLED));
        // One that is traced for its caller only.
        telemetry.offer(&"app".into(), path(1, &unsampled));
        assert_eq!(
            (queue.take(9).len(), telemetry.counts().unwrap().queued),
            (0, 0)
        );
    }
}

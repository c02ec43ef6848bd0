//! The thread that sends spans.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use opentelemetry::{InstrumentationScope, Key};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanExporter as _;
use tokio::runtime::Runtime;

use super::spans::{Clocks, spans};
use super::{Queue, Queued, Telemetry, TelemetryError};

/// Between two looks at the queue: who queues wakes nobody.
const PAUSE: Duration = Duration::from_millis(200);

/// Spans in one request to the receiver, about.
const BATCH: u64 = 512;

/// Spans that wait, unless `OTEL_BSP_MAX_QUEUE_SIZE` says otherwise: 80,000 a second.
const QUEUE: u64 = 16_384;

/// How long the end may take.
const GRACE: Duration = Duration::from_secs(2);

/// The running thread.
#[derive(Debug)]
pub(super) struct Thread {
    ending: mpsc::Sender<()>,
    ended: mpsc::Receiver<()>,
}

impl Thread {
    /// Sends what is queued. Blocks for at most [`GRACE`]; what a receiver holds up for longer is
    /// left to the end of the process.
    pub(super) fn end(self) {
        drop(self.ending);
        let _ = self.ended.recv_timeout(GRACE);
    }
}

/// Starts the thread.
pub(super) fn begin(endpoint: String) -> Result<(Telemetry, Thread), TelemetryError> {
    let max_spans = std::env::var("OTEL_BSP_MAX_QUEUE_SIZE").ok();
    let max_spans = max_spans.and_then(|text| text.trim().parse().ok());
    let (telemetry, queue) = Telemetry::with_queue(max_spans.unwrap_or(QUEUE));
    let failed = |error: &dyn std::fmt::Display| TelemetryError::Exporter(error.to_string());
    let exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(endpoint.clone())
        .build();
    let mut exporter = exporter.map_err(|error| failed(&error))?;
    exporter.set_resource(&resource());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let sender = Sender {
        endpoint,
        queue,
        exporter,
        scope: scope(),
        runtime: runtime.map_err(|error| failed(&error))?,
        is_failing: false,
    };
    let ((ending, told), (done, ended)) = (mpsc::channel(), mpsc::channel());
    let run = move || {
        sender.run(&told);
        drop::<mpsc::Sender<()>>(done);
    };
    let thread = std::thread::Builder::new().name("otlp".into());
    thread.spawn(run).map_err(TelemetryError::Thread)?;
    Ok((telemetry, Thread { ending, ended }))
}

struct Sender {
    endpoint: String,
    queue: Queue,
    exporter: SpanExporter,
    scope: InstrumentationScope,
    runtime: Runtime,
    is_failing: bool,
}

impl Sender {
    fn run(mut self, told: &mpsc::Receiver<()>) {
        while told.recv_timeout(PAUSE) == Err(RecvTimeoutError::Timeout) {
            self.send_queued(None);
        }
        self.send_queued(Some(Instant::now() + GRACE));
    }

    fn send_queued(&mut self, until: Option<Instant>) {
        while until.is_none_or(|until| Instant::now() < until) {
            let batch = self.queue.take(BATCH);
            if batch.is_empty() {
                return;
            }
            self.send(&batch);
        }
    }

    /// Blocks this thread until the receiver has answered, or for `OTEL_EXPORTER_OTLP_TIMEOUT`
    /// (10 s). There is no second try: what follows would wait for it, and be dropped instead.
    fn send(&mut self, batch: &[Queued]) {
        let clocks = Clocks::now();
        let all = batch
            .iter()
            .flat_map(|path| spans(path, clocks, &self.scope));
        let all: Vec<_> = all.collect();
        let count = all.len() as u64;
        let sent = self.runtime.block_on(self.exporter.export(all));
        self.queue.settle(count, sent.is_ok());
        let endpoint = &self.endpoint;
        match &sent {
            Err(error) if !self.is_failing => {
                tracing::warn!("spans are dropped, {endpoint} does not take them: {error}");
            }
            Ok(()) if self.is_failing => tracing::info!("{endpoint} takes spans again"),
            _ => {}
        }
        self.is_failing = sent.is_err();
    }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope::builder("sandpipe")
        .with_version(env!("CARGO_PKG_VERSION"))
        .build()
}

/// What `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say of this process.
fn resource() -> Resource {
    let named = Resource::builder().build();
    let name = named.get(&Key::new("service.name"));
    // What the specification has those called that nobody has named.
    if name.is_none_or(|name| name.as_str().starts_with("unknown_service")) {
        return Resource::builder().with_service_name("sandpipe").build();
    }
    named
}

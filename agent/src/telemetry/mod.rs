//! The paths of requests as OpenTelemetry spans: one for each request, one for each handling of a
//! message by a grain, each the child of what caused it, under the request's `traceparent`.
//!
//! A bus thread only queues what it knows anyway ([`Telemetry::offer`]); a thread of its own makes
//! spans of it and sends them by OTLP over HTTP (feature `otel`). The queue is bounded: while a
//! receiver is slow or gone, spans are dropped and counted, and nothing waits for it. A death loses
//! what was queued; no event depends on it.

mod endpoint;
#[cfg(feature = "otel")]
mod exporter;
mod queue;
#[cfg(feature = "otel")]
mod spans;

pub use endpoint::{EndpointError, check_endpoint};
pub use queue::{Queue, Queued, SpanCounts, Telemetry};

/// Why spans cannot be exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TelemetryError {
    /// Where they should go.
    #[error("{name} = \"{value}\": {reason}")]
    Endpoint {
        /// The setting.
        name: &'static str,
        /// What it says.
        value: String,
        /// What is wrong with it.
        reason: EndpointError,
    },
    /// The exporter does not take its settings.
    #[error(
        "spans cannot be exported: {0}; look at the environment variables OTEL_EXPORTER_OTLP_*"
    )]
    Exporter(String),
    /// No thread.
    #[error("no thread for the export of spans: {0}")]
    Thread(std::io::Error),
}

/// An export that runs, or none.
#[derive(Debug, Default)]
pub struct Export {
    telemetry: Telemetry,
    #[cfg(feature = "otel")]
    thread: Option<exporter::Thread>,
}

impl Export {
    /// Begins to export to the receiver that the environment names (the variables of
    /// OpenTelemetry), or else to `configured`, or not at all. Starts a thread; the receiver need
    /// not be there.
    ///
    /// # Errors
    /// [`TelemetryError`].
    pub fn begin(configured: Option<&str>) -> Result<Export, TelemetryError> {
        match endpoint::choose(configured, |name| std::env::var(name).ok())? {
            None => Ok(Export::default()),
            Some(endpoint) => Export::begin_to(endpoint),
        }
    }

    #[cfg(feature = "otel")]
    fn begin_to(endpoint: String) -> Result<Export, TelemetryError> {
        let (telemetry, thread) = exporter::begin(endpoint)?;
        let thread = Some(thread);
        Ok(Export { telemetry, thread })
    }

    #[cfg(not(feature = "otel"))]
    fn begin_to(endpoint: String) -> Result<Export, TelemetryError> {
        // Of a configuration it is an error; an environment may be meant for others.
        let reason = EndpointError::NotBuilt;
        tracing::warn!("no spans are exported to {endpoint}: {reason}");
        Ok(Export::default())
    }

    /// Whether [`Export::begin`] would send spans anywhere.
    #[must_use]
    pub fn is_wanted(configured: Option<&str>) -> bool {
        let chosen = endpoint::choose(configured, |name| std::env::var(name).ok());
        cfg!(feature = "otel") && chosen.is_ok_and(|endpoint| endpoint.is_some())
    }

    /// Who is told of paths.
    #[must_use]
    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// Sends what is queued, for at most two seconds, and says what is left. Blocks.
    pub fn end(self) {
        #[cfg(feature = "otel")]
        if let Some(thread) = self.thread {
            thread.end();
            match self.telemetry.counts().map_or(0, |counts| counts.queued) {
                0 => {}
                left => tracing::warn!("{left} spans are lost: their receiver took too long"),
            }
        }
    }
}

//! What a Python handler gets.

use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};
use sandpipe::MessageId;

/// One event for a grain.
///
/// Handlers get it; tests of handlers make it: `sandpipe.Event(b"data")`.
#[pyclass(frozen, module = "sandpipe")]
#[derive(Debug)]
pub(crate) struct Event {
    /// The payload, as bytes.
    #[pyo3(get)]
    data: Py<PyBytes>,
    // Text only when somebody asks: a fresh instance pays for each page that it writes.
    id: MessageId,
    root: MessageId,
    /// 1 the first time the event is handled; more if earlier instances died on it.
    #[pyo3(get)]
    attempt: u16,
}

#[pymethods]
impl Event {
    #[new]
    #[pyo3(signature = (data, id = None, root = None, attempt = 1))]
    fn new(
        data: Py<PyBytes>,
        id: Option<&str>,
        root: Option<&str>,
        attempt: u16,
    ) -> PyResult<Event> {
        let parse = |text: Option<&str>| {
            let id = text.map_or(Some(MessageId::NONE), MessageId::parse);
            id.ok_or_else(|| PyValueError::new_err("an id has 32 hexadecimal digits"))
        };
        Ok(Event {
            data,
            id: parse(id)?,
            root: parse(root)?,
            attempt,
        })
    }

    /// The event's identity, 32 hex digits: the same in every attempt and on every host.
    #[getter]
    fn id(&self) -> String {
        self.id.to_string()
    }

    /// The request that the event belongs to, 32 hex digits.
    #[getter]
    fn root(&self) -> String {
        self.root.to_string()
    }

    /// The payload as text.
    ///
    /// Raises UnicodeDecodeError if it is not UTF-8.
    #[getter]
    fn text<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.data.bind(py).call_method0("decode")
    }

    /// The payload's JSON value.
    ///
    /// Raises ValueError if it is not JSON.
    fn json<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        py.import("json")?.call_method1("loads", (&self.data,))
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let bytes = self.data.as_bytes(py).len();
        format!(
            "<sandpipe.Event {} attempt {}, {bytes} bytes>",
            self.id, self.attempt
        )
    }
}

impl Event {
    pub(crate) fn copied(py: Python<'_>, event: &sandpipe_grain::Event<'_>) -> PyResult<Event> {
        let shared = event.shared_data();
        let data = PyBytes::new_with(py, shared.len(), |bytes| {
            shared.copy_to(bytes);
            Ok(())
        })?;
        Ok(Event {
            data: data.unbind(),
            id: event.id(),
            root: event.root(),
            attempt: event.attempt(),
        })
    }
}

/// What is the same for all events of a worker.
#[derive(Debug)]
pub(crate) struct Place {
    app: String,
    grain: String,
    next: Vec<String>,
}

impl Place {
    pub(crate) fn of(config: &sandpipe_grain::WorkerConfig) -> Arc<Place> {
        Arc::new(Place {
            app: config.app.clone(),
            grain: config.grain.clone(),
            next: config.next.iter().map(|next| next.grain.clone()).collect(),
        })
    }
}

/// Where a handler runs.
#[pyclass(frozen, module = "sandpipe")]
#[derive(Debug)]
pub(crate) struct Context {
    place: Arc<Place>,
    key: Key,
}

/// Text only when somebody asks, as the ids of an event.
#[derive(Debug)]
enum Key {
    Given(String),
    Of(MessageId),
}

#[pymethods]
impl Context {
    #[new]
    #[pyo3(signature = (app = String::new(), grain = String::new(),
                        idempotency_key = String::new(), next = Vec::new()))]
    fn new(app: String, grain: String, idempotency_key: String, next: Vec<String>) -> Context {
        Context {
            place: Arc::new(Place { app, grain, next }),
            key: Key::Given(idempotency_key),
        }
    }

    /// A key to pass to outside services, so that they do once what a handler asks for twice: the
    /// same in every attempt of this event.
    #[getter]
    fn idempotency_key(&self) -> String {
        match &self.key {
            Key::Given(key) => key.clone(),
            Key::Of(event) => {
                sandpipe_grain::idempotency_key(&self.place.app, &self.place.grain, *event)
            }
        }
    }

    /// The application's name.
    #[getter]
    fn app(&self) -> &str {
        &self.place.app
    }

    /// The grain's name.
    #[getter]
    fn grain(&self) -> &str {
        &self.place.grain
    }

    /// The names of the grains that may follow; empty in the last grain.
    #[getter]
    fn next<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.place.next)
    }

    fn __repr__(&self) -> String {
        let Place { app, grain, .. } = &*self.place;
        format!("<sandpipe.Context of grain {grain} in {app}>")
    }
}

impl Context {
    pub(crate) fn at(place: &Arc<Place>, event: MessageId) -> Context {
        Context {
            place: place.clone(),
            key: Key::Of(event),
        }
    }
}

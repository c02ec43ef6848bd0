//! What a Python handler gets.

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

/// One event for a grain.
///
/// Handlers get it; tests of handlers make it: `sandpipe.Event(b"data")`.
#[pyclass(frozen, module = "sandpipe")]
#[derive(Debug)]
pub(crate) struct Event {
    /// The payload, as bytes.
    #[pyo3(get)]
    data: Py<PyBytes>,
    /// The event's identity, 32 hex digits: the same in every attempt and on every host.
    #[pyo3(get)]
    id: String,
    /// The request that the event belongs to, 32 hex digits.
    #[pyo3(get)]
    root: String,
    /// 1 the first time the event is handled; more if earlier instances died on it.
    #[pyo3(get)]
    attempt: u16,
}

#[pymethods]
impl Event {
    #[new]
    #[pyo3(signature = (data, id = String::new(), root = String::new(), attempt = 1))]
    fn new(data: Py<PyBytes>, id: String, root: String, attempt: u16) -> Event {
        Event {
            data,
            id,
            root,
            attempt,
        }
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
    pub(crate) fn copied(py: Python<'_>, event: &sandpipe_grain::Event) -> Event {
        Event {
            data: PyBytes::new(py, event.data()).unbind(),
            id: event.id().to_string(),
            root: event.root().to_string(),
            attempt: event.attempt(),
        }
    }
}

/// Where a handler runs.
#[pyclass(frozen, module = "sandpipe")]
#[derive(Debug)]
pub(crate) struct Context {
    /// The application's name.
    #[pyo3(get)]
    app: String,
    /// The grain's name.
    #[pyo3(get)]
    grain: String,
    /// A key to pass to outside services, so that they do once what a handler asks for twice: the
    /// same in every attempt of this event.
    #[pyo3(get)]
    idempotency_key: String,
    next: Vec<String>,
}

#[pymethods]
impl Context {
    #[new]
    #[pyo3(signature = (app = String::new(), grain = String::new(),
                        idempotency_key = String::new(), next = Vec::new()))]
    fn new(app: String, grain: String, idempotency_key: String, next: Vec<String>) -> Context {
        Context {
            app,
            grain,
            idempotency_key,
            next,
        }
    }

    /// The names of the grains that may follow; empty in the last grain.
    #[getter]
    fn next<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.next)
    }

    fn __repr__(&self) -> String {
        format!("<sandpipe.Context of grain {} in {}>", self.grain, self.app)
    }
}

impl Context {
    pub(crate) fn copied(context: &sandpipe_grain::Context<'_>) -> Context {
        Context {
            app: context.app().to_owned(),
            grain: context.grain().to_owned(),
            idempotency_key: context.idempotency_key(),
            next: context.next().map(str::to_owned).collect(),
        }
    }
}

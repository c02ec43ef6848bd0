//! The grain worker's loop around a Python object.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;
use sandpipe::MessageId;
use sandpipe::layout::INLINE_MAX;
use sandpipe_grain::{Fork, HandlerError, Output, Runtime};

use crate::event::{Context, Event, Place};

/// Serves the grain that the environment names until the sandbox ends the worker; returns the exit
/// code. `make_grain(handler, name)` makes the object that loads and calls the handler: see
/// `sandpipe/worker.py`.
#[pyfunction]
pub(crate) fn run_worker(py: Python<'_>, make_grain: Py<PyAny>) -> u8 {
    // Without the interpreter's lock, so that threads which the handler's module started go on.
    let exit = py.detach(|| {
        sandpipe_grain::run_from_env(|config| PythonRuntime {
            make_grain,
            handler: config.handler.clone(),
            name: config.grain.clone(),
            place: Place::of(config),
            loaded: None,
        })
    });
    // An exit code does not tell its number, but it can be compared.
    let is_exit = |&code: &u8| ExitCode::from(code) == exit;
    (0..=u8::MAX).find(is_exit).unwrap_or(1)
}

/// Bytes between two sizes of Python's allocator for small objects.
const STEP: usize = 16;

struct PythonRuntime {
    make_grain: Py<PyAny>,
    handler: String,
    name: String,
    place: Arc<Place>,
    loaded: Option<Loaded>,
}

/// What is called later, looked up once: a lookup in a fresh child faults pages in.
struct Loaded {
    before_fork: Py<PyAny>,
    fork: Py<PyAny>,
    /// None if there is nothing to reseed and no hook.
    after_fork: Option<Py<PyAny>>,
    warm: Py<PyAny>,
    /// The user's handler.
    function: Py<PyAny>,
    encode: Py<PyAny>,
    explain: Py<PyAny>,
    before_exit: Py<PyAny>,
}

impl Loaded {
    fn new(py: Python<'_>, grain: &Bound<'_, PyAny>) -> PyResult<Loaded> {
        let get = |name: &str| grain.getattr(name).map(Bound::unbind);
        let has_work: bool = grain.getattr("has_work_after_fork")?.extract()?;
        Ok(Loaded {
            before_fork: get("before_fork")?,
            fork: py.import("os")?.getattr("fork")?.unbind(),
            after_fork: has_work.then(|| get("after_fork")).transpose()?,
            warm: get("warm")?,
            function: get("function")?,
            encode: get("encode")?,
            explain: get("explain")?,
            before_exit: get("before_exit")?,
        })
    }

    /// The answer of a handler. Bytes, the common case, need no more Python.
    fn output(&self, answer: Bound<'_, PyAny>) -> PyResult<Output> {
        let answer = match answer.cast_into_exact::<PyBytes>() {
            Ok(data) => return Ok(Output::from_owner(None, PyBackedBytes::from(data))),
            Err(error) => error.into_inner(),
        };
        let encoded = self.encode.bind(answer.py()).call1((answer,))?;
        let (data, to): (Bound<'_, PyBytes>, Option<String>) = encoded.extract()?;
        Ok(Output::from_owner(to, PyBackedBytes::from(data)))
    }

    fn error(&self, py: Python<'_>, error: PyErr) -> HandlerError {
        let fallback = error.to_string();
        let told = self.explain.call1(py, (error.into_value(py),));
        let text = told.and_then(|text| text.extract::<String>(py));
        HandlerError::from(text.unwrap_or(fallback))
    }
}

/// What a call into `worker.py` must not do: it catches whatever user code raises.
fn report(py: Python<'_>, result: PyResult<Py<PyAny>>) {
    if let Err(error) = result {
        error.print(py);
    }
}

impl PythonRuntime {
    fn loaded(&self) -> &Loaded {
        self.loaded
            .as_ref()
            .expect("the worker loads before it does anything else")
    }
}

impl Runtime for PythonRuntime {
    fn load(&mut self) -> Result<(), String> {
        let loaded = Python::attach(|py| {
            let grain = self
                .make_grain
                .bind(py)
                .call1((&self.handler, &self.name))?;
            let failure: Option<String> = grain.call_method0("load")?.extract()?;
            match failure {
                Some(traceback) => Ok(Err(traceback)),
                None => Loaded::new(py, &grain).map(Ok),
            }
        });
        self.loaded = Some(loaded.map_err(|error: PyErr| error.to_string())??);
        Ok(())
    }

    fn before_fork(&mut self) {
        Python::attach(|py| report(py, self.loaded().before_fork.call0(py)));
    }

    /// Python's own fork: its locks, threads and generators of random numbers take part.
    fn fork(&mut self) -> io::Result<Fork> {
        Python::attach(|py| {
            let pid = self.loaded().fork.call0(py).and_then(|pid| pid.extract(py));
            match pid.map_err(|error| io::Error::other(error.to_string()))? {
                0 => Ok(Fork::Child),
                pid => Ok(Fork::Parent(pid)),
            }
        })
    }

    fn after_fork(&mut self) {
        if let Some(after_fork) = &self.loaded().after_fork {
            Python::attach(|py| report(py, after_fork.call0(py)));
        }
    }

    fn warm(&mut self) {
        Python::attach(|py| {
            // Each size of small objects has a page of its own in Python's allocator.
            let payloads: Vec<_> = (0..=INLINE_MAX + 2 * STEP)
                .step_by(STEP)
                .map(|len| PyBytes::new_with(py, len, |_| Ok(())))
                .collect();
            drop((payloads, Context::at(&self.place, MessageId::NONE)));
            report(py, self.loaded().warm.call0(py));
        });
    }

    fn handle(
        &mut self,
        event: &sandpipe_grain::Event<'_>,
        _context: &mut sandpipe_grain::Context<'_>,
    ) -> Result<Output, HandlerError> {
        Python::attach(|py| {
            let loaded = self.loaded();
            let context = Context::at(&self.place, event.id());
            let answer = Event::copied(py, event)
                .and_then(|event| loaded.function.bind(py).call1((event, context)));
            answer
                .and_then(|answer| loaded.output(answer))
                .map_err(|error| loaded.error(py, error))
        })
    }

    fn before_exit(&mut self) {
        Python::attach(|py| report(py, self.loaded().before_exit.call0(py)));
    }
}

//! The compiled half of the Python module `sandpipe`: the grain worker's loop around a Python
//! handler, and the two ends of a bare bus. The other half is `sandpipe/*.py`, which imports this
//! one as `_sandpipe`.
#![deny(unsafe_code)]

mod bus;
mod event;
mod worker;

/// What `sandpipe/__init__.py` offers to handlers, and what `sandpipe/worker.py` runs.
#[pyo3::pymodule]
mod _sandpipe {
    #[pymodule_export]
    use crate::bus::{Full, Publisher, Subscriber, pair};
    #[pymodule_export]
    use crate::event::{Context, Event};
    #[pymodule_export]
    use crate::worker::run_worker;
}

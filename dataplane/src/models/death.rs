//! A process that dies in the middle of its steps, as a model's thread.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use loom::thread;

loom::thread_local! {
    /// Kill points that the calling thread still passes; `None`: it does not die.
    static TO_PASS: Cell<Option<usize>> = Cell::new(None);
}

/// What a death unwinds with.
struct Died;

/// Called by [`crate::sync::kill_point`].
pub(crate) fn pass() {
    TO_PASS.with(|left| match left.get() {
        Some(0) => resume_unwind(Box::new(Died)),
        Some(more) => left.set(Some(more - 1)),
        None => {}
    });
}

/// Runs `life` in a thread of its own until its kill point number `point`, or to its end if it has
/// fewer, and waits for it as waitid does; whether it died at that point. Nothing in `life` has a
/// destructor that writes a shared word, so that what it had not done then is not done.
pub(super) fn dead_at(point: usize, life: impl FnOnce() + 'static) -> bool {
    let dying = move || {
        TO_PASS.with(|left| left.set(Some(point)));
        match catch_unwind(AssertUnwindSafe(life)) {
            Ok(()) => false,
            Err(reason) if reason.is::<Died>() => true,
            Err(reason) => resume_unwind(reason),
        }
    };
    thread::spawn(dying).join().unwrap()
}

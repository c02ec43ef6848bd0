//! What a language must offer to run as a grain.

use std::io::{self, Write};

use crate::event::{Context, Event, HandlerError, Output};
use crate::process::{self, Fork};

/// A language's way to load a handler once and to run it in forked instances.
///
/// The worker calls [`Runtime::load`] once. For each instance it calls [`Runtime::before_fork`]
/// and [`Runtime::fork`]; the child then calls [`Runtime::after_fork`], in a spare
/// [`Runtime::warm`], [`Runtime::handle`] for its event (in a pool: for each), and
/// [`Runtime::before_exit`].
pub trait Runtime {
    /// Loads the handler and its libraries, in the worker.
    ///
    /// # Errors
    /// The reason, with a traceback where the language has one. It is printed once and the worker
    /// ends with exit code 3.
    fn load(&mut self) -> Result<(), String>;

    /// In the worker, right before a fork.
    fn before_fork(&mut self) {}

    /// Forks the worker. The default is the C library's `fork`, with its handlers.
    ///
    /// # Errors
    /// The system's; the worker tries again a little later.
    fn fork(&mut self) -> io::Result<Fork> {
        process::fork()
    }

    /// In the child, before anything else of the runtime runs there: reseed, reopen.
    fn after_fork(&mut self) {}

    /// In a spare, before it waits: a dry run of the runtime that touches the memory a handler
    /// will need. Never the user's handler.
    fn warm(&mut self) {}

    /// Handles one event, in an instance.
    ///
    /// # Errors
    /// The handler's. It ends the request; it is not tried again.
    fn handle(
        &mut self,
        event: &Event<'_>,
        context: &mut Context<'_>,
    ) -> Result<Output, HandlerError>;

    /// In an instance, after its last event: what the handler printed must not be lost. The
    /// process then ends without the exit handlers of its libraries.
    fn before_exit(&mut self) {
        // A closed stdout is the handler's business.
        let _ = io::stdout().flush();
    }
}

/// A Rust closure as a runtime.
pub(crate) struct Function<F>(pub(crate) F);

impl<F> Runtime for Function<F>
where
    F: Fn(&Event<'_>, &mut Context<'_>) -> Result<Output, HandlerError>,
{
    fn load(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn handle(
        &mut self,
        event: &Event<'_>,
        context: &mut Context<'_>,
    ) -> Result<Output, HandlerError> {
        (self.0)(event, context)
    }
}

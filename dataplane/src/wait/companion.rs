//! A thread of a waiter's, and the descriptors that both use. A child of a fork has the waiter but
//! not the thread, and closes the descriptors all the same.
#![allow(unsafe_code, reason = "a reference of a thread that no fork copies")]

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

/// See the module. Whoever drops it tells the thread to end first, if it [`Companion::is_here`].
#[derive(Debug)]
pub(super) struct Companion<const N: usize> {
    descriptors: Arc<[OwnedFd; N]>,
    thread: Option<JoinHandle<()>>,
    process: u32,
}

impl<const N: usize> Companion<N> {
    /// Starts the thread. Does not block.
    ///
    /// # Errors
    /// The system's: too many threads.
    pub(super) fn start(
        name: &str,
        descriptors: [OwnedFd; N],
        work: impl FnOnce(&[OwnedFd; N]) + Send + 'static,
    ) -> io::Result<Companion<N>> {
        let descriptors = Arc::new(descriptors);
        let theirs = Arc::clone(&descriptors);
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || work(&theirs))?;
        Ok(Companion {
            descriptors,
            thread: Some(thread),
            process: std::process::id(),
        })
    }

    /// What was given to the thread.
    pub(super) fn descriptors(&self) -> &[OwnedFd; N] {
        &self.descriptors
    }

    /// Whether this process has the thread: it was not forked meanwhile.
    pub(super) fn is_here(&self) -> bool {
        self.process == std::process::id()
    }
}

impl<const N: usize> Drop for Companion<N> {
    fn drop(&mut self) {
        let thread = self.thread.take();
        if self.is_here() {
            let _ = thread.map(JoinHandle::join);
            return;
        }
        // There is nobody to give its stack back to.
        std::mem::forget(thread);
        if Arc::strong_count(&self.descriptors) > 1 {
            // SAFETY: the second reference is that of the thread's closure, the only one that is
            // ever made. This process has no such thread, so nobody uses or drops it here.
            unsafe { Arc::decrement_strong_count(Arc::as_ptr(&self.descriptors)) };
        }
    }
}

//! The atomics of the ring core: the machine's, or loom's when a model runs.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{AtomicU64, Ordering, fence};

/// A full fence: what was stored before is visible before anything loaded after.
///
/// On x86-64 a locked no-op on the own stack does it in about half the time of `mfence`.
#[inline(always)]
pub(crate) fn full_fence() {
    #[cfg(all(target_arch = "x86_64", not(loom), not(miri)))]
    crate::futex::locked_no_op();
    #[cfg(not(all(target_arch = "x86_64", not(loom), not(miri))))]
    fence(Ordering::SeqCst);
}

/// [`full_fence`] right behind a compare-exchange, which on x86-64 is one already, whatever its
/// ordering and outcome: only the compiler is held back.
#[inline(always)]
pub(crate) fn fence_after_exchange() {
    #[cfg(all(target_arch = "x86_64", not(loom), not(miri)))]
    core::sync::atomic::compiler_fence(Ordering::SeqCst);
    #[cfg(not(all(target_arch = "x86_64", not(loom), not(miri))))]
    fence(Ordering::SeqCst);
}

/// A place where a killed process leaves something half done; the feature `pauses` widens it, and
/// a model's thread may die there.
#[inline(always)]
pub(crate) fn kill_point() {
    #[cfg(all(loom, test))]
    crate::models::death::pass();
    #[cfg(feature = "pauses")]
    {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let spins = now.map_or(0, |since| since.subsec_nanos() / 10 % 499);
        (0..spins).for_each(|_| core::hint::spin_loop());
    }
}

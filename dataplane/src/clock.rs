//! The one clock of every process on the host.

/// Nanoseconds of `CLOCK_MONOTONIC`: the same in every process of the host, without a system call.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

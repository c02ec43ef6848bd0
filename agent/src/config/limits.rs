//! `[limits]`: the numbers of it, each within its range.

use std::time::Duration;

use sandpipe_grain::BackOff;
use toml::Spanned;

use super::check::number;
use super::error::Problems;
use super::{Limits, raw};

/// The section, and the defaults of what it leaves out.
pub(super) fn limits(raw: Option<&raw::Limits>, problems: &mut Problems<'_>) -> Limits {
    let base = Limits::default();
    let Some(raw) = raw else { return base };
    let mut read = |name, value: &Option<Spanned<i64>>, range, default| {
        number(name, value.as_ref(), range, default, problems)
    };
    let payload = read(
        "max_payload_bytes",
        &raw.max_payload_bytes,
        1..=64 << 20,
        base.max_payload_bytes,
    );
    let growth_mb = read("pool_growth_mb", &raw.pool_growth_mb, 0..=1 << 16, 0);
    let shared_mb = read("shared_mb", &raw.shared_mb, 1..=1 << 20, 1 << 20);
    let in_flight = read("max_in_flight", &raw.max_in_flight, 1..=100_000, 1024);
    // Less than one whole request would refuse it for ever.
    let bytes_in_flight = read(
        "max_bytes_in_flight",
        &raw.max_bytes_in_flight,
        payload..=1 << 40,
        base.max_bytes_in_flight,
    );
    let queue_length = read(
        "queue_length",
        &raw.queue_length,
        8..=1 << 16,
        u64::from(base.queue_length),
    );
    let deadline_ms = read("deadline_ms", &raw.deadline_ms, 1..=86_400_000, 60_000);
    let attempts = read("max_attempts", &raw.max_attempts, 1..=100, 3);
    let back_off = BackOff {
        first_ms: read("retry_first_ms", &raw.retry_first_ms, 0..=3_600_000, 50),
        max_ms: read("retry_max_ms", &raw.retry_max_ms, 0..=3_600_000, 5_000),
    };
    let ttl_s = read("result_ttl_s", &raw.result_ttl_s, 1..=604_800, 600);
    let instances = raw.instances.as_ref();
    let instances = instances.map(|_| read("instances", &raw.instances, 1..=100_000, 1));
    let pids = raw
        .pids
        .as_ref()
        .map(|_| read("pids", &raw.pids, 16..=1_000_000, 16));
    let limits = of_the_agent(raw, base, problems);
    Limits {
        max_payload_bytes: payload,
        pool_growth_bytes: growth_mb << 20,
        shared_bytes: raw.shared_mb.as_ref().map(|_| shared_mb << 20),
        max_in_flight: usize::try_from(in_flight).unwrap_or(usize::MAX),
        max_bytes_in_flight: bytes_in_flight,
        queue_length: u32::try_from(queue_length)
            .unwrap_or(u32::MAX)
            .next_power_of_two(),
        deadline: Duration::from_millis(deadline_ms),
        max_attempts: u16::try_from(attempts).unwrap_or(u16::MAX),
        back_off,
        result_ttl: Duration::from_secs(ttl_s),
        memory_limit_bytes: memory_limit(raw.memory_limit_mb.as_ref(), problems),
        instances,
        pids_limit: pids.or(base.pids_limit),
        cpu_limit_millicores: raw.cpu.as_ref().and_then(|cpu| millicores(cpu, problems)),
        ..limits
    }
}

/// What the agent keeps of its own disk and time.
fn of_the_agent(raw: &raw::Limits, base: Limits, problems: &mut Problems<'_>) -> Limits {
    let mut read = |name, value: &Option<Spanned<i64>>, range, default| {
        number(name, value.as_ref(), range, default, problems)
    };
    // Some MiB of a finished log are kept; a limit among them would never be left again.
    let spool_mb = read(
        "spool_mb",
        &raw.spool_mb,
        16..=1 << 24,
        base.spool_bytes >> 20,
    );
    let empty_wakes_per_s = read(
        "empty_wakes_per_s",
        &raw.empty_wakes_per_s,
        100..=1_000_000,
        base.empty_wakes_per_s,
    );
    let wakes_per_s = read(
        "wakes_per_s",
        &raw.wakes_per_s,
        100..=1_000_000,
        base.wakes_per_s,
    );
    Limits {
        spool_bytes: spool_mb << 20,
        empty_wakes_per_s,
        wakes_per_s,
        ..base
    }
}

pub(super) fn memory_limit(raw: Option<&Spanned<i64>>, problems: &mut Problems<'_>) -> Option<u64> {
    raw?;
    Some(number("memory_limit_mb", raw, 8..=1 << 20, 8, problems) << 20)
}

/// Cores as a decimal. The kernel takes no quota below a hundredth of its period.
fn millicores(cores: &Spanned<f64>, problems: &mut Problems<'_>) -> Option<u64> {
    let range = 0.01..=1024.0;
    if !range.contains(cores.get_ref()) {
        problems.add(
            cores.span(),
            format!("cpu = {}", cores.get_ref()),
            format!(
                "use a number of cores from {} to {}",
                range.start(),
                range.end()
            ),
        );
        return None;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "within the range"
    )]
    let rounded = (cores.get_ref() * 1000.0).round() as u64;
    Some(rounded)
}

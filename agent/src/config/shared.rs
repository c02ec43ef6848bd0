//! Whether an application's queues and pools fit into its limit of shared bytes at all.

use super::error::Problems;
use super::{AppSpec, raw};
use crate::application::{made_bytes, topology};

/// Notes a limit that the queues and pools exceed as they are made, before any of them grows.
pub(super) fn check(raw: &raw::App, spec: &AppSpec, problems: &mut Problems<'_>) {
    let given = raw.limits.as_ref().and_then(|raw| raw.shared_mb.as_ref());
    // What makes no topology is refused elsewhere, in its own words.
    let (Some(given), Some(limit), Ok(topology)) =
        (given, spec.limits.shared_bytes, topology(spec))
    else {
        return;
    };
    let made = made_bytes(&topology);
    if made > limit {
        let needed = made.div_ceil(1 << 20);
        problems.add(
            given.span(),
            format!(
                "shared_mb = {}: the queues and pools alone take {needed} MiB",
                given.get_ref()
            ),
            format!(
                "use at least {needed}, or make max_payload_bytes, queue_length or concurrency \
                 smaller"
            ),
        );
    }
}

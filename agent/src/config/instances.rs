//! Whether an application's limit of instances leaves every grain one.

use super::error::Problems;
use super::{AppSpec, raw};

/// Notes a limit that is smaller than the number of grains: one of them would never run.
pub(super) fn check(raw: &raw::App, spec: &AppSpec, problems: &mut Problems<'_>) {
    let given = raw.limits.as_ref().and_then(|raw| raw.instances.as_ref());
    let grains = spec.grains.len();
    if let (Some(given), Some(limit)) = (given, spec.limits.instances)
        && limit < grains as u64
    {
        problems.add(
            given.span(),
            format!("instances = {limit}: the application has {grains} grains"),
            format!("use at least {grains}: each grain needs one"),
        );
    }
}

//! `[keep_alive]`: how long an idle grain worker stays loaded.

use std::time::Duration;

use super::check::number;
use super::error::Problems;
use super::{KeepAlive, raw};
use crate::keep_alive::IdleTimes;

/// How long `fixed` keeps an idle worker if nothing is said, in seconds.
const IDLE_S: u64 = 600;

/// The section; without it workers stay.
pub(super) fn keep_alive(raw: Option<&raw::KeepAlive>, problems: &mut Problems<'_>) -> KeepAlive {
    let Some(raw) = raw else {
        return KeepAlive::NeverStop;
    };
    let policy = raw.policy.as_ref();
    let name = policy.map_or("never-stop", |policy| policy.get_ref().as_str());
    if let (Some(idle), true) = (&raw.idle_s, name != "fixed") {
        problems.add(
            idle.span(),
            format!("`idle_s` with policy = \"{name}\""),
            "only policy = \"fixed\" has a time: remove it",
        );
    }
    if let (Some(bin), true) = (&raw.bin_s, name != "hybrid") {
        problems.add(
            bin.span(),
            format!("`bin_s` with policy = \"{name}\""),
            "only policy = \"hybrid\" has bins: remove it",
        );
    }
    match name {
        "never-stop" => KeepAlive::NeverStop,
        "fixed" => KeepAlive::Fixed {
            idle: Duration::from_secs(number(
                "idle_s",
                raw.idle_s.as_ref(),
                1..=604_800,
                IDLE_S,
                problems,
            )),
        },
        "hybrid" => KeepAlive::Hybrid {
            bin: Duration::from_secs(number(
                "bin_s",
                raw.bin_s.as_ref(),
                1..=3600,
                IdleTimes::BIN.as_secs(),
                problems,
            )),
        },
        other => {
            problems.add(
                policy.map_or(0..0, toml::Spanned::span),
                format!("policy = \"{other}\""),
                "use \"never-stop\", \"fixed\" or \"hybrid\"",
            );
            KeepAlive::NeverStop
        }
    }
}

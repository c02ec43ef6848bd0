//! The file as serde reads it: every value with its place, nothing checked yet.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct App {
    pub name: Spanned<String>,
    pub workflow: Spanned<Workflow>,
    #[serde(default, rename = "grain")]
    pub grains: Vec<Spanned<Grain>>,
    pub limits: Option<Limits>,
    pub sandbox: Option<Sandbox>,
    pub keep_alive: Option<KeepAlive>,
}

/// From each grain to those that come after it.
type Edges = BTreeMap<Spanned<String>, Spanned<Vec<Spanned<String>>>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Workflow {
    pub chain: Option<Spanned<Vec<Spanned<String>>>>,
    pub entry: Option<Spanned<String>>,
    pub next: Option<Spanned<Edges>>,
    pub backup: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Grain {
    pub name: Spanned<String>,
    pub runtime: Spanned<String>,
    pub handler: Spanned<String>,
    pub args: Option<Spanned<Vec<String>>>,
    pub mode: Option<Spanned<String>>,
    pub spares: Option<Spanned<i64>>,
    pub concurrency: Option<Spanned<i64>>,
    pub time_limit_ms: Option<Spanned<i64>>,
    pub memory_limit_mb: Option<Spanned<i64>>,
    pub env: Option<Spanned<BTreeMap<String, String>>>,
    pub python: Option<Spanned<String>>,
    pub next: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    pub max_payload_bytes: Option<Spanned<i64>>,
    pub pool_growth_mb: Option<Spanned<i64>>,
    pub shared_mb: Option<Spanned<i64>>,
    pub max_in_flight: Option<Spanned<i64>>,
    pub max_bytes_in_flight: Option<Spanned<i64>>,
    pub queue_length: Option<Spanned<i64>>,
    pub deadline_ms: Option<Spanned<i64>>,
    pub max_attempts: Option<Spanned<i64>>,
    pub retry_first_ms: Option<Spanned<i64>>,
    pub retry_max_ms: Option<Spanned<i64>>,
    pub result_ttl_s: Option<Spanned<i64>>,
    pub spool_mb: Option<Spanned<i64>>,
    pub empty_wakes_per_s: Option<Spanned<i64>>,
    pub wakes_per_s: Option<Spanned<i64>>,
    pub memory_limit_mb: Option<Spanned<i64>>,
    pub pids: Option<Spanned<i64>>,
    pub instances: Option<Spanned<i64>>,
    pub cpu: Option<Spanned<f64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sandbox {
    #[serde(default)]
    pub read: Vec<Spanned<String>>,
    #[serde(default)]
    pub write: Vec<Spanned<String>>,
    pub tmp_mb: Option<Spanned<i64>>,
    pub io_uring: Option<bool>,
    pub network: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeepAlive {
    pub policy: Option<Spanned<String>>,
    pub idle_s: Option<Spanned<i64>>,
    pub bin_s: Option<Spanned<i64>>,
}

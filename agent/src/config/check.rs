//! Turns what serde read into an [`AppSpec`], noting all that is wrong.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;

use super::error::Problems;
use super::keep_alive::keep_alive;
use super::limits::{limits, memory_limit};
use super::runtime::runtime;
use super::sandbox::sandbox;
use super::{AppSpec, Backup, GrainSpec, Mode, Route, Runtime, graph, raw};

/// One family of the sandbox is the agent.
const MAX_GRAINS: usize = sandpipe_abi::layout::FAMILIES_MAX - 1;

/// First parts of the front door's own paths.
const PATHS: [&str; 4] = ["results", "metrics", "healthz", "readyz"];

/// Checks the whole file.
pub(super) fn application(
    raw: &raw::App,
    directory: &Path,
    problems: &mut Problems<'_>,
) -> Option<AppSpec> {
    valid_name("application", &raw.name, problems);
    if PATHS.contains(&raw.name.get_ref().as_str()) {
        let what = format!("no application can be called \"{}\"", raw.name.get_ref());
        problems.add(
            raw.name.span(),
            what,
            "the front door has that path: use another name",
        );
    }
    distinct_names(raw, problems);
    let limits = limits(raw.limits.as_ref(), problems);
    let sandbox = sandbox(raw.sandbox.as_ref(), directory, problems);
    let keep_alive = keep_alive(raw.keep_alive.as_ref(), problems);
    let backup = backup(&raw.workflow.get_ref().backup, problems);
    let mut grains: Vec<Option<GrainSpec>> = raw
        .grains
        .iter()
        .map(|g| grain(g.get_ref(), directory, problems))
        .collect();
    if raw.grains.is_empty() {
        return None;
    }
    let graph = graph::resolve(&raw.workflow, &raw.grains, problems)?;
    for (index, next) in graph.next.iter().enumerate() {
        let spec = grains[index].as_mut()?;
        spec.next.clone_from(next);
        if spec.route == Route::ByOutput && next.is_empty() {
            let table = raw.grains[index].get_ref();
            problems.add(
                table.next.as_ref().map_or(table.name.span(), Spanned::span),
                format!(
                    "grain \"{}\" chooses by output but nothing comes after it",
                    spec.name
                ),
                "give it next grains in the workflow, or remove next = \"by_output\"",
            );
        }
    }
    Some(AppSpec {
        name: raw.name.get_ref().clone(),
        directory: directory.to_path_buf(),
        grains: grains.into_iter().collect::<Option<Vec<_>>>()?,
        entry: graph.entry,
        backup,
        limits,
        sandbox,
        keep_alive,
    })
}

fn distinct_names(raw: &raw::App, problems: &mut Problems<'_>) {
    if raw.grains.is_empty() {
        problems.add(
            raw.name.span(),
            "the application has no grain",
            "add a [[grain]]",
        );
    }
    if raw.grains.len() > MAX_GRAINS {
        problems.add(
            raw.grains[MAX_GRAINS].span(),
            format!(
                "{} grains; an application has at most {MAX_GRAINS}",
                raw.grains.len()
            ),
            "split the application",
        );
    }
    let mut seen = BTreeMap::new();
    for grain in &raw.grains {
        let name = &grain.get_ref().name;
        if seen.insert(name.get_ref(), ()).is_some() {
            problems.add(
                name.span(),
                format!("two grains are called \"{}\"", name.get_ref()),
                "rename one of them",
            );
        }
    }
}

fn grain(raw: &raw::Grain, directory: &Path, problems: &mut Problems<'_>) -> Option<GrainSpec> {
    valid_name("grain", &raw.name, problems);
    if raw.name.get_ref() == sandpipe_global_bus::RESULTS {
        let what = format!("no grain can be called \"{}\"", raw.name.get_ref());
        problems.add(
            raw.name.span(),
            what,
            "that topic holds the answers: use another name",
        );
    }
    let env = raw
        .env
        .as_ref()
        .map(|env| environment(env, problems))
        .unwrap_or_default();
    let route = match raw
        .next
        .as_ref()
        .map(|next| (next.get_ref().as_str(), next.span()))
    {
        None | Some(("static", _)) => Route::Static,
        Some(("by_output", _)) => Route::ByOutput,
        Some((other, span)) => {
            problems.add(
                span,
                format!("next = \"{other}\""),
                "use \"static\" or \"by_output\"",
            );
            Route::Static
        }
    };
    let runtime = runtime(raw, directory, problems);
    let found = runtime.is_some();
    let spec = GrainSpec {
        name: raw.name.get_ref().clone(),
        // A stand-in, so that the rest of the grain is checked also without its handler.
        runtime: runtime.unwrap_or(Runtime::Rust {
            executable: PathBuf::new(),
        }),
        mode: mode(raw, problems),
        concurrency: number_u16(
            "concurrency",
            raw.concurrency.as_ref(),
            1..=256,
            4,
            problems,
        ),
        time_limit: Duration::from_millis(number(
            "time_limit_ms",
            raw.time_limit_ms.as_ref(),
            1..=86_400_000,
            30_000,
            problems,
        )),
        memory_limit_bytes: memory_limit(raw.memory_limit_mb.as_ref(), problems),
        env,
        next: Vec::new(),
        route,
    };
    found.then_some(spec)
}

fn mode(raw: &raw::Grain, problems: &mut Problems<'_>) -> Mode {
    let spares = number_u16("spares", raw.spares.as_ref(), 0..=64, 2, problems);
    match raw
        .mode
        .as_ref()
        .map(|mode| (mode.get_ref().as_str(), mode.span()))
    {
        None | Some(("fork", _)) => Mode::Fork { spares },
        Some(("pool", _)) => {
            if let Some(spares) = &raw.spares {
                problems.add(
                    spares.span(),
                    "`spares` with mode = \"pool\": pooled instances are not forked ahead",
                    "remove `spares` (its size is `concurrency`) or use mode = \"fork\"",
                );
            }
            Mode::Pool
        }
        Some((other, span)) => {
            problems.add(
                span,
                format!("mode = \"{other}\""),
                "use \"fork\" or \"pool\"",
            );
            Mode::Pool
        }
    }
}

fn environment(
    env: &Spanned<BTreeMap<String, String>>,
    problems: &mut Problems<'_>,
) -> BTreeMap<String, String> {
    for (key, value) in env.get_ref() {
        if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
            problems.add(
                env.span(),
                format!("\"{key}\" is no environment variable"),
                "use names without = and values without NUL",
            );
        } else if key.starts_with("SANDPIPE_") {
            problems.add(
                env.span(),
                format!("environment variable {key} is reserved"),
                "use a name that does not start with SANDPIPE_",
            );
        }
    }
    env.get_ref().clone()
}

fn backup(raw: &Option<Spanned<String>>, problems: &mut Problems<'_>) -> Backup {
    match raw
        .as_ref()
        .map(|level| (level.get_ref().as_str(), level.span()))
    {
        None | Some(("async", _)) => Backup::Async,
        Some(("none", _)) => Backup::None,
        Some((other, span)) => {
            problems.add(
                span,
                format!("backup = \"{other}\""),
                "use \"async\" or \"none\"",
            );
            Backup::Async
        }
    }
}

/// A number within a range; the default where none is given, or a wrong one.
pub(super) fn number(
    name: &str,
    raw: Option<&Spanned<i64>>,
    range: RangeInclusive<u64>,
    default: u64,
    problems: &mut Problems<'_>,
) -> u64 {
    let Some(raw) = raw else { return default };
    match u64::try_from(*raw.get_ref()) {
        Ok(value) if range.contains(&value) => value,
        _ => {
            problems.add(
                raw.span(),
                format!("{name} = {}", raw.get_ref()),
                format!("use a number from {} to {}", range.start(), range.end()),
            );
            default
        }
    }
}

fn number_u16(
    name: &str,
    raw: Option<&Spanned<i64>>,
    range: RangeInclusive<u64>,
    default: u64,
    problems: &mut Problems<'_>,
) -> u16 {
    let value = number(name, raw, range, default, problems);
    u16::try_from(value).expect("every range used here ends below 65,536")
}

fn valid_name(what: &str, name: &Spanned<String>, problems: &mut Problems<'_>) {
    let text = name.get_ref();
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    let starts = text.starts_with(|c: char| c.is_ascii_lowercase());
    // 48 keeps RUN/APP/sock within the 108 bytes of a Unix socket address for usual RUN paths.
    if !starts || text.len() > 48 || !text.chars().all(allowed) {
        problems.add(
            name.span(),
            format!("{what} name \"{text}\""),
            "use 1 to 48 of a-z, 0-9, - and _, starting with a letter",
        );
    }
}

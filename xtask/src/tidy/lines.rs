//! Rules that look at one line, or at the file's name.

use super::{Report, Source};

/// Counted in characters: what a reader sees.
const COLUMNS_MAX: usize = 100;

/// Split, so that this file passes its own check.
const UNFINISHED: [&str; 3] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
];
const OUTSIDE: [&str; 2] = [concat!("../", "shared"), concat!("/", "work/")];
const VAGUE: [&str; 2] = ["utils", "util"];

pub fn check(source: &Source, report: &mut Report) {
    module_name(source, report);
    for (index, line) in source.text.lines().enumerate() {
        let number = index + 1;
        columns(source, number, line, report);
        words(source, number, line, report);
    }
}

fn module_name(source: &Source, report: &mut Report) {
    let vague = source
        .path
        .split('/')
        .find(|part| VAGUE.contains(&part.split('.').next().unwrap_or_default()));
    if let Some(part) = vague {
        report.add(
            source,
            1,
            "vague-name",
            format!("{part}: name it after what it does"),
        );
    }
}

fn columns(source: &Source, number: usize, line: &str, report: &mut Report) {
    let columns = line.chars().count();
    if source.is_code() && columns > COLUMNS_MAX {
        let remedy = format!("{columns} columns; the limit is {COLUMNS_MAX}");
        report.add(source, number, "line-length", remedy);
    }
}

fn words(source: &Source, number: usize, line: &str, report: &mut Report) {
    for word in UNFINISHED {
        if has_word(line, word) {
            let remedy = format!("{word}: do it now, or describe the limit in plain words");
            report.add(source, number, "unfinished", remedy);
        }
    }
    for path in OUTSIDE {
        if source.path != ".ci/run" && has_path(line, path) {
            let remedy = format!("{path} is not part of the repository");
            report.add(source, number, "outside-path", remedy);
        }
    }
    let module = line.trim().trim_start_matches("pub ").strip_prefix("mod ");
    let inline = module.map(|rest| rest.trim_end_matches([';', '{', ' ']));
    if source.extension() == "rs" && inline.is_some_and(|name| VAGUE.contains(&name)) {
        report.add(
            source,
            number,
            "vague-name",
            "name the module after what it does".into(),
        );
    }
}

/// `word` with no letter, digit or underscore beside it (a mktemp template is not a word).
fn has_word(line: &str, word: &str) -> bool {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].ends_with(part_of_word) && !line[at + word.len()..].starts_with(part_of_word)
    })
}

/// `path` where a path begins: `target/work/x` is somebody else's directory.
fn has_path(line: &str, path: &str) -> bool {
    let inside_path = |c: char| c.is_alphanumeric() || "._-/}".contains(c);
    line.match_indices(path)
        .any(|(at, _)| !line[..at].ends_with(inside_path))
}

//! Rules that need the whole repository.

use std::collections::{BTreeMap, BTreeSet};

use super::functions::function_name;
use super::{Report, Source};

/// Documents that name tests.
const DOCUMENTS: [&str; 2] = ["docs/SPECIFICATION.md", "docs/THREAT_MODEL.md"];

/// Each ordering in the data plane names its partner: `SYNC(name)` stands at both ends.
pub fn sync_names(sources: &[Source], report: &mut Report) {
    let mut places: BTreeMap<&str, Vec<(&Source, usize)>> = BTreeMap::new();
    for source in sources {
        if !source.path.starts_with("dataplane/") || source.extension() != "rs" {
            continue;
        }
        for (index, line) in source.text.lines().enumerate() {
            for after in line.split("SYNC(").skip(1) {
                if let Some((name, _)) = after.split_once(')') {
                    places.entry(name).or_default().push((source, index + 1));
                }
            }
        }
    }
    for (name, at) in places {
        if let [(source, line)] = at.as_slice() {
            let remedy = format!("SYNC({name}) stands alone; mark its partner too");
            report.add(source, *line, "sync-partner", remedy);
        }
    }
}

/// A promise names its test, and the test exists (as a function; clippy finds one nobody runs).
pub fn specified_tests(sources: &[Source], report: &mut Report) {
    let functions: BTreeSet<&str> = sources
        .iter()
        .flat_map(|source| source.text.lines().map(move |line| (source, line)))
        .filter_map(|(source, line)| function_name(line, source.extension()))
        .collect();
    let is_document = |source: &&Source| DOCUMENTS.contains(&source.path.as_str());
    for document in sources.iter().filter(is_document) {
        for (line, test) in tests_named_in(&document.text) {
            let name = test.rsplit("::").next().unwrap_or(test);
            if !functions.contains(name) {
                let remedy = format!("no function {name}: write the test or correct the name");
                report.add(document, line, "specified-test", remedy);
            }
        }
    }
}

/// Names after `test: `, and names in backticks in a table's column `Test` or `Tests`.
fn tests_named_in(text: &str) -> Vec<(usize, &str)> {
    let mut tests = Vec::new();
    let mut column = None;
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        for after in line.split("test: ").skip(1) {
            let name = after.trim_start_matches('`');
            let end = name.find(|c: char| !is_name(c)).unwrap_or(name.len());
            tests.push((number, &name[..end]));
        }
        if !line.trim_start().starts_with('|') {
            column = None;
            continue;
        }
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        match column {
            None => {
                column = cells
                    .iter()
                    .position(|cell| ["Test", "Tests"].contains(cell))
            }
            Some(at) => {
                let cell = cells.get(at).copied().unwrap_or_default();
                let quoted = cell.split('`').skip(1).step_by(2);
                tests.extend(
                    quoted
                        .filter(|name| name.chars().all(is_name))
                        .map(|n| (number, n)),
                );
            }
        }
    }
    tests
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == ':'
}

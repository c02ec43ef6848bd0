//! Length of functions, in Rust as rustfmt lays it out and in Python.

use super::{Report, Source};

const FUNCTION_LINES_MAX: usize = 70;

pub fn check(source: &Source, report: &mut Report) {
    let length: fn(&[&str]) -> usize = match source.extension() {
        "rs" => rust_length,
        "py" => python_length,
        _ => return,
    };
    let lines: Vec<&str> = source.text.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line, source.extension()) else {
            continue;
        };
        let count = length(&lines[index..]);
        if count > FUNCTION_LINES_MAX {
            let remedy = format!("{name} has {count} lines; the limit is {FUNCTION_LINES_MAX}");
            report.add(source, index + 1, "function-length", remedy);
        }
    }
}

/// The name of the function that begins on this line, if one does.
pub fn function_name<'a>(line: &'a str, extension: &str) -> Option<&'a str> {
    let line = line.trim_start();
    let rest = match extension {
        "rs" => {
            let (before, rest) = line.split_once("fn ")?;
            // Whatever may stand before `fn`; a comment or a string does not look like this.
            let qualifier = |c: char| c.is_alphanumeric() || " ():\"_".contains(c);
            (before.is_empty() || before.ends_with(' ')).then_some(())?;
            before.chars().all(qualifier).then_some(rest)?
        }
        "py" => line
            .strip_prefix("async ")
            .unwrap_or(line)
            .strip_prefix("def ")?,
        _ => return None,
    };
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    (end > 0).then(|| &rest[..end])
}

/// From `fn` to the brace that stands under it; rustfmt puts nothing else into that column.
fn rust_length(lines: &[&str]) -> usize {
    let indent = indent_of(lines[0]);
    let mut opened = false;
    for (index, line) in lines.iter().enumerate() {
        if line.trim().is_empty() || indent_of(line) != indent {
            continue;
        }
        opened |= line.ends_with('{') || line.ends_with('}');
        let ends = line.trim() == "}" || (index == 0 && line.ends_with('}'));
        if ends || (!opened && line.ends_with(';')) {
            return index + 1;
        }
    }
    lines.len()
}

/// From `def` to the last line that is indented deeper.
fn python_length(lines: &[&str]) -> usize {
    let indent = indent_of(lines[0]);
    let mut last = 0;
    for (index, line) in lines.iter().enumerate().skip(1) {
        let closes_signature = line.trim_start().starts_with(')');
        if line.trim().is_empty() {
            continue;
        }
        if indent_of(line) <= indent && !closes_signature {
            break;
        }
        last = index;
    }
    last + 1
}

fn indent_of(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

//! What runs a grain: its runtime, and whether the handler is there.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use toml::Spanned;

use super::error::Problems;
use super::{Runtime, raw};

/// The runtime of a grain, its handler's file checked.
pub(super) fn runtime(
    raw: &raw::Grain,
    directory: &Path,
    problems: &mut Problems<'_>,
) -> Option<Runtime> {
    let kind = raw.runtime.get_ref().as_str();
    if let (Some(args), true) = (&raw.args, kind != "exec") {
        problems.add(
            args.span(),
            format!("`args` with runtime = \"{kind}\""),
            "only runtime = \"exec\" takes arguments: remove it",
        );
    }
    if let (Some(python), true) = (&raw.python, kind != "python") {
        problems.add(
            python.span(),
            format!("`python` with runtime = \"{kind}\""),
            "only runtime = \"python\" has an interpreter: remove it",
        );
    }
    match kind {
        "rust" => Some(Runtime::Rust {
            executable: executable(&raw.handler, directory, problems)?,
        }),
        "exec" => Some(Runtime::Exec {
            executable: executable(&raw.handler, directory, problems)?,
            args: raw
                .args
                .as_ref()
                .map(|args| args.get_ref().clone())
                .unwrap_or_default(),
        }),
        "python" => python(raw, directory, problems),
        other => {
            problems.add(
                raw.runtime.span(),
                format!("runtime = \"{other}\""),
                "use \"rust\", \"python\" or \"exec\"",
            );
            None
        }
    }
}

fn executable(
    handler: &Spanned<String>,
    directory: &Path,
    problems: &mut Problems<'_>,
) -> Option<PathBuf> {
    let path = directory.join(handler.get_ref());
    let wrong = match std::fs::metadata(&path) {
        Err(error) => Some((format!("{error}"), "build it first or correct the path")),
        Ok(found) if !found.is_file() => Some(("not a file".into(), "name an executable file")),
        Ok(found) if found.permissions().mode() & 0o111 == 0 => {
            Some(("not executable".into(), "chmod +x it"))
        }
        Ok(_) => None,
    };
    let Some((what, remedy)) = wrong else {
        return Some(path);
    };
    problems.add(
        handler.span(),
        format!("handler {}: {what}", path.display()),
        remedy,
    );
    None
}

fn python(raw: &raw::Grain, directory: &Path, problems: &mut Problems<'_>) -> Option<Runtime> {
    let handler = raw.handler.get_ref();
    let Some((place, function)) = handler.rsplit_once(':') else {
        problems.add(
            raw.handler.span(),
            format!("handler = \"{handler}\" names no function"),
            "write \"file.py:function\" or \"module:function\"",
        );
        return None;
    };
    let identifier = |text: &str| {
        !text.is_empty()
            && !text.starts_with(|c: char| c.is_ascii_digit())
            && text.chars().all(|c| c.is_alphanumeric() || c == '_')
    };
    if !identifier(function) {
        problems.add(
            raw.handler.span(),
            format!("\"{function}\" is no function name"),
            "write \"file.py:function\" or \"module:function\"",
        );
        return None;
    }
    let is_file = Path::new(place)
        .extension()
        .is_some_and(|extension| extension == "py");
    if is_file && !directory.join(place).is_file() {
        problems.add(
            raw.handler.span(),
            format!(
                "handler file {} does not exist",
                directory.join(place).display()
            ),
            "create it or correct the path",
        );
        return None;
    }
    let interpreter = match &raw.python {
        None => PathBuf::from("python3"),
        Some(python) if !python.get_ref().contains('/') => PathBuf::from(python.get_ref()),
        Some(python) => executable(python, directory, problems)?,
    };
    Some(Runtime::Python {
        handler: handler.clone(),
        interpreter,
    })
}

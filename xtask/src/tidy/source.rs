//! The files that tidy looks at.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Made by builds or by runs, so nobody edits it.
const SKIPPED_DIRS: [&str; 6] = [
    ".git",
    "target",
    ".venv",
    "results",
    "__pycache__",
    ".pytest_cache",
];
/// Everything else is data and has no style.
const TEXT_EXTENSIONS: [&str; 9] = ["rs", "py", "java", "c", "h", "sh", "toml", "md", "yml"];
const CODE_EXTENSIONS: [&str; 6] = ["rs", "py", "java", "c", "h", "sh"];

/// One text file of the repository.
pub struct Source {
    /// Relative to the root, with `/`.
    pub path: String,
    pub text: String,
    pub executable: bool,
}

impl Source {
    pub fn extension(&self) -> &str {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        name.rsplit_once('.').map_or("", |(_, extension)| extension)
    }

    /// Programs, in whatever language; a script without extension is told by its first line.
    pub fn is_code(&self) -> bool {
        CODE_EXTENSIONS.contains(&self.extension()) || self.text.starts_with("#!/")
    }

    pub fn is_bash(&self) -> bool {
        let first = self.text.lines().next().unwrap_or_default();
        first.starts_with("#!") && first.contains("bash")
    }
}

/// Reads all text files below `root`, sorted by path.
///
/// # Errors
/// When a directory or a file cannot be read; the message names it.
pub fn read_sources(root: &Path) -> io::Result<Vec<Source>> {
    let mut sources = Vec::new();
    walk(root, "", &mut sources)?;
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(sources)
}

fn walk(dir: &Path, prefix: &str, sources: &mut Vec<Source>) -> io::Result<()> {
    let named = |error: io::Error, path: &Path| {
        io::Error::new(error.kind(), format!("{}: {error}", path.display()))
    };
    for entry in fs::read_dir(dir).map_err(|error| named(error, dir))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{prefix}{name}");
        let kind = entry.file_type()?;
        if kind.is_dir() {
            if !SKIPPED_DIRS.contains(&name.as_str()) {
                walk(&entry.path(), &format!("{path}/"), sources)?;
            }
        } else if kind.is_file() {
            let full = entry.path();
            if let Some(source) = read(&full, path).map_err(|error| named(error, &full))? {
                sources.push(source);
            }
        }
    }
    Ok(())
}

fn read(full: &Path, path: String) -> io::Result<Option<Source>> {
    let executable = fs::metadata(full)?.permissions().mode() & 0o111 != 0;
    let extension = full
        .extension()
        .and_then(|e| e.to_str())
        .unwrap_or_default();
    let is_script = path.starts_with("scripts/") || path.starts_with(".ci/");
    let is_text = TEXT_EXTENSIONS.contains(&extension) || (is_script && extension.is_empty());
    if !is_text {
        return Ok(None);
    }
    let text = fs::read_to_string(full)?;
    Ok(Some(Source {
        path,
        text,
        executable,
    }))
}

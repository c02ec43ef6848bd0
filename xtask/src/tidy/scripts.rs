//! Scripts are started by hand and by CI: executable, and stopping at the first failure.

use super::{Report, Source};

pub fn check(source: &Source, report: &mut Report) {
    let (dir, _) = source.path.rsplit_once('/').unwrap_or_default();
    let started_by_hand = ["scripts", ".ci"].contains(&dir);
    if started_by_hand && !source.executable {
        report.add(
            source,
            1,
            "script-mode",
            format!("chmod +x {}", source.path),
        );
    }
    if started_by_hand && !source.text.starts_with("#!") {
        report.add(
            source,
            1,
            "script-shebang",
            "begin with #!/usr/bin/env bash".into(),
        );
    }
    let strict = source.text.lines().any(|line| line == "set -euo pipefail");
    if started_by_hand && source.is_bash() && !strict {
        report.add(
            source,
            1,
            "script-strict",
            "add the line: set -euo pipefail".into(),
        );
    }
}

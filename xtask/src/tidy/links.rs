//! A document's links lead somewhere: what they name is in the repository.

use super::{Report, Source};

/// `exists` is asked of paths relative to the root.
pub fn check(sources: &[Source], exists: impl Fn(&str) -> bool, report: &mut Report) {
    for source in sources.iter().filter(|source| source.extension() == "md") {
        let (dir, _) = source.path.rsplit_once('/').unwrap_or_default();
        for (index, line) in source.text.lines().enumerate() {
            for target in targets(line) {
                let path = match dir {
                    "" => target.to_owned(),
                    dir => format!("{dir}/{target}"),
                };
                if !exists(&path) {
                    let remedy = format!("{path} is not in the repository");
                    report.add(source, index + 1, "dead-link", remedy);
                }
            }
        }
    }
}

/// The files that a line links to, without the place inside them.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    let links = line.split("](").skip(1);
    let targets = links.filter_map(|rest| rest.split_once(')'));
    let files = targets.map(|(target, _)| target.split('#').next().unwrap_or_default());
    files.filter(|file| !file.is_empty() && !file.contains(':'))
}

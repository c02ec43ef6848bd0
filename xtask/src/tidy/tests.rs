//! Each rule against a tree that keeps it and a tree that breaks it.

use super::{Report, Source};

/// A tree in which one file is there beside the sources.
fn check(sources: &[Source]) -> Report {
    super::check(sources, |path| path == "docs/there.svg")
}

fn file(path: &str, text: &str) -> Source {
    Source {
        path: path.into(),
        text: text.into(),
        executable: true,
    }
}

/// `rule:line` of each finding.
fn broken(sources: &[Source]) -> Vec<String> {
    let Report { findings, .. } = check(sources);
    findings
        .iter()
        .map(|finding| format!("{}:{}", finding.rule, finding.line))
        .collect()
}

fn broken_in(path: &str, text: &str) -> Vec<String> {
    broken(&[file(path, text)])
}

#[test]
fn a_file_of_500_lines_passes_with_a_note_and_501_fail() {
    let report = check(&[file("a/src/x.rs", &"//\n".repeat(500))]);
    assert!(report.findings.is_empty());
    assert_eq!(report.notes, ["a/src/x.rs has 500 lines"]);
    assert_eq!(
        broken_in("a/src/x.rs", &"//\n".repeat(501)),
        ["file-length:501"]
    );
    assert!(
        check(&[file("a/src/x.rs", &"//\n".repeat(400))])
            .notes
            .is_empty()
    );
}

#[test]
fn a_manual_may_be_long_and_wide() {
    let line = format!("{}\n", "x".repeat(300));
    assert!(broken_in("docs/X.md", &line.repeat(600)).is_empty());
}

#[test]
fn a_line_of_101_characters_fails_and_bytes_do_not_count() {
    assert!(broken_in("x.rs", &"é".repeat(100)).is_empty());
    assert_eq!(
        broken_in("x.rs", &format!("\n{}", "x".repeat(101))),
        ["line-length:2"]
    );
}

#[test]
fn a_rust_function_of_71_lines_fails_wherever_it_stands() {
    let body = |lines| "        a();\n".repeat(lines);
    let method = |lines| {
        format!(
            "impl A {{\n    pub fn f(&self) {{\n{}    }}\n}}\n",
            body(lines)
        )
    };
    assert!(broken_in("x.rs", &method(68)).is_empty());
    assert_eq!(broken_in("x.rs", &method(69)), ["function-length:2"]);
    let wide = format!(
        "fn f(\n    a: u8,\n) -> u8\nwhere\n    u8: Copy,\n{{\n{}}}\n",
        body(64)
    );
    assert_eq!(broken_in("x.rs", &wide), ["function-length:1"]);
}

#[test]
fn declarations_and_one_liners_end_on_their_line() {
    let rest = "// comment\n".repeat(80);
    for short in ["fn f() {}", "fn f(a: u8) -> u8;", "    fn f() -> u8 { 1 }"] {
        assert!(
            broken_in("x.rs", &format!("{short}\n{rest}")).is_empty(),
            "{short}"
        );
    }
    assert!(broken_in("x.rs", &format!("// that fn of ours\n{rest}")).is_empty());
}

#[test]
fn a_python_function_of_71_lines_fails() {
    let function = |lines| format!("def f(\n    a,\n):\n{}\nx = 1\n", "    a()\n".repeat(lines));
    assert!(broken_in("x.py", &function(67)).is_empty());
    assert_eq!(broken_in("x.py", &function(68)), ["function-length:1"]);
}

#[test]
fn unfinished_work_is_found_as_a_word_only() {
    for word in [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X"),
    ] {
        assert_eq!(
            broken_in("x.rs", &format!("// {word}: later")),
            ["unfinished:1"]
        );
        assert!(broken_in("x.sh", &format!("mktemp /tmp/a.{word}X")).is_empty());
    }
}

#[test]
fn paths_outside_the_repository_are_found_outside_ci() {
    for path in [concat!("../", "shared/x"), concat!("/", "work/x")] {
        assert_eq!(
            broken_in("README.md", &format!("\nsee {path}")),
            ["outside-path:2"]
        );
    }
    let text = format!(
        "#!/usr/bin/env bash\nset -euo pipefail\ncd {}",
        concat!("/", "work/x")
    );
    assert!(broken_in(".ci/run", &text).is_empty());
    assert!(broken_in("x.md", concat!("target", "/", "work/x")).is_empty());
}

#[test]
fn nothing_is_called_utils() {
    assert_eq!(broken_in("a/src/utils.rs", ""), ["vague-name:1"]);
    assert_eq!(broken_in("a/utils/b.py", ""), ["vague-name:1"]);
    assert_eq!(
        broken_in("a/src/lib.rs", "\npub mod utils;"),
        ["vague-name:2"]
    );
    assert!(broken_in("a/src/lib.rs", "mod utilisation;").is_empty());
}

#[test]
fn a_script_is_executable_has_a_shebang_and_is_strict() {
    let good = "#!/usr/bin/env bash\n# What it does.\nset -euo pipefail\n";
    assert!(broken_in("scripts/a", good).is_empty());
    let sleeping = Source {
        executable: false,
        ..file("scripts/a", good)
    };
    assert_eq!(broken(&[sleeping]), ["script-mode:1"]);
    assert_eq!(
        broken_in("scripts/a", "set -euo pipefail\n"),
        ["script-shebang:1"]
    );
    assert_eq!(
        broken_in(".ci/run", "#!/usr/bin/env bash\necho\n"),
        ["script-strict:1"]
    );
    assert!(broken_in("scripts/a", "#!/usr/bin/env python3\n").is_empty());
}

#[test]
fn a_sync_name_needs_its_partner_within_the_data_plane() {
    let one = || file("dataplane/src/a.rs", "\n// SYNC(bell): before the fence\n");
    assert_eq!(broken(&[one()]), ["sync-partner:2"]);
    assert!(broken(&[one(), file("dataplane/src/b.rs", "// SYNC(bell)")]).is_empty());
    assert_eq!(
        broken(&[one(), file("agent/src/b.rs", "// SYNC(bell)")]),
        ["sync-partner:2"]
    );
}

#[test]
fn a_test_that_the_specification_names_exists() {
    let specification = "\
| Promise | Test |
|---|---|
| nothing is lost | `nothing_is_lost`, `agent::b_is_late` |

Text with `code`. It is fast (test: bus::fast).
| Other | Words |
|---|---|
| `not_a_test` | x |
";
    let spec = || file("docs/SPECIFICATION.md", specification);
    let rust = || {
        file(
            "a/tests/x.rs",
            "    async fn nothing_is_lost() {}\n\nfn fast() {}\n",
        )
    };
    assert_eq!(broken(&[spec(), rust()]), ["specified-test:3"]);
    let python = file("b/test_b.py", "def b_is_late():\n    pass\n");
    assert!(broken(&[spec(), rust(), python]).is_empty());
    assert_eq!(broken(&[spec()]).len(), 3);
}

#[test]
fn a_documents_links_lead_to_files_that_are_there() {
    let kept = "![a](there.svg) [b](there.svg#part) [c](#here) [d](https://example.org/x)\n";
    assert!(broken_in("docs/A.md", kept).is_empty());
    assert_eq!(
        broken_in("docs/A.md", "one\n[b](gone.md)\n"),
        ["dead-link:2"]
    );
    assert_eq!(broken_in("README.md", "[a](there.svg)\n"), ["dead-link:1"]);
}

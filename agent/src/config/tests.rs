mod keep_alive;
mod limits;
mod sandbox;

use std::os::unix::fs::PermissionsExt;

use super::*;

/// A directory with handlers that exist: `greet` and `shout` (executable), `plain` (not), `h.py`.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let directory = tempfile::tempdir().unwrap();
        for (name, mode) in [("greet", 0o755), ("shout", 0o755), ("plain", 0o644)] {
            let path = directory.path().join(name);
            std::fs::write(&path, "#!/bin/sh\ncat\n").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        std::fs::write(directory.path().join("h.py"), "def handle(e, c): pass\n").unwrap();
        Place(directory)
    }

    fn parse(&self, text: &str) -> Result<AppSpec, ConfigError> {
        AppSpec::parse(text, Path::new("app.toml"), self.0.path())
    }

    /// The problems of a text that must be refused, as `line: what; remedy`.
    fn refused(&self, text: &str) -> Vec<String> {
        match self.parse(text).expect_err("the text is wrong") {
            ConfigError::Invalid { problems, .. } => {
                problems.iter().map(ToString::to_string).collect()
            }
            other => panic!("{other}"),
        }
    }

    /// Asserts that exactly one problem is found, on that line, saying those words.
    fn one_problem(&self, text: &str, line: usize, words: &[&str]) {
        let problems = self.refused(text);
        assert_eq!(problems.len(), 1, "{problems:#?}");
        assert!(
            problems[0].starts_with(&format!("{line}: ")),
            "{}",
            problems[0]
        );
        for word in words {
            assert!(problems[0].contains(word), "no {word:?} in {}", problems[0]);
        }
    }
}

fn grain(name: &str, more: &str) -> String {
    format!("[[grain]]\nname = \"{name}\"\nruntime = \"rust\"\nhandler = \"greet\"\n{more}\n")
}

fn chain(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    format!(
        "name = \"hello\"\n[workflow]\nchain = [{}]\n",
        quoted.join(", ")
    )
}

/// One grain `a` with these lines from line 8 on.
fn one(more: &str) -> String {
    chain(&["a"]) + &grain("a", more)
}

#[test]
fn a_full_file_is_read() {
    let text = r#"
name = "hello"
[workflow]
chain = ["greet", "shout"]
backup = "none"
[limits]
max_payload_bytes = 1000
pool_growth_mb = 3
max_in_flight = 7
max_bytes_in_flight = 9000000000
deadline_ms = 1500
max_attempts = 5
retry_first_ms = 20
retry_max_ms = 700
result_ttl_s = 9
memory_limit_mb = 64
pids = 100
cpu = 1.5
[[grain]]
name = "shout"
runtime = "exec"
handler = "shout"
args = ["-n"]
mode = "pool"
concurrency = 3
[[grain]]
name = "greet"
runtime = "python"
handler = "h.py:handle"
python = "python3.11"
spares = 0
time_limit_ms = 10
memory_limit_mb = 512
env = { KEY = "v" }
next = "static"
"#;
    let place = Place::new();
    let spec = place.parse(text).unwrap();
    assert_eq!(spec.entry, 1);
    assert_eq!(spec.backup, Backup::None);
    assert_eq!(spec.grains[1].next, [0]);
    assert!(spec.grains[0].next.is_empty());
    assert_eq!(spec.grains[0].mode, Mode::Pool);
    assert_eq!(spec.grains[1].mode, Mode::Fork { spares: 0 });
    assert_eq!(spec.grains[1].memory_limit_bytes, Some(512 << 20));
    assert_eq!(spec.grains[1].time_limit, Duration::from_millis(10));
    assert_eq!(spec.limits.max_in_flight, 7);
    let back_off = spec.limits.back_off;
    assert_eq!((back_off.first_ms, back_off.max_ms), (20, 700));
    assert_eq!(spec.limits.pool_growth_bytes, 3 << 20);
    assert_eq!(spec.limits.max_bytes_in_flight, 9_000_000_000);
    assert_eq!(spec.limits.deadline, Duration::from_millis(1500));
    assert_eq!(spec.limits.pids_limit, Some(100));
    assert_eq!(spec.limits.memory_limit_bytes, Some(64 << 20));
    assert_eq!(spec.limits.cpu_limit_millicores, Some(1500));
    let Runtime::Exec { args, executable } = &spec.grains[0].runtime else {
        panic!()
    };
    assert_eq!(
        (args.as_slice(), executable),
        (["-n".to_owned()].as_slice(), &place.0.path().join("shout"))
    );
}

#[test]
fn what_is_left_out_has_defaults() {
    let spec = Place::new().parse(&one("")).unwrap();
    assert_eq!(spec.grains[0].mode, Mode::Fork { spares: 2 });
    assert_eq!(spec.grains[0].concurrency, 4);
    assert_eq!(spec.backup, Backup::Async);
    assert_eq!(spec.limits, Limits::default());
}

#[test]
fn a_graph_is_read() {
    let text = "name = \"g\"\n[workflow]\nentry = \"a\"\n[workflow.next]\na = [\"b\", \"c\"]\n\
                b = [\"d\"]\nc = [\"d\"]\n"
        .to_owned()
        + &grain("a", "next = \"by_output\"")
        + &grain("b", "")
        + &grain("c", "")
        + &grain("d", "");
    let spec = Place::new().parse(&text).unwrap();
    assert_eq!(spec.grains[0].route, Route::ByOutput);
    assert_eq!(spec.grains[0].next, [1, 2]);
    assert_eq!(spec.grains[1].next, [3]);
}

#[test]
fn broken_toml_names_its_line() {
    Place::new().one_problem("name = \"hello\"\n[workflow\n", 2, &[]);
}

#[test]
fn an_unknown_key_is_refused_at_every_level() {
    let place = Place::new();
    place.one_problem(&("colour = 1\n".to_owned() + &one("")), 1, &["colour"]);
    place.one_problem(&one("colour = 1"), 8, &["colour", "remove it"]);
    let workflow = chain(&["a"]) + "colour = 1\n" + &grain("a", "");
    place.one_problem(&workflow, 4, &["colour"]);
    let limits = one("") + "[limits]\ncolour = 1\n";
    place.one_problem(&limits, 10, &["colour"]);
}

#[test]
fn a_value_of_the_wrong_type_is_refused() {
    Place::new().one_problem(&one("spares = \"two\""), 8, &["invalid type"]);
}

#[test]
fn a_missing_key_is_named() {
    let text = chain(&["a"]) + "[[grain]]\nname = \"a\"\nruntime = \"rust\"\n";
    Place::new().one_problem(&text, 4, &["handler", "add it"]);
}

#[test]
fn an_application_needs_a_grain() {
    Place::new().one_problem(&chain(&["a"]), 1, &["no grain"]);
}

#[test]
fn names_are_checked() {
    let place = Place::new();
    let text = one("").replace("\"hello\"", "\"Hello World\"");
    place.one_problem(&text, 1, &["application name", "a-z"]);
    let text = chain(&["a/b"]) + &grain("a/b", "");
    place.one_problem(&text, 5, &["grain name"]);
}

#[test]
fn the_front_doors_own_paths_are_no_applications() {
    let text = one("").replace("\"hello\"", "\"metrics\"");
    Place::new().one_problem(&text, 1, &["the front door has that path"]);
}

#[test]
fn the_topic_of_answers_is_no_grain() {
    let text = chain(&["results"]) + &grain("results", "");
    Place::new().one_problem(&text, 5, &["holds the answers"]);
}

#[test]
fn more_grains_than_a_sandbox_has_families_are_refused() {
    let names: Vec<String> = (0..32).map(|index| format!("g{index}")).collect();
    let mut text = chain(&names.iter().map(String::as_str).collect::<Vec<_>>());
    for name in &names {
        text += &grain(name, "");
    }
    Place::new().one_problem(&text, 159, &["32 grains", "at most 31"]);
}

#[test]
fn two_grains_of_one_name_are_refused() {
    let text = chain(&["a"]) + &grain("a", "") + &grain("a", "");
    Place::new().one_problem(&text, 10, &["two grains", "rename"]);
}

#[test]
fn a_grain_that_nothing_leads_to_is_refused() {
    let text = chain(&["a"]) + &grain("a", "") + &grain("b", "");
    Place::new().one_problem(&text, 10, &["\"b\" cannot be reached from \"a\""]);
}

#[test]
fn a_workflow_that_names_an_unknown_grain_is_refused() {
    let place = Place::new();
    let text = chain(&["a", "x"]) + &grain("a", "");
    place.one_problem(&text, 3, &["\"x\"", "use one of: a"]);
    let edges = "name = \"g\"\n[workflow]\nentry = \"a\"\nnext = { a = [\"y\"] }\n".to_owned();
    place.one_problem(&(edges + &grain("a", "")), 4, &["\"y\""]);
}

#[test]
fn a_cycle_is_refused() {
    let edges =
        "name = \"g\"\n[workflow]\nentry = \"a\"\n[workflow.next]\na = [\"b\"]\nb = [\"a\"]\n";
    let text = edges.to_owned() + &grain("a", "") + &grain("b", "");
    Place::new().one_problem(&text, 4, &["cycle", "a, b"]);
    let text = chain(&["a", "b", "a"]) + &grain("a", "") + &grain("b", "");
    Place::new().one_problem(&text, 3, &["twice in the chain"]);
}

#[test]
fn a_workflow_is_a_chain_or_a_graph_and_not_both_or_neither() {
    let place = Place::new();
    let both = chain(&["a"]) + "next = { a = [] }\n" + &grain("a", "");
    place.one_problem(&both, 3, &["both", "keep one"]);
    let neither = "name = \"g\"\n[workflow]\n".to_owned() + &grain("a", "");
    place.one_problem(&neither, 2, &["neither"]);
    let no_entry = "name = \"g\"\n[workflow]\nnext = { a = [] }\n".to_owned() + &grain("a", "");
    place.one_problem(&no_entry, 2, &["without `entry`"]);
    let entry = chain(&["a"]) + "entry = \"a\"\n" + &grain("a", "");
    place.one_problem(&entry, 4, &["beside `chain`"]);
    let empty = chain(&[]) + &grain("a", "");
    place.one_problem(&empty, 3, &["empty"]);
}

#[test]
fn an_edge_twice_is_refused() {
    let edges =
        "name = \"g\"\n[workflow]\nentry = \"a\"\nnext = { a = [\"b\", \"b\"] }\n".to_owned();
    Place::new().one_problem(
        &(edges + &grain("a", "") + &grain("b", "")),
        4,
        &["twice after"],
    );
}

#[test]
fn a_choice_needs_something_to_choose_from() {
    Place::new().one_problem(&one("next = \"by_output\""), 8, &["nothing comes after"]);
    Place::new().one_problem(&one("next = \"sometimes\""), 8, &["by_output"]);
}

#[test]
fn a_handler_must_exist_and_be_executable() {
    let place = Place::new();
    let missing = one("").replace("\"greet\"", "\"target/none\"");
    place.one_problem(&missing, 7, &["target/none", "build it"]);
    let plain = one("").replace("\"greet\"", "\"plain\"");
    place.one_problem(&plain, 7, &["not executable", "chmod"]);
    let directory = one("").replace("\"greet\"", "\".\"");
    place.one_problem(&directory, 7, &["not a file"]);
}

#[test]
fn a_python_handler_names_a_file_that_exists_and_a_function() {
    let place = Place::new();
    let python = |handler: &str| {
        one("")
            .replace("\"rust\"", "\"python\"")
            .replace("\"greet\"", &format!("\"{handler}\""))
    };
    assert!(place.parse(&python("h.py:handle")).is_ok());
    assert!(place.parse(&python("package.module:handle")).is_ok());
    place.one_problem(&python("none.py:handle"), 7, &["none.py", "does not exist"]);
    place.one_problem(&python("h.py"), 7, &["names no function"]);
    place.one_problem(&python("h.py:2x"), 7, &["no function name"]);
}

#[test]
fn keys_that_contradict_the_runtime_are_refused() {
    let place = Place::new();
    place.one_problem(&one("args = [\"x\"]"), 8, &["only runtime = \"exec\""]);
    place.one_problem(
        &one("python = \"python3\""),
        8,
        &["only runtime = \"python\""],
    );
    place.one_problem(
        &one("").replace("\"rust\"", "\"perl\""),
        6,
        &["perl", "exec"],
    );
}

#[test]
fn spares_with_a_pool_are_a_contradiction() {
    let place = Place::new();
    place.one_problem(
        &one("mode = \"pool\"\nspares = 2"),
        9,
        &["pooled", "remove"],
    );
    place.one_problem(&one("mode = \"thread\""), 8, &["fork"]);
}

#[test]
fn numbers_out_of_range_are_refused_with_the_range() {
    let place = Place::new();
    place.one_problem(&one("concurrency = 0"), 8, &["from 1 to 256"]);
    place.one_problem(&one("spares = -1"), 8, &["from 0 to 64"]);
    place.one_problem(&one("time_limit_ms = 0"), 8, &["from 1 to"]);
    place.one_problem(&one("memory_limit_mb = 1"), 8, &["from 8 to"]);
    let limits = one("") + "[limits]\nmax_payload_bytes = 999999999\n";
    place.one_problem(&limits, 10, &["67108864"]);
    let limits = one("") + "[limits]\nqueue_length = 7\nspool_mb = 16\n";
    place.one_problem(&limits, 10, &["from 8 to 65536"]);
    let limits = one("") + "[limits]\nspool_mb = 15\n";
    place.one_problem(&limits, 10, &["from 16"]);
    let limits = one("") + "[limits]\nmax_bytes_in_flight = 8388607\n";
    place.one_problem(&limits, 10, &["from 8388608"]);
    for cores in ["0", "0.009", "-1", "nan", "1025"] {
        let limits = one("") + &format!("[limits]\ncpu = {cores}\n");
        place.one_problem(&limits, 10, &["cores from 0.01 to 1024"]);
    }
}

#[test]
fn whole_cores_need_no_decimal_point() {
    let spec = Place::new().parse(&(one("") + "[limits]\ncpu = 2\n"));
    assert_eq!(spec.unwrap().limits.cpu_limit_millicores, Some(2000));
}

#[test]
fn a_backup_level_that_does_not_exist_is_refused() {
    let text = chain(&["a"]) + "backup = \"strict\"\n" + &grain("a", "");
    Place::new().one_problem(&text, 4, &["\"async\" or \"none\""]);
}

#[test]
fn an_environment_that_cannot_be_set_is_refused() {
    let place = Place::new();
    place.one_problem(&one("env = { SANDPIPE_X = \"1\" }"), 8, &["reserved"]);
    place.one_problem(
        &one("env = { \"A=B\" = \"1\" }"),
        8,
        &["no environment variable"],
    );
}

#[test]
fn all_problems_are_said_at_once_and_in_the_order_of_the_file() {
    let text = one("concurrency = 0\nmode = \"pool\"\nspares = 1").replace("\"greet\"", "\"no\"");
    let problems = Place::new().refused(&text);
    let lines: Vec<&str> = problems
        .iter()
        .map(|p| p.split(':').next().unwrap())
        .collect();
    assert_eq!(lines, ["7", "8", "10"]);
}

#[test]
fn the_message_begins_each_line_with_file_and_line() {
    let error = Place::new()
        .parse(&one("concurrency = 0"))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("app.toml:8: concurrency = 0; use a number"),
        "{error}"
    );
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = AppSpec::load(Path::new("/nonexistent/app.toml"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("/nonexistent/app.toml") && error.contains("give the path"),
        "{error}"
    );
}

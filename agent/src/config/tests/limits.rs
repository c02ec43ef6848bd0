use super::{ConfigError, Place, one};
use crate::application::{made_bytes, topology};

#[test]
fn shared_bytes_bound_what_is_made_and_what_the_pools_may_grow_by() {
    let place = Place::new();
    let with = |shared_mb: u64| {
        let text = format!("[limits]\npool_growth_mb = 4000\nshared_mb = {shared_mb}\n");
        place.parse(&(one("") + &text))
    };
    let ConfigError::Invalid { problems, .. } = with(1).unwrap_err() else {
        panic!("a problem");
    };
    assert_eq!(problems.len(), 1, "{problems:?}");
    let needed: u64 = problems[0]
        .what
        .split(' ')
        .rev()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    assert!(with(needed - 1).is_err());
    for shared_mb in [needed, needed + 100, 8000] {
        let spec = with(shared_mb).unwrap();
        let topology = topology(&spec).unwrap();
        let most = made_bytes(&topology) + topology.growth_bytes();
        assert!(most <= shared_mb << 20, "{most} of {shared_mb} MiB");
    }
    let growth = |shared_mb| topology(&with(shared_mb).unwrap()).unwrap().growth_bytes();
    assert!(growth(needed + 100) > 50 << 20);
    assert_eq!(growth(8000), 4000 << 20, "its own limit holds as well");
}

#[test]
fn a_file_that_the_sandbox_hides_is_said_with_what_to_add() {
    let place = Place::new();
    let other = tempfile::tempdir().unwrap();
    let file = other.path().canonicalize().unwrap().join("far.py");
    std::fs::write(&file, "def handle(e, c): pass\n").unwrap();
    let text = format!(
        "name = \"x\"\n[workflow]\nchain = [\"p\", \"q\"]\n\
         [[grain]]\nname = \"p\"\nruntime = \"python\"\nhandler = \"{0}:handle\"\n\
         [[grain]]\nname = \"q\"\nruntime = \"exec\"\nhandler = \"greet\"\nargs = [\"{0}\"]\n",
        file.display()
    );
    let problems = place.refused(&text);
    assert_eq!(problems.len(), 2, "{problems:#?}");
    for (problem, line) in problems.iter().zip(["7: ", "12: "]) {
        assert!(problem.starts_with(line), "{problem}");
        let add = format!(
            "add \"{}\" to read of [sandbox]",
            file.parent().unwrap().display()
        );
        assert!(problem.contains(&add), "{problem}");
    }
    let read = format!("[sandbox]\nread = [{:?}]\n", other.path());
    place.parse(&(text + &read)).unwrap();
}

#[test]
fn a_file_that_no_descriptor_is_left_for_is_not_said_to_be_unreadable() {
    let error = ConfigError::Read {
        path: "app.toml".into(),
        reason: rustix::io::Errno::MFILE.into(),
    };
    let words = error.to_string();
    assert!(
        words.contains("app.toml: too many open files (limit "),
        "{words}"
    );
    assert!(!words.contains("may read"), "{words}");
}

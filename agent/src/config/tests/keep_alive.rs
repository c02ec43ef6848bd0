use std::time::Duration;

use super::super::KeepAlive;
use super::{Place, one};

#[test]
fn workers_stay_unless_the_keep_alive_section_says_how_long() {
    let fixed = |s| KeepAlive::Fixed {
        idle: Duration::from_secs(s),
    };
    let hybrid = |s| KeepAlive::Hybrid {
        bin: Duration::from_secs(s),
    };
    for (section, policy) in [
        ("", KeepAlive::NeverStop),
        ("[keep_alive]", KeepAlive::NeverStop),
        (
            "[keep_alive]\npolicy = \"never-stop\"",
            KeepAlive::NeverStop,
        ),
        ("[keep_alive]\npolicy = \"fixed\"", fixed(600)),
        ("[keep_alive]\npolicy = \"fixed\"\nidle_s = 20", fixed(20)),
        ("[keep_alive]\npolicy = \"hybrid\"", hybrid(60)),
        ("[keep_alive]\npolicy = \"hybrid\"\nbin_s = 5", hybrid(5)),
    ] {
        let spec = Place::new().parse(&(one("") + section + "\n")).unwrap();
        assert_eq!(spec.keep_alive, policy, "{section}");
    }
}

#[test]
fn what_is_wrong_in_the_keep_alive_section_is_said_with_its_line() {
    let lines = one("").lines().count();
    for (section, problem) in [
        (
            "policy = \"never\"",
            "policy = \"never\"; use \"never-stop\"",
        ),
        ("idle = 1", "unknown field `idle`"),
        ("policy = \"fixed\"\nidle_s = 0", "idle_s = 0"),
        (
            "policy = \"hybrid\"\nidle_s = 5",
            "`idle_s` with policy = \"hybrid\"",
        ),
        (
            "policy = \"never-stop\"\nidle_s = 5",
            "`idle_s` with policy",
        ),
        ("idle_s = 5", "`idle_s` with policy = \"never-stop\""),
        ("policy = \"hybrid\"\nbin_s = 0", "bin_s = 0"),
        (
            "policy = \"fixed\"\nbin_s = 5",
            "`bin_s` with policy = \"fixed\"; only policy = \"hybrid\"",
        ),
    ] {
        let error = Place::new().parse(&(one("") + "[keep_alive]\n" + section + "\n"));
        let error = error.unwrap_err().to_string();
        let line = lines + 1 + section.lines().count();
        assert!(error.contains(&format!(":{line}: ")), "{error}");
        assert!(error.contains(problem), "{error}");
    }
}

//! What a grain is left with: rights, files, limits, descriptors.
#![forbid(unsafe_code)]

mod common;

use std::collections::BTreeMap;
use std::process::Stdio;

use common::probe::{Parts, holds, probe};
use common::{Agent, Scene, orders, users};
use sandpipe_sandbox::IsolationState;
use serde_json::json;

const EACCES: i64 = 13;
const EROFS: i64 = 30;

#[test]
fn a_grain_has_no_capability_and_can_get_none() {
    for uid in users() {
        let asked = orders(["text:/proc/self/status", "set-user:1"]);
        let (said, on) = probe(uid, &asked, |_| {});
        assert_eq!(on["no privileges"], None, "every kernel can");
        let status = said["text:/proc/self/status"].as_str().unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap().trim_matches([':', '\t', ' ']).to_owned()
        };
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(field(set), "0000000000000000", "{set} of {uid:?}");
        }
        assert_eq!(field("NoNewPrivs"), "1");
        assert_eq!(field("Seccomp"), "2");
        assert_eq!(field("Seccomp_filters"), "2");
        assert!(said["set-user:1"] != 0, "{said}");
    }
}

#[test]
fn a_grain_cannot_write_the_root_and_has_its_own_tmp() {
    let marker = format!("/tmp/sandbox-test-marker-{}", std::process::id());
    std::fs::write(&marker, "of the host").unwrap();
    let hidden = format!("read:{marker}");
    for uid in users() {
        let mut asked = orders([
            "write:/usr/sandbox-test",
            "write:/etc/hostname",
            "write:/tmp/mine",
            "write:/var/tmp/mine",
            "write:/dev/shm/mine",
            "write:/dev/null",
            "write-link:/proc/sys/kernel/core_pattern",
            "write-link:/proc/sys/vm/drop_caches",
            "text:/proc/1/comm",
            "text:/proc/mounts",
        ]);
        asked.push(hidden.clone());
        // Without file rules, so that it is the root that refuses.
        let (said, on) = probe(uid, &asked, |spec| spec.isolation.files = false);
        if !holds(&on, "read-only root, private /tmp") {
            continue;
        }
        // A plain user may not write there in the first place.
        let refused: &[i64] = if uid.is_none() {
            &[EROFS]
        } else {
            &[EROFS, EACCES]
        };
        for order in [
            "write:/usr/sandbox-test",
            "write:/etc/hostname",
            "write-link:/proc/sys/kernel/core_pattern",
            "write-link:/proc/sys/vm/drop_caches",
        ] {
            let outcome = said[order].as_i64().unwrap();
            assert!(refused.contains(&outcome), "{order} of {uid:?}: {outcome}");
        }
        for path in ["/tmp/mine", "/var/tmp/mine", "/dev/shm/mine", "/dev/null"] {
            assert_eq!(said[format!("write:{path}")], 0, "{path} of {uid:?}");
        }
        assert_eq!(said[&hidden], 2, "the host's /tmp is not to be seen");
        assert_eq!(said["text:/proc/1/comm"], "sandpipe-init\n");
        let mounts = said["text:/proc/mounts"].as_str().unwrap();
        let tmp = mounts.lines().find(|line| line.contains(" /tmp tmpfs "));
        assert!(tmp.unwrap().contains("size=65536k"), "{tmp:?}");
    }
    std::fs::remove_file(marker).unwrap();
}

#[test]
fn a_grain_reaches_what_it_is_given_and_nothing_else() {
    for uid in users() {
        let scene = Scene::owned_by(uid);
        let place = |name: &str| scene.path().join(name);
        for name in ["given", "secret"] {
            std::fs::create_dir(place(name)).unwrap();
            std::fs::write(place(name).join("file"), "text").unwrap();
            for path in [place(name), place(name).join("file")] {
                std::os::unix::fs::chown(path, uid, uid).unwrap();
            }
        }
        let (given, secret) = (place("given/file"), place("secret/file"));
        let (given, secret) = (given.display(), secret.display());
        let asked = [
            format!("read:{given}"),
            format!("write:{given}"),
            format!("read:{secret}"),
            "run:/bin/true".into(),
            "list:/etc".into(),
            "list:/root".into(),
            "list:/home".into(),
            "list:/".into(),
            "write:/tmp/mine".into(),
        ];
        let mut spec = scene.prober("app", &asked);
        spec.files.read = vec![place("given"), place("nowhere")];
        // Then the secret is there, and it is the rules that refuse.
        spec.isolation.root = false;
        let mut agent = Agent::start_as(&spec, uid, Stdio::inherit());
        let said = scene.said("app");
        let status = agent.status();
        let item = |name: &str| status.isolation.iter().find(|item| item.name == name);
        let vain = item(&format!("path {}", place("nowhere").display())).unwrap();
        assert!(vain.state == IsolationState::Off && !vain.remedy.is_empty());
        agent.shut_down();
        let rules = item("file rules").unwrap();
        let off = (rules.state == IsolationState::Off).then(|| rules.reason.clone());
        if !holds(&Parts::from([("file rules".into(), off)]), "file rules") {
            continue;
        }
        assert_eq!(said[format!("read:{given}")], 0);
        assert_eq!(said[format!("write:{given}")], EACCES);
        assert_eq!(
            said[format!("read:{secret}")],
            EACCES,
            "though its user owns it"
        );
        for allowed in ["run:/bin/true", "list:/etc"] {
            assert_eq!(said[allowed], 0, "{allowed} of {uid:?}");
        }
        // Nor is the host's /tmp, where there is no other.
        for denied in ["list:/root", "list:/home", "list:/", "write:/tmp/mine"] {
            assert_eq!(said[denied], EACCES, "{denied} of {uid:?}");
        }
    }
}

#[test]
fn a_grain_holds_four_descriptors_and_none_of_them_is_anothers() {
    for uid in users() {
        let (said, _) = probe(
            uid,
            &orders(["descriptors", "text:/proc/self/limits"]),
            |_| {},
        );
        let found = said["descriptors"].as_object().unwrap();
        let kinds: BTreeMap<&str, &str> = found
            .iter()
            .map(|(number, target)| {
                let target = target.as_str().unwrap();
                (number.as_str(), target.split(':').next().unwrap())
            })
            .collect();
        // Its input, its output twice (to init), its line to the guardian.
        let expected = [
            ("0", "/dev/null"),
            ("1", "pipe"),
            ("2", "pipe"),
            ("3", "socket"),
        ];
        assert_eq!(kinds, BTreeMap::from(expected), "{uid:?}");
        assert_eq!(found["1"], found["2"]);
        let limits = said["text:/proc/self/limits"].as_str().unwrap();
        let limit = |name: &str| {
            let line = limits.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap().split_whitespace().take(2).collect::<Vec<_>>()
        };
        assert_eq!(limit("Max core file size"), ["0", "0"]);
        assert_eq!(limit("Max open files"), ["1024", "4096"]);
    }
}

#[test]
fn what_is_not_wanted_is_not_done() {
    let asked = orders(["text:/proc/self/status", "list:/root"]);
    let (said, on) = probe(None, &asked, |spec| {
        spec.isolation.privileges = false;
        spec.isolation.root = false;
    });
    for part in ["no privileges", "file rules", "system call filter"] {
        assert_eq!(on.get(part), None, "{part} needs no_new_privs");
    }
    let status = said["text:/proc/self/status"].as_str().unwrap();
    assert!(status.contains("NoNewPrivs:\t0"), "{status}");
    assert_eq!(said["list:/root"] == json!(0), common::is_root());
}

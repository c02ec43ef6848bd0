//! Layouts N - 1, N and N + 1 meet: either both sides speak one, or each names both.

use std::time::Duration;

use sandpipe::attach::AttachMessage;
use sandpipe::layout::{LAYOUT_VERSION, layout_hash};
use sandpipe::{AttachError, FamilyIndex, Guardian, Participant, Reaction, socket};

use crate::house::{AGENT, HOSTILE, topology};

const VERSIONS: [u32; 3] = [LAYOUT_VERSION - 1, LAYOUT_VERSION, LAYOUT_VERSION + 1];

#[test]
fn a_guardian_refuses_the_layout_before_and_after_its_own_naming_both() {
    for family in [AGENT, HOSTILE] {
        for version in VERSIONS {
            let mut guardian = Guardian::new(topology()).unwrap();
            guardian.make_family(family).unwrap();
            let hello = AttachMessage::Hello {
                version,
                hash: layout_hash(),
                family,
            };
            match guardian.handle(family, &hello.encode()).unwrap() {
                Reaction::Reply(..) => assert_eq!(version, LAYOUT_VERSION),
                Reaction::Refuse(bytes) => {
                    assert_ne!(version, LAYOUT_VERSION);
                    let refused = AttachMessage::decode(&bytes).unwrap();
                    let AttachMessage::Refused {
                        version: own,
                        reason,
                        ..
                    } = refused
                    else {
                        panic!("{refused:?}")
                    };
                    assert_eq!(own, LAYOUT_VERSION);
                    assert!(reason.contains(&format!("version {version}, not {own}")));
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn a_participant_refused_by_the_layout_before_or_after_its_own_names_both() {
    // The agent attaches as family 0, a grain of Rust or Python as another.
    for family in [AGENT, HOSTILE] {
        for version in [LAYOUT_VERSION - 1, LAYOUT_VERSION + 1] {
            let error = attach_to(version, family);
            assert!(
                matches!(error, AttachError::Refused { guardian_version, version: own, .. }
                    if guardian_version == version && own == LAYOUT_VERSION),
                "{error}"
            );
            let text = error.to_string();
            for named in [version, LAYOUT_VERSION] {
                assert!(text.contains(&format!("version {named} ")), "{text}");
            }
        }
    }
}

/// Attaches to a guardian of another version.
fn attach_to(version: u32, family: FamilyIndex) -> AttachError {
    let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
    let refused = AttachMessage::Refused {
        version,
        hash: layout_hash() ^ 1,
        reason: format!("you speak layout version {LAYOUT_VERSION}, not {version}"),
    };
    socket::send(&ours, &refused.encode(), &[]).unwrap();
    Participant::attach(theirs.into(), family, Duration::from_secs(10)).unwrap_err()
}

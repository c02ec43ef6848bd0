//! Ids of requests. A retry of the same request gets the same id, so that every reader folds it.

use sandpipe_abi::MessageId;

use super::message::Identity;

/// The id of request `sequence` of a front door's life `epoch`, or of a request that says itself
/// which one it is.
#[must_use]
pub fn root_id(app: &str, epoch: u64, sequence: u64, identity: &Identity) -> MessageId {
    let epoch = epoch.to_le_bytes();
    let sequence = sequence.to_le_bytes();
    match identity {
        Identity::Fresh => hash(&[b"fresh", app.as_bytes(), &epoch, &sequence]),
        Identity::Key(key) => hash(&[b"key", app.as_bytes(), key.as_bytes()]),
        Identity::Event { source, id } => {
            hash(&[b"event", app.as_bytes(), source.as_bytes(), id.as_bytes()])
        }
        Identity::Redriven(dead) => hash(&[b"redriven", app.as_bytes(), &dead.0.to_le_bytes()]),
    }
}

/// The id that a list of parts makes, the same in every life.
pub(super) fn hash(parts: &[&[u8]]) -> MessageId {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        // The length keeps ("ab", "c") apart from ("a", "bc").
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let half = hasher.finalize().as_bytes()[..16]
        .try_into()
        .expect("a BLAKE3 hash has 32 bytes");
    MessageId(u128::from_le_bytes(half).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_the_same_id_in_every_life_and_only_in_its_application() {
        let key = Identity::Key("k".into());
        assert_eq!(root_id("a", 1, 2, &key), root_id("a", 3, 4, &key));
        assert_ne!(root_id("a", 1, 2, &key), root_id("b", 1, 2, &key));
    }

    #[test]
    fn fresh_requests_differ_by_sequence_and_by_life() {
        let id = |epoch, sequence| root_id("a", epoch, sequence, &Identity::Fresh);
        assert_ne!(id(1, 1), id(1, 2));
        assert_ne!(id(1, 1), id(2, 1));
    }

    #[test]
    fn source_and_id_of_an_event_do_not_run_into_each_other() {
        let event = |source: &str, id: &str| Identity::Event {
            source: source.into(),
            id: id.into(),
        };
        assert_ne!(
            root_id("a", 0, 0, &event("ab", "c")),
            root_id("a", 0, 0, &event("a", "bc"))
        );
        assert_ne!(
            root_id("a", 0, 0, &Identity::Key("k".into())),
            root_id("a", 0, 0, &event("k", ""))
        );
    }
}

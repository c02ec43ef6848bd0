//! Answers that somebody may still collect, until their time is over.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use sandpipe_abi::MessageId;

use super::message::{Answer, Outcome};

/// Bytes of kept answers at the most; beyond it the ones that expire first go first.
const KEPT_BYTES_MAX: usize = 256 << 20;

/// How many finished requests without a kept answer are remembered, to fold late duplicates.
const RECENT_MAX: usize = 1 << 16;

/// Kept answers, and the ids of requests that ended a short time ago.
#[derive(Debug, Default)]
pub(super) struct Results {
    kept: HashMap<MessageId, (u64, Arc<Answer>)>,
    by_expiry: BTreeSet<(u64, MessageId)>,
    bytes: usize,
    recent: HashSet<MessageId>,
    recent_order: VecDeque<MessageId>,
}

impl Results {
    /// Keeps an answer until `expires_ms`.
    pub(super) fn keep(&mut self, answer: Arc<Answer>, expires_ms: u64) {
        let root = answer.root;
        self.forget(root);
        self.bytes += size(&answer);
        self.kept.insert(root, (expires_ms, answer));
        self.by_expiry.insert((expires_ms, root));
        while self.bytes > KEPT_BYTES_MAX && self.kept.len() > 1 {
            let Some(&(_, first)) = self.by_expiry.first() else {
                return;
            };
            self.forget(first);
        }
    }

    /// Remembers that a request has ended, without its answer.
    pub(super) fn remember(&mut self, root: MessageId) {
        if self.recent.insert(root) {
            self.recent_order.push_back(root);
        }
        if self.recent_order.len() > RECENT_MAX
            && let Some(oldest) = self.recent_order.pop_front()
        {
            self.recent.remove(&oldest);
        }
    }

    /// The kept answer of a request.
    pub(super) fn find(&self, root: MessageId) -> Option<&Arc<Answer>> {
        self.kept.get(&root).map(|(_, answer)| answer)
    }

    /// Whether the request is known to have ended.
    pub(super) fn has_ended(&self, root: MessageId) -> bool {
        self.kept.contains_key(&root) || self.recent.contains(&root)
    }

    /// Forgets what has expired.
    pub(super) fn expire(&mut self, now_ms: u64) {
        while let Some(&(expires_ms, root)) = self.by_expiry.first()
            && expires_ms <= now_ms
        {
            self.forget(root);
            self.remember(root);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    fn forget(&mut self, root: MessageId) {
        if let Some((expires_ms, answer)) = self.kept.remove(&root) {
            self.by_expiry.remove(&(expires_ms, root));
            self.bytes -= size(&answer);
        }
    }
}

fn size(answer: &Answer) -> usize {
    let body = match &answer.outcome {
        Outcome::Output { body, .. } => body.len(),
        Outcome::Failed(failure) => failure.detail.len(),
    };
    // The map's entries and the attributes, roughly.
    body + 512
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(root: u128, bytes: usize) -> Arc<Answer> {
        let outcome = Outcome::Output {
            content_type: "".into(),
            body: vec![0; bytes],
        };
        let attributes = Arc::default();
        Arc::new(Answer {
            root: MessageId(root),
            outcome,
            attributes,
            traceparent: Arc::default(),
            trace: None,
        })
    }

    #[test]
    fn an_answer_expires_and_is_remembered_as_ended() {
        let mut results = Results::default();
        results.keep(answer(1, 10), 100);
        results.expire(99);
        assert!(results.find(MessageId(1)).is_some());
        results.expire(100);
        assert!(results.find(MessageId(1)).is_none());
        assert!(results.has_ended(MessageId(1)));
        assert_eq!(results.bytes, 0);
    }

    #[test]
    fn the_first_to_expire_makes_room() {
        let mut results = Results::default();
        results.keep(answer(1, KEPT_BYTES_MAX / 2), 200);
        results.keep(answer(2, KEPT_BYTES_MAX / 4), 100);
        results.keep(answer(3, KEPT_BYTES_MAX / 2), 300);
        assert!(results.find(MessageId(2)).is_none());
        assert_eq!(results.len(), 1);
    }

    #[test]
    fn only_so_many_ended_requests_are_remembered() {
        let mut results = Results::default();
        for root in 0..=RECENT_MAX as u128 {
            results.remember(MessageId(root + 1));
        }
        assert!(!results.has_ended(MessageId(1)));
        assert!(results.has_ended(MessageId(2)));
    }
}

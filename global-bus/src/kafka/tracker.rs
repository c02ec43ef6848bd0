//! Which messages are not finished, per application, so that the marks are known.

use std::collections::HashMap;

use super::sender::Sent;
use crate::bus::Mark;
use crate::fold::Fold;

/// The trackers of all applications.
#[derive(Default)]
pub(super) struct Trackers(HashMap<Box<str>, Tracker>);

/// What is known of one application's topics.
pub(super) struct Tracker {
    pub(super) fold: Fold<()>,
    /// For each topic partition (by grain): all records below this offset have been folded. What
    /// others write is not seen here, so a gap holds the mark until the next replay.
    pub(super) seen: HashMap<(Box<str>, u32), u64>,
}

impl Tracker {
    pub(super) fn new() -> Tracker {
        Tracker {
            fold: Fold::new(),
            seen: HashMap::new(),
        }
    }
}

impl Trackers {
    /// A record was acknowledged. They come in order for each topic partition.
    pub(super) fn delivered(&mut self, sent: &Sent, offset: u64) {
        if !self.0.contains_key(&*sent.app) {
            self.0.insert((*sent.app).into(), Tracker::new());
        }
        let tracker = self.0.get_mut(&*sent.app).expect("just made");
        tracker.fold.apply(&sent.head(), offset, (), |()| {});
        let key = ((*sent.grain).into(), sent.partition);
        let seen = tracker.seen.entry(key).or_default();
        if *seen == offset {
            *seen += 1;
        }
    }

    /// A replay has read everything of `app`.
    pub(super) fn replace(&mut self, app: &str, tracker: Tracker) {
        self.0.insert(app.into(), tracker);
    }

    pub(super) fn marks(&self, app: &str) -> Vec<Mark> {
        let Some(tracker) = self.0.get(app) else {
            return Vec::new();
        };
        let mut marks = tracker.fold.marks(app);
        for mark in &mut marks {
            let key = ((*mark.grain).into(), mark.partition);
            mark.position = mark
                .position
                .min(tracker.seen.get(&key).copied().unwrap_or(0));
        }
        marks
    }

    /// The names of all applications.
    pub(super) fn apps(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(|app| &**app)
    }
}

//! Folding a log by message id: the newest record of an id is what counts.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::bus::Mark;
use crate::codec::Head;
use crate::record::RESULTS;

/// The messages that are not finished and the answers that have not expired, each with the
/// `location` of its newest record.
#[derive(Debug)]
pub(crate) struct Fold<L> {
    /// Application, then grain, to the index in `topics`.
    names: HashMap<Box<str>, HashMap<Box<str>, usize>>,
    topics: Vec<Topic>,
    /// By topic and id: an answer carries its root's id, so the id alone is not unique.
    live: HashMap<(usize, u128), Live<L>>,
}

#[derive(Debug)]
struct Topic {
    app: Arc<str>,
    grain: Arc<str>,
    partitions: HashMap<u32, Partition>,
}

#[derive(Debug, Default)]
struct Partition {
    /// The newest owner that wrote here.
    epoch: u64,
    /// The position behind the last record.
    end: u64,
    /// Records dropped since an older owner wrote them.
    fenced: u64,
}

/// One message that is not finished.
#[derive(Debug)]
pub(crate) struct Live<L> {
    pub(crate) partition: u32,
    pub(crate) position: u64,
    pub(crate) is_result: bool,
    pub(crate) deadline_unix_ms: u64,
    pub(crate) location: L,
}

impl<L> Fold<L> {
    pub(crate) fn new() -> Fold<L> {
        Fold {
            names: HashMap::new(),
            topics: Vec::new(),
            live: HashMap::new(),
        }
    }

    /// Takes the next record of a topic partition, in the log's order. `true` if it is now the
    /// newest of an unfinished message; `displaced` gets the location that no longer counts.
    pub(crate) fn apply(
        &mut self,
        head: &Head<'_>,
        position: u64,
        location: L,
        displaced: impl FnOnce(L),
    ) -> bool {
        let topic = self.topic(head.app, head.grain);
        let partition = self.topics[topic]
            .partitions
            .entry(head.partition)
            .or_default();
        partition.end = position + 1;
        if head.epoch != 0 && head.epoch < partition.epoch {
            partition.fenced += 1;
            return false;
        }
        partition.epoch = partition.epoch.max(head.epoch);
        let entry = self.live.entry((topic, head.id.0));
        if head.finished {
            if let Entry::Occupied(entry) = entry {
                displaced(entry.remove().location);
            }
            return false;
        }
        let live = Live {
            partition: head.partition,
            position,
            is_result: head.grain == RESULTS,
            deadline_unix_ms: head.deadline_unix_ms,
            location,
        };
        match entry {
            Entry::Occupied(mut entry) => displaced(entry.insert(live).location),
            Entry::Vacant(entry) => {
                entry.insert(live);
            }
        }
        true
    }

    /// Forgets the answers whose time is over.
    pub(crate) fn expire(&mut self, now_unix_ms: u64, mut displaced: impl FnMut(&L)) {
        self.live.retain(|_, live| {
            let keep = !live.has_expired(now_unix_ms);
            if !keep {
                displaced(&live.location);
            }
            keep
        });
    }

    /// What a replay of `app` hands out, in the order of its records.
    pub(crate) fn unfinished(&self, app: &str, now_unix_ms: u64) -> Vec<&Live<L>> {
        let mut found: Vec<_> = self
            .live
            .iter()
            .filter(|((topic, _), live)| {
                &*self.topics[*topic].app == app && !live.has_expired(now_unix_ms)
            })
            .map(|(_, live)| live)
            .collect();
        found.sort_unstable_by_key(|live| live.position);
        found
    }

    /// Records of `app` that were dropped because a newer owner had written before them.
    pub(crate) fn fenced(&self, app: &str) -> u64 {
        self.topics_of(app)
            .flat_map(|(_, topic)| topic.partitions.values())
            .map(|partition| partition.fenced)
            .sum()
    }

    /// Where the finished prefix of each topic partition of `app` ends.
    pub(crate) fn marks(&self, app: &str) -> Vec<Mark> {
        let mut marks: HashMap<(usize, u32), Mark> = HashMap::new();
        for (index, topic) in self.topics_of(app) {
            for (&partition, state) in &topic.partitions {
                let mark = Mark {
                    grain: Arc::clone(&topic.grain),
                    partition,
                    position: state.end,
                    unfinished: 0,
                };
                marks.insert((index, partition), mark);
            }
        }
        for ((topic, _), live) in &self.live {
            if let Some(mark) = marks.get_mut(&(*topic, live.partition)) {
                mark.position = mark.position.min(live.position);
                mark.unfinished += 1;
            }
        }
        let mut marks: Vec<Mark> = marks.into_values().collect();
        marks.sort_unstable_by(|a, b| (&a.grain, a.partition).cmp(&(&b.grain, b.partition)));
        marks
    }

    /// How many messages are not finished, of all applications.
    pub(crate) fn live_count(&self) -> usize {
        self.live.len()
    }

    fn topics_of(&self, app: &str) -> impl Iterator<Item = (usize, &Topic)> {
        let indices = self.names.get(app).into_iter().flat_map(HashMap::values);
        indices.map(|&index| (index, &self.topics[index]))
    }

    fn topic(&mut self, app: &str, grain: &str) -> usize {
        if let Some(&index) = self.names.get(app).and_then(|grains| grains.get(grain)) {
            return index;
        }
        let index = self.topics.len();
        self.topics.push(Topic {
            app: app.into(),
            grain: grain.into(),
            partitions: HashMap::new(),
        });
        self.names
            .entry(app.into())
            .or_default()
            .insert(grain.into(), index);
        index
    }
}

impl<L> Live<L> {
    /// Only answers expire: a message whose deadline is over must still be finished by its owner.
    pub(crate) fn has_expired(&self, now_unix_ms: u64) -> bool {
        self.is_result && self.deadline_unix_ms != 0 && self.deadline_unix_ms <= now_unix_ms
    }
}

/// The Unix clock in milliseconds.
pub(crate) fn now_unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use sandpipe_abi::MessageId;

    use super::*;

    fn head(id: u128, finished: bool, epoch: u64) -> Head<'static> {
        Head {
            id: MessageId(id),
            app: "app",
            grain: "grain",
            partition: 0,
            finished,
            deadline_unix_ms: 0,
            epoch,
        }
    }

    fn apply(fold: &mut Fold<u64>, position: u64, head: Head<'_>) -> (bool, Option<u64>) {
        let mut displaced = None;
        let live = fold.apply(&head, position, position, |location| {
            displaced = Some(location)
        });
        (live, displaced)
    }

    #[test]
    fn the_newest_record_of_an_id_counts_and_a_tombstone_ends_it() {
        let mut fold = Fold::new();
        assert_eq!(apply(&mut fold, 0, head(1, false, 0)), (true, None));
        assert_eq!(apply(&mut fold, 1, head(2, false, 0)), (true, None));
        assert_eq!(apply(&mut fold, 2, head(1, false, 0)), (true, Some(0)));
        assert_eq!(apply(&mut fold, 3, head(2, true, 0)), (false, Some(1)));
        let positions: Vec<u64> = fold
            .unfinished("app", 0)
            .iter()
            .map(|l| l.position)
            .collect();
        assert_eq!(positions, [2]);
        assert_eq!(fold.marks("app")[0].position, 2);
        assert_eq!(fold.marks("app")[0].unfinished, 1);
        apply(&mut fold, 4, head(1, true, 0));
        assert_eq!(fold.marks("app")[0].position, 5);
        assert!(fold.marks("other").is_empty());
    }

    #[test]
    fn a_record_of_an_older_owner_is_dropped_but_a_front_doors_never() {
        let mut fold = Fold::new();
        apply(&mut fold, 0, head(1, false, 4));
        apply(&mut fold, 1, head(2, false, 5));
        assert_eq!(apply(&mut fold, 2, head(1, true, 4)), (false, None));
        assert_eq!(fold.fenced("app"), 1);
        assert_eq!(apply(&mut fold, 3, head(3, false, 0)), (true, None));
        assert_eq!(fold.live_count(), 3);
    }

    #[test]
    fn an_answer_expires_and_a_message_does_not() {
        let mut fold = Fold::new();
        let late = Head {
            deadline_unix_ms: 10,
            ..head(1, false, 0)
        };
        apply(&mut fold, 0, late);
        apply(
            &mut fold,
            1,
            Head {
                grain: RESULTS,
                ..late
            },
        );
        assert_eq!(fold.unfinished("app", 9).len(), 2);
        assert_eq!(fold.unfinished("app", 10).len(), 1);
        let mut gone = Vec::new();
        fold.expire(10, |&location| gone.push(location));
        assert_eq!(gone, [1]);
        assert_eq!(fold.live_count(), 1);
    }
}

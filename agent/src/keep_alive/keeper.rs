//! One worker under a policy: from what is seen of it, now and then, to what is to be done.

use std::time::Instant;

use super::KeepAlive;

/// What is seen of a worker at one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// How many events it has taken so far.
    pub received: u64,
    /// An event waits for it or is in its hands.
    pub busy: bool,
    /// It is loaded; else it is unloaded. A worker that is on its way from one to the other is not
    /// looked at.
    pub loaded: bool,
}

/// What is to be done about a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Start it: its next event is near.
    Load,
    /// End it: it is not worth its memory.
    Unload,
}

/// Applies a policy to one worker. Pure: the caller looks and tells the time.
#[derive(Debug)]
pub struct Keeper {
    policy: Box<dyn KeepAlive>,
    received: Option<u64>,
    /// Since when it has been idle; `None` while it is busy.
    idle_since: Option<Instant>,
    /// That idle time began with the end of an event, not with the first look.
    follows_event: bool,
}

impl Keeper {
    /// Of a worker that has not been looked at.
    #[must_use]
    pub fn new(policy: Box<dyn KeepAlive>) -> Keeper {
        Keeper {
            policy,
            received: None,
            idle_since: None,
            follows_event: false,
        }
    }

    /// What to do after this look.
    pub fn look(&mut self, now: Instant, seen: Seen) -> Option<Order> {
        let before = self.received.replace(seen.received);
        let has_taken = before.is_some_and(|before| before != seen.received);
        if has_taken || seen.busy {
            let since = self.idle_since.take();
            if let (Some(since), true) = (since, self.follows_event) {
                self.policy.note_idle(now.saturating_duration_since(since));
            }
            self.follows_event = true;
        }
        if seen.busy {
            return None;
        }
        let since = *self.idle_since.get_or_insert(now);
        let idle = now.saturating_duration_since(since);
        match (seen.loaded, self.policy.plan().is_loaded_after(idle)) {
            (true, false) => Some(Order::Unload),
            // Who unloaded it before the first look had its reasons.
            (false, true) if self.follows_event => Some(Order::Load),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::keep_alive::{Fixed, Hybrid, Never};

    const MINUTE: Duration = Duration::from_secs(60);

    fn seen(received: u64, busy: bool, loaded: bool) -> Seen {
        Seen {
            received,
            busy,
            loaded,
        }
    }

    #[test]
    fn a_worker_is_unloaded_once_it_was_idle_for_its_time_and_not_while_it_is_busy() {
        let start = Instant::now();
        let mut keeper = Keeper::new(Box::new(Fixed { idle: MINUTE }));
        assert_eq!(keeper.look(start, seen(0, false, true)), None);
        assert_eq!(keeper.look(start + MINUTE, seen(0, false, true)), None);
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(keeper.look(at(61), seen(0, true, true)), None);
        assert_eq!(keeper.look(at(200), seen(1, true, true)), None, "busy");
        assert_eq!(keeper.look(at(201), seen(1, false, true)), None);
        // One that came and went between two looks.
        assert_eq!(keeper.look(at(250), seen(2, false, true)), None);
        assert_eq!(keeper.look(at(310), seen(2, false, true)), None);
        let unload = Some(Order::Unload);
        assert_eq!(keeper.look(at(311), seen(2, false, true)), unload);
        assert_eq!(keeper.look(at(312), seen(2, false, false)), None);
    }

    #[test]
    fn one_that_is_never_stopped_is_not_and_what_is_found_unloaded_stays_so() {
        let start = Instant::now();
        let mut keeper = Keeper::new(Box::new(Never));
        assert_eq!(keeper.look(start, seen(0, false, true)), None);
        let later = start + 1_000_000 * MINUTE;
        assert_eq!(keeper.look(later, seen(0, false, true)), None);
        let mut keeper = Keeper::new(Box::new(Fixed { idle: MINUTE }));
        assert_eq!(keeper.look(start, seen(7, false, false)), None);
    }

    #[test]
    fn the_hybrid_unloads_a_regular_worker_at_once_and_loads_it_before_its_next_event() {
        let start = Instant::now();
        let mut keeper = Keeper::new(Box::<Hybrid>::default());
        // An event each 10.5 minutes; the time before the first one is no idle time.
        let event = |n: u32| start + Duration::from_secs(630) * n;
        assert_eq!(keeper.look(start, seen(0, false, true)), None);
        for n in 1..=10 {
            assert_eq!(keeper.look(event(n), seen(n.into(), false, true)), None);
        }
        let last = event(11);
        let unload = Some(Order::Unload);
        assert_eq!(keeper.look(last, seen(11, false, true)), unload);
        assert_eq!(
            keeper.look(last + 8 * MINUTE, seen(11, false, false)),
            None,
            "9 min are 9/10 of the head"
        );
        let load = Some(Order::Load);
        assert_eq!(keeper.look(last + 9 * MINUTE, seen(11, false, false)), load);
        assert_eq!(keeper.look(last + 10 * MINUTE, seen(11, false, true)), None);
        assert_eq!(
            keeper.look(last + 13 * MINUTE, seen(11, false, true)),
            unload
        );
    }
}

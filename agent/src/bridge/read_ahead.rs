//! Messages that were read and are not given back yet. A lane gives its slots back in order, so
//! what is released early waits for those before it in the same lane.

use std::collections::VecDeque;

/// What is read ahead of what is acknowledged.
#[derive(Debug)]
pub(super) struct ReadAhead {
    /// One queue a lane, in the lane's order.
    lanes: Vec<VecDeque<Kept>>,
    /// Which lane a number was read from; the first entry is that of `first_number`.
    lane_of: VecDeque<usize>,
    first_number: u64,
}

#[derive(Debug)]
struct Kept {
    number: u64,
    position: u64,
    released: bool,
}

impl ReadAhead {
    pub(super) fn new(lanes: usize) -> ReadAhead {
        ReadAhead {
            lanes: (0..lanes).map(|_| VecDeque::new()).collect(),
            lane_of: VecDeque::new(),
            first_number: 1,
        }
    }

    /// A message was read; its number. Numbers ascend by one.
    pub(super) fn keep(&mut self, lane: usize, position: u64) -> u64 {
        let number = self.first_number + self.lane_of.len() as u64;
        self.lane_of.push_back(lane);
        self.lanes[lane].push_back(Kept {
            number,
            position,
            released: false,
        });
        number
    }

    /// A message is not needed any longer. Returns the lane and the position up to which it can be
    /// acknowledged now, if that has moved.
    pub(super) fn release(&mut self, number: u64) -> Option<(usize, u64)> {
        let index = usize::try_from(number.checked_sub(self.first_number)?).ok()?;
        let lane = *self.lane_of.get(index)?;
        let queue = &mut self.lanes[lane];
        let found = queue
            .binary_search_by_key(&number, |kept| kept.number)
            .ok()?;
        queue[found].released = true;
        let mut last = None;
        while queue.front().is_some_and(|kept| kept.released) {
            last = queue.pop_front();
        }
        self.forget_numbers();
        last.map(|kept| (lane, kept.position))
    }

    /// Numbers in front that no lane keeps any longer.
    fn forget_numbers(&mut self) {
        while let Some(&lane) = self.lane_of.front() {
            let oldest = self.lanes[lane].front();
            if oldest.is_some_and(|kept| kept.number <= self.first_number) {
                break;
            }
            self.lane_of.pop_front();
            self.first_number += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_is_acknowledged_in_order_and_no_lane_waits_for_another() {
        let mut ahead = ReadAhead::new(2);
        let numbers: Vec<u64> = [(0, 70), (1, 5), (0, 71), (0, 72), (1, 6)]
            .into_iter()
            .map(|(lane, position)| ahead.keep(lane, position))
            .collect();
        assert_eq!(numbers, [1, 2, 3, 4, 5]);
        assert_eq!(ahead.release(3), None, "70 is still needed");
        assert_eq!(ahead.release(2), Some((1, 5)));
        assert_eq!(ahead.release(1), Some((0, 71)));
        assert_eq!(ahead.release(4), Some((0, 72)));
        assert_eq!(ahead.release(5), Some((1, 6)));
        assert!(ahead.lane_of.is_empty());
        assert_eq!(ahead.keep(0, 73), 6);
    }

    #[test]
    fn a_number_that_is_unknown_or_was_released_changes_nothing() {
        let mut ahead = ReadAhead::new(1);
        let number = ahead.keep(0, 0);
        assert_eq!(ahead.release(number + 1), None);
        assert_eq!(ahead.release(0), None);
        assert_eq!(ahead.release(number), Some((0, 0)));
        assert_eq!(ahead.release(number), None);
    }
}

//! How a worker makes its instances: which slot and which place they get, and when.

use std::time::Instant;

use sandpipe::{Delivery, PARK_MAX, SlotIndex, monotonic_ns};

use super::{Child, Worker};
use crate::board::SlotUse;
use crate::config::Mode;
use crate::instance::{Forked, Seat, log, log_refusal};
use crate::process::Fork;
use crate::runtime::Runtime;
use crate::seats;

impl<R: Runtime> Worker<R> {
    pub(super) fn on_demand(&self) -> bool {
        self.config.mode == Mode::Fork && self.config.spares == 0
    }

    pub(super) fn make_instances(&mut self) {
        if self.not_before.is_some_and(|then| Instant::now() < then) {
            return;
        }
        self.not_before = None;
        if let Some((slot, delivery)) = self.held.take() {
            self.fork(Seat::new(&self.bus, slot), Some(delivery));
        }
        if self.on_demand() {
            while self.not_before.is_none()
                && let Some(mut seat) = self.take_seat()
            {
                if !self.take_place(&seat) {
                    self.ready = Some(seat);
                    return;
                }
                let claimed = seat.claimer.claim(monotonic_ns);
                if let Some(refusal) = seat.claimer.take_refusal() {
                    log_refusal(&self.config, &refusal);
                }
                let Some(delivery) = claimed else {
                    self.seats.give_back();
                    self.ready = Some(seat);
                    return;
                };
                self.fork(seat, Some(delivery));
            }
            return;
        }
        while self.not_before.is_none() && self.wants_more() {
            let Some(seat) = self.take_seat() else { return };
            if !self.take_place(&seat) {
                return;
            }
            self.fork(seat, None);
        }
    }

    /// Whether fewer instances wait for events than should.
    pub(super) fn wants_more(&self) -> bool {
        match self.config.mode {
            Mode::Pool => self.children.iter().flatten().count() < self.config.concurrency.into(),
            Mode::Fork => self.board.count(SlotUse::Idle) < self.config.spares.into(),
        }
    }

    /// Takes a place for an instance in `seat`. Under a limit of all grains together an instance
    /// beside the first is made when an event waits for it; who is refused tries again soon.
    fn take_place(&mut self, seat: &Seat) -> bool {
        if !self.seats.are_limited() {
            return true;
        }
        let alone = self.children.iter().all(Option::is_none) && self.held.is_none();
        let awaited = alone || seat.claimer.has_due_message(monotonic_ns);
        if awaited && self.seats.take() {
            return true;
        }
        if awaited {
            self.not_before = Some(Instant::now() + seats::RETRY);
        } else if !self.on_demand() {
            // Its instances hear the bell; it looks as often as they do. On demand it hears it.
            self.not_before = Some(Instant::now() + PARK_MAX);
        }
        false
    }

    /// The next free slot, made ready.
    pub(super) fn take_seat(&mut self) -> Option<Seat> {
        self.ready.take().or_else(|| {
            let held = self.held.map(|(slot, _)| slot);
            let mut slots = (1..self.config.slots()).map(SlotIndex);
            let free = slots
                .find(|&slot| self.children[usize::from(slot.0)].is_none() && Some(slot) != held)?;
            Some(Seat::new(&self.bus, free))
        })
    }

    fn fork(&mut self, seat: Seat, handed: Option<Delivery>) {
        let slot = seat.slot;
        let what = handed.map_or(SlotUse::Idle, |_| SlotUse::Busy);
        self.board.set_use(slot, what);
        self.runtime.before_fork();
        match self.runtime.fork() {
            Ok(Fork::Child) => {
                // The worker's line to the guardian is not the instance's, nor what it watches.
                self.participant = None;
                self.watch.close();
                self.seats.close();
                let forked = Forked {
                    config: &self.config,
                    bus: &self.bus,
                    board: &self.board,
                    runtime: &mut self.runtime,
                    seat,
                    times: self.times,
                    parent: self.pid,
                };
                forked.run(handed)
            }
            Ok(Fork::Parent(pid)) => {
                // The child has better things to do.
                self.bus.hold_slot(slot, pid.cast_unsigned());
                self.children[usize::from(slot.0)] = Some(Child {
                    pid,
                    over_time: false,
                    watched: self.watch.child(slot, pid),
                });
            }
            Err(error) => {
                log(
                    &self.config,
                    format_args!("cannot fork: {error}; trying again"),
                );
                self.held = handed.map(|delivery| (slot, delivery));
                if handed.is_none() {
                    self.seats.give_back();
                    self.free(slot);
                }
                self.pause();
            }
        }
    }
}

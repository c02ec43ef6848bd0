//! The life of one grain instance, from its fork to its end.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

use sandpipe::attach::STARTED_VARIABLE;
use sandpipe::{
    Bus, Claimer, Delivery, FailureCode, Instance, Lease, Mapping, PARK_MAX, PayloadError, Refusal,
    SlotIndex, TraceStamps, monotonic_ns,
};

use crate::board::{Board, Reason, SlotUse};
use crate::config::{Mode, WorkerConfig};
use crate::event::{Context, Event, HandlerError};
use crate::process;
use crate::publish::{Outcome, Stale, publish, rehearse};
use crate::runtime::Runtime;

/// Exit code of an instance whose view of a peer was too old to read its event or to publish: the
/// event is delivered again, to one with a newer view, and this is not counted as an attempt.
pub(crate) const EXIT_STALE: i32 = 75;

/// Exit code of an instance in which Sandpipe itself panicked.
const EXIT_PANIC: i32 = 101;

/// Looks at the lanes before a sleep: one before it is announced, one after.
pub(crate) const LOOKS: u64 = 2;

/// The two sides of an instance slot.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) slot: SlotIndex,
    pub(crate) claimer: Claimer<Mapping>,
    instance: Instance<Mapping>,
}

impl Seat {
    /// Takes a slot that nobody holds. Allocates; touches the slot's words.
    pub(crate) fn new(bus: &Bus<Mapping>, slot: SlotIndex) -> Seat {
        Seat {
            slot,
            claimer: bus.claimer(slot),
            instance: bus.instance(slot),
        }
    }

    /// Touches what handling an event will touch.
    pub(crate) fn rehearse(&mut self, config: &WorkerConfig) {
        rehearse(config, &mut self.instance);
        self.claimer.finish();
    }
}

/// When a worker was started and had loaded its handler: nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LoadTimes {
    /// 0 = whoever started it did not say.
    pub(crate) started_ns: u64,
    pub(crate) loaded_ns: u64,
}

impl LoadTimes {
    /// Of a worker that has just loaded its handler.
    pub(crate) fn now() -> LoadTimes {
        let started = std::env::var(STARTED_VARIABLE);
        LoadTimes {
            started_ns: started.map_or(0, |ns| ns.parse().unwrap_or(0)),
            loaded_ns: monotonic_ns(),
        }
    }
}

/// What a forked instance has: everything is its own copy, only the segments are shared.
pub(crate) struct Forked<'w, R> {
    pub(crate) config: &'w WorkerConfig,
    pub(crate) bus: &'w Bus<Mapping>,
    pub(crate) board: &'w Board,
    pub(crate) runtime: &'w mut R,
    pub(crate) seat: Seat,
    pub(crate) times: LoadTimes,
    /// Process id of the worker.
    pub(crate) parent: u32,
}

impl<R: Runtime> Forked<'_, R> {
    /// Runs the instance and ends the process. `handed` is the event that the worker claimed for
    /// it; without one it waits for its own.
    pub(crate) fn run(mut self, handed: Option<Delivery>) -> ! {
        // A panic must not unwind into the worker's loop: this is a copy of the worker.
        let code = catch_unwind(AssertUnwindSafe(|| {
            self.start(handed.is_some());
            let code = match handed {
                Some(delivery) => self.handle(&delivery).map_or_else(|code| code, |_| 0),
                None => self.serve(),
            };
            self.runtime.before_exit();
            code
        }));
        process::exit_now(code.unwrap_or(EXIT_PANIC))
    }

    /// What stands between the fork and the first line of a handler is kept short.
    fn start(&mut self, has_event: bool) {
        process::bind_to_parent(self.parent);
        process::forget_terminate();
        // A grandchild that outlives its instance must not write into a slot leased again, nor
        // commit what its parent commits.
        if let Some(own) = self.bus.segment(self.bus.family()) {
            own.do_not_fork();
        }
        if has_event {
            self.bus.touch_slot(self.seat.slot);
        } else {
            // An idle holder is watched by its lease; of one that is born with its event the
            // worker learns by waitid, soon enough.
            let _ = Lease::hold(self.bus, self.seat.slot);
        }
        self.runtime.after_fork();
    }

    /// Waits for events: one for a spare, many in a pool.
    fn serve(&mut self) -> i32 {
        let slot = self.seat.slot;
        self.seat.rehearse(self.config);
        self.runtime.warm();
        let bell = self.bus.bell(self.bus.family());
        let tally = self.bus.tally(slot);
        loop {
            if self.retires() {
                self.board.set_use(slot, SlotUse::Leaving);
                return 0;
            }
            if self.seat.claimer.has_due_message(monotonic_ns) && self.board.enter(slot) {
                match self.claim_and_handle() {
                    Ok(true) => {}
                    Ok(false) => return 0,
                    Err(code) => return code,
                }
                continue;
            }
            let parking = bell.prepare();
            let due = self.seat.claimer.has_due_message(monotonic_ns) && self.board.has_room();
            if due || self.retires() {
                parking.cancel();
            } else {
                // It waits for its bell alone: one futex call is the shortest way.
                tally.sleep(parking, LOOKS, PARK_MAX);
            }
        }
    }

    /// Whether an idle instance should make place: the worker ends, or has newer mappings.
    fn retires(&self) -> bool {
        self.board.is_draining() || self.bus.is_stale()
    }

    /// In a busy slot: takes an event if there still is one; true if the instance goes on.
    fn claim_and_handle(&mut self) -> Result<bool, i32> {
        let slot = self.seat.slot;
        let claimed = self.seat.claimer.claim(monotonic_ns);
        if let Some(refusal) = self.seat.claimer.take_refusal() {
            log_refusal(self.config, &refusal);
        }
        let Some(delivery) = claimed else {
            self.board.set_use(slot, SlotUse::Idle);
            return Ok(true);
        };
        let spare = self.config.mode == Mode::Fork;
        if spare && self.board.count(SlotUse::Idle) == 0 {
            self.board.nudge(); // the worker forks the next spares meanwhile
        }
        let sound = self.handle(&delivery)?;
        let goes_on = !spare && sound;
        let next = if goes_on {
            SlotUse::Idle
        } else {
            SlotUse::Leaving
        };
        self.board.set_use(slot, next);
        if spare {
            self.hand_on();
        }
        Ok(goes_on)
    }

    /// A spare that found `concurrency` others busy sleeps although there are messages.
    fn hand_on(&self) {
        if self.seat.claimer.has_due_message(monotonic_ns) {
            self.bus.bell(self.bus.family()).ring_all();
        }
    }

    /// Handles one event and commits its outcome; false if the process should not handle more.
    fn handle(&mut self, delivery: &Delivery) -> Result<bool, i32> {
        let (board, slot) = (self.board, self.seat.slot);
        board.note(slot, delivery);
        let mut stamps = TraceStamps {
            taken_ns: self.bus.slot_started_ns(slot),
            attempt: u64::from(delivery.attempt),
            worker_started_ns: self.times.started_ns,
            worker_loaded_ns: self.times.loaded_ns,
            ..TraceStamps::default()
        };
        let (outcome, sound) = if delivery.attempt > self.config.max_attempts {
            (self.give_up(delivery), true)
        } else {
            self.call(delivery, &mut stamps)?
        };
        let seat = &mut self.seat;
        let instance = &mut seat.instance;
        let bus = self.bus;
        if let Err(Stale) = publish(self.config, bus, board, instance, delivery, outcome, stamps) {
            seat.claimer.hand_back(delivery);
            return Err(EXIT_STALE);
        }
        seat.claimer.finish();
        // Whoever was woken may wait for this core; looking for more, or ending, can wait for it.
        rustix::thread::sched_yield();
        Ok(sound)
    }

    /// Runs the handler.
    fn call(
        &mut self,
        delivery: &Delivery,
        stamps: &mut TraceStamps,
    ) -> Result<(Outcome, bool), i32> {
        let event = match Event::new(self.bus, delivery) {
            Ok(event) => event,
            Err(PayloadError::Outdated(_)) => {
                self.seat.claimer.hand_back(delivery);
                return Err(EXIT_STALE);
            }
            Err(error) => {
                let failed = Outcome::Failed(FailureCode::Other, error.to_string());
                return Ok((failed, true));
            }
        };
        let mut context = Context {
            config: self.config,
            event: event.id(),
        };
        stamps.started_ns = monotonic_ns();
        let runtime = &mut *self.runtime;
        let result = catch_unwind(AssertUnwindSafe(|| runtime.handle(&event, &mut context)));
        stamps.ended_ns = monotonic_ns();
        match result {
            Ok(result) => Ok((result.into(), true)),
            // What the handler left half done in memory must not meet the next event.
            Err(payload) => {
                let error = HandlerError::panicked(&*payload);
                Ok((Err(error).into(), false))
            }
        }
    }

    /// The event has been tried as often as it may.
    fn give_up(&self, delivery: &Delivery) -> Outcome {
        let tried = delivery.attempt - 1;
        let reason = self.board.reason(delivery.message.header.id);
        let code = match reason {
            Some(Reason::TimeLimit) => FailureCode::Timeout,
            _ => FailureCode::Crashed,
        };
        let grain = &self.config.grain;
        let why = match reason {
            Some(Reason::TimeLimit) => {
                format!(
                    "it passed its time limit of {} ms",
                    self.config.time_limit_ms
                )
            }
            Some(reason) => reason.to_string(),
            None => "it ended without an answer".to_string(),
        };
        let text =
            format!("grain {grain}: an instance died at each of {tried} attempts; last: {why}");
        match self.bus.payload(delivery) {
            Ok(event) => Outcome::Dead(code, text, event),
            Err(_) => Outcome::Failed(code, text),
        }
    }
}

/// Says whom this process does not read any more.
pub(crate) fn log_refusal(config: &WorkerConfig, refusal: &Refusal) {
    let (family, violation) = (refusal.family.0, &refusal.violation);
    log(
        config,
        format_args!("family {family} is not read any more: it wrote {violation}"),
    );
}

/// Prints a line of the worker's own; a closed stderr is no reason to end.
pub(crate) fn log(config: &WorkerConfig, line: std::fmt::Arguments<'_>) {
    let _ = writeln!(
        std::io::stderr(),
        "sandpipe: grain {}: {line}",
        config.grain
    );
}

//! The grain worker: loads the grain's code once, then makes, watches and replaces instances.
//!
//! One thread, which waits for its queue, its children, its line to the guardian and its clock at
//! once ([`Watch`]). SIGTERM moves the word that the thread sleeps on, so that nothing that arrives
//! between its last look and its sleep is missed.

mod instances;

use std::io;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use sandpipe::attach::AttachError;
use sandpipe::recover::{Repair, recover_slot_later};
use sandpipe::wait::Watched;
use sandpipe::{Bus, Delivery, Mapping, PARK_MAX, Participant, SlotIndex, Tally, monotonic_ns};

use crate::board::{Board, Reason, SlotUse};
use crate::config::WorkerConfig;
use crate::instance::{EXIT_STALE, LoadTimes, Seat, log};
use crate::process::{self, Ended};
use crate::runtime::Runtime;
use crate::seats::Seats;
use crate::watch::Watch;

/// Pauses after an instance that died before it took an event, or a fork that failed.
const BACK_OFF_MIN: Duration = Duration::from_millis(1);
const BACK_OFF_MAX: Duration = Duration::from_secs(1);

/// A living instance, as its worker knows it.
#[derive(Clone, Copy, Debug)]
struct Child {
    pid: i32,
    over_time: bool,
    /// Its end is told; else it is looked for at each turn.
    watched: bool,
}

/// The worker of one grain, attached.
pub(crate) struct Worker<R> {
    config: WorkerConfig,
    participant: Option<Participant>,
    bus: Bus<Mapping>,
    /// Of the worker's own slot.
    tally: Tally<Mapping>,
    watch: Watch,
    board: Board,
    seats: Seats,
    runtime: R,
    times: LoadTimes,
    pid: u32,
    /// By slot; slot 0 is the worker's own.
    children: Vec<Option<Child>>,
    /// On demand: the slot of the next instance, made ready before its event comes.
    ready: Option<Seat>,
    /// An event whose instance could not be forked yet.
    held: Option<(SlotIndex, Delivery)>,
    draining: bool,
    back_off: Duration,
    not_before: Option<Instant>,
}

impl<R: Runtime> Worker<R> {
    /// Installs the signal handler: once in a process. The thread that calls it is the one that
    /// serves.
    ///
    /// # Errors
    /// The system's; a waiter that is forced and refused.
    pub(crate) fn new(
        config: WorkerConfig,
        participant: Participant,
        bus: Bus<Mapping>,
        runtime: R,
    ) -> io::Result<Worker<R>> {
        let board = Board::new(config.slots(), config.concurrency)?;
        process::catch_terminate(bus.bell(bus.family()), board.page().clone());
        Ok(Worker {
            seats: Seats::open(config.family, config.shared_instances)?,
            watch: Watch::open(participant.as_fd())?,
            participant: Some(participant),
            tally: bus.tally(SlotIndex(0)),
            times: LoadTimes::default(),
            pid: std::process::id(),
            children: vec![None; usize::from(config.slots())],
            ready: None,
            held: None,
            draining: false,
            back_off: BACK_OFF_MIN,
            not_before: None,
            config,
            bus,
            board,
            runtime,
        })
    }

    /// Loads the handler.
    ///
    /// # Errors
    /// The runtime's reason.
    pub(crate) fn load(&mut self) -> Result<(), String> {
        self.runtime.load()?;
        self.times = LoadTimes::now();
        Ok(())
    }

    /// Serves until SIGTERM or the guardian's end.
    pub(crate) fn serve(&mut self) -> ExitCode {
        // What the first instance would find cold, its worker has warmed for all.
        Seat::new(&self.bus, SlotIndex(0)).rehearse(&self.config);
        loop {
            // First of all: everything else can wait, an event cannot.
            if !self.draining {
                self.make_instances();
            }
            let arrived = self.watch.take_arrived();
            if arrived.line && self.update_peers().is_err() {
                return self.abandon();
            }
            if let Some(participant) = &mut self.participant
                && participant.ask_to_grow(&self.bus).is_err()
            {
                return self.abandon();
            }
            self.reap(&arrived.slots);
            if process::is_terminated() && !self.draining {
                self.draining = true;
                self.board.drain();
                self.bus.bell(self.bus.family()).ring_all();
            }
            let timeout = self.enforce_time_limit();
            if self.draining && self.children.iter().all(Option::is_none) {
                return ExitCode::SUCCESS;
            }
            self.park(timeout);
        }
    }

    /// Makes a slot free for the next instance: carries out what its holder had committed, and
    /// gives back what it had taken.
    fn free(&mut self, slot: SlotIndex) -> Repair {
        let back_off = self.config.back_off;
        let repair = recover_slot_later(&self.bus, slot, &|event, attempt| {
            // The last look, which gives the event up, waits for nothing.
            let last = attempt < 2 || attempt > self.config.max_attempts;
            let pause = back_off.before(attempt, event);
            if last || pause.is_zero() {
                return 0;
            }
            let pause_ns = u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX);
            monotonic_ns().saturating_add(pause_ns)
        });
        self.board.set_use(slot, SlotUse::Free);
        repair
    }

    fn pause(&mut self) {
        self.not_before = Some(Instant::now() + self.back_off);
        self.back_off = (self.back_off * 2).min(BACK_OFF_MAX);
    }

    /// Looks at the children of these slots, and at those that are not watched.
    fn reap(&mut self, slots: &[SlotIndex]) {
        for index in 1..self.children.len() {
            let slot = SlotIndex(index as u16);
            let Some(child) = self.children[index] else {
                continue;
            };
            if child.watched && !slots.contains(&slot) {
                continue;
            }
            let Some(ended) = process::ended(child.pid) else {
                continue;
            };
            process::reap(child.pid);
            self.children[index] = None;
            self.seats.give_back();
            self.bury(slot, child, ended);
        }
    }

    /// After the end of a slot's process.
    fn bury(&mut self, slot: SlotIndex, child: Child, ended: Ended) {
        let was = self.board.slot_use(slot);
        let reason = if child.over_time {
            Reason::TimeLimit
        } else {
            Reason::Ended(ended)
        };
        if was == SlotUse::Busy {
            self.board.keep_reason(slot, reason);
        }
        let repair = self.free(slot);
        let orderly = ended == Ended::Exited(0);
        if !orderly || repair != Repair::default() {
            // A wake that it took with it is given to another.
            self.bus.ring_after_recovery();
        }
        if repair.orphaned != 0 && ended != Ended::Exited(EXIT_STALE) {
            let pid = child.pid;
            log(
                &self.config,
                format_args!("instance {pid}: {reason}; its event is tried again"),
            );
        }
        if was == SlotUse::Idle && !orderly {
            self.pause();
        } else {
            self.back_off = BACK_OFF_MIN;
        }
    }

    /// Kills instances that are over their time limit; how long the next look may wait.
    fn enforce_time_limit(&mut self) -> Duration {
        let limit = self.config.time_limit();
        let mut wait = PARK_MAX;
        for index in 1..self.children.len() {
            let Some(child) = &mut self.children[index] else {
                continue;
            };
            let started = self.bus.slot_started_ns(SlotIndex(index as u16));
            if started == 0 || child.over_time {
                continue;
            }
            let spent = Duration::from_nanos(monotonic_ns().saturating_sub(started));
            if spent >= limit {
                child.over_time = true;
                process::kill(child.pid);
            } else {
                wait = wait.min(limit - spent);
            }
        }
        let back_off = self
            .not_before
            .map(|then| then.saturating_duration_since(Instant::now()));
        back_off.map_or(wait, |back_off| wait.min(back_off))
    }

    /// Maps peers that were made anew; idle instances retire, new ones have the new mappings.
    fn update_peers(&mut self) -> Result<(), AttachError> {
        let Some(participant) = &mut self.participant else {
            return Ok(());
        };
        if participant.update(&mut self.bus)? {
            self.bus.bump_attach_epoch();
            self.ready = None;
            self.bus.bell(self.bus.family()).ring_all();
        }
        Ok(())
    }

    /// The guardian is gone: nobody could repair what this family leaves, so it ends at once.
    fn abandon(&mut self) -> ExitCode {
        log(&self.config, format_args!("the sandbox has ended; ending"));
        for child in self.children.iter().flatten() {
            process::kill(child.pid);
            process::reap(child.pid);
        }
        ExitCode::FAILURE
    }

    fn park(&mut self, timeout: Duration) {
        if self.watch.is_lost() {
            self.watch_anew();
        }
        if self.on_demand() && !self.draining && self.not_before.is_none() {
            self.ready = self.take_seat();
            if let Some(seat) = &self.ready {
                process::watch_bell(true);
                let bell = self.bus.bell(self.bus.family());
                let parking = bell.prepare();
                if process::is_terminated() || seat.claimer.has_due_message(monotonic_ns) {
                    parking.cancel();
                } else {
                    self.watch.sleep(&self.tally, parking, timeout);
                }
                return process::watch_bell(false);
            }
        }
        let word = process::nudge_word(self.board.page());
        let seen = word.load(std::sync::atomic::Ordering::SeqCst) as u32;
        let more = !self.draining && self.not_before.is_none() && !self.on_demand();
        let free = self.children.iter().skip(1).any(Option::is_none);
        let told = process::is_terminated() && !self.draining;
        let busy = told || (more && free && self.wants_more());
        if !busy {
            self.watch.wait(&[Watched { word, seen }], timeout);
        }
    }

    /// After a wait that failed: whatever has ended meanwhile is told by the new waiter. If there
    /// is none, the worker looks for itself, every millisecond.
    fn watch_anew(&mut self) {
        if let Some(error) = self.watch.take_failure() {
            log(&self.config, format_args!("a wait failed: {error}"));
        }
        let Some(participant) = &self.participant else {
            return;
        };
        if let Ok(watch) = Watch::open(participant.as_fd()) {
            self.watch = watch;
        }
        for (slot, child) in (0..).map(SlotIndex).zip(&mut self.children) {
            if let Some(child) = child {
                child.watched = self.watch.child(slot, child.pid);
            }
        }
    }
}

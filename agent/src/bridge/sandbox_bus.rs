//! A [`LocalBus`] over the data plane: the agent as family 0 of a sandbox.

use std::collections::HashSet;
use std::time::Duration;

use sandpipe::attach::{AttachError, Participant};
use sandpipe::wait::{Loop, Token, Waiter, WaiterKind};
use sandpipe::{
    Ack, Bell, Body, Bus, Counters, FailureCode, FamilyIndex, Instance, Kind, LoanError, Mapping,
    MessageHeader, MessageId, Payload, PayloadError, Place, Receiver, SlotIndex, StageError, Tally,
    TraceStamps, Violation, split_dead,
};

use super::local::{LocalBus, LocalError, Publish, QueueLoad, Refused};
use super::read_ahead::ReadAhead;
use crate::core::{Cause, Delivery, Local, News, Stamps};

/// The guardian's line, to the waiter.
const LINE: Token = 0;

/// After a wait that failed.
const RETRY: Duration = Duration::from_millis(1);

/// Payload bytes that travel in a lane slot.
const INLINE_MAX: usize = sandpipe::layout::INLINE_MAX;

/// The agent's attachment to one sandbox.
pub struct SandboxBus {
    participant: Participant,
    bus: Bus<Mapping>,
    receiver: Receiver<Mapping>,
    instance: Instance<Mapping>,
    bell: Bell<Mapping>,
    tally: Tally<Mapping>,
    /// Looks at the lanes that have found nothing since the last message or sleep.
    vain_looks: u64,
    ahead: ReadAhead,
    /// Opened by the thread that parks.
    waiter: Option<Box<dyn Waiter>>,
}

impl SandboxBus {
    /// Takes the agent's place in an attached sandbox.
    #[must_use]
    pub fn new(participant: Participant, bus: Bus<Mapping>) -> SandboxBus {
        let lanes = bus.own_layout().lanes.len();
        SandboxBus {
            receiver: bus.receiver(),
            instance: bus.instance(SlotIndex(0)),
            bell: bus.bell(FamilyIndex::AGENT),
            tally: bus.tally(SlotIndex(0)),
            vain_looks: 0,
            participant,
            bus,
            ahead: ReadAhead::new(lanes),
            waiter: None,
        }
    }

    /// What this thread waits through: for the bell and the guardian's line together.
    fn open_waiter(&self) -> std::io::Result<Box<dyn Waiter>> {
        let mut waiter = WaiterKind::probe(Loop::Own)?;
        waiter.watch(self.participant.as_fd(), LINE)?;
        tracing::debug!(waiter = waiter.kind().name(), "parking");
        Ok(waiter)
    }

    fn stage(&mut self, delivery: &Delivery, header: &MessageHeader) -> Result<(), Refusal> {
        let trace = TraceStamps::default();
        let payload = delivery.payload.as_slice();
        // A traced message needs a chunk on its way back only; inline is fine here.
        if payload.len() <= INLINE_MAX {
            let inline = Payload::Inline(payload);
            return Ok(self.instance.stage(header.queue, header, inline, trace)?);
        }
        let loan = self.instance.loan(payload.len());
        if let Err(LoanError::Exhausted { .. }) = loan {
            // Of a guardian that is gone, the next update tells.
            let _ = self.participant.ask_to_grow(&self.bus);
        }
        let loan = loan?;
        self.instance.write(&loan, 0, payload);
        let staged = self
            .instance
            .stage(header.queue, header, Payload::Loaned(&loan), trace);
        if staged.is_err() {
            self.instance.discard();
            self.instance.give_back(loan);
        }
        Ok(staged?)
    }

    /// Copies a message out of shared memory, checked.
    ///
    /// # Errors
    /// What its sender, who is known for sure by the lane, cannot have written in good faith.
    fn read(&self, delivery: &sandpipe::Delivery, number: u64) -> Result<Local, Violation> {
        let message = &delivery.message;
        let header = &message.header;
        let source = delivery.source;
        let targets = &self.bus.topology().family(source).targets;
        let has_lane = targets.iter().any(|target| target.queue == header.queue);
        let queue = Violation::Queue(header.queue.0);
        let from = source.index().checked_sub(1).ok_or(queue)?;
        let news = match header.kind {
            // A backup copy of an event that its sender can have sent.
            Kind::Event => News::Output {
                grain: header
                    .queue
                    .index()
                    .checked_sub(1)
                    .filter(|_| has_lane)
                    .ok_or(queue)?,
            },
            Kind::Final => News::Final,
            Kind::Failed | Kind::Dead => News::Failed(cause(header.failure)),
            _ => return Err(queue),
        };
        let stamps = match message.body {
            Body::Traced { trace, .. } => Some(Stamps {
                taken_ns: trace.taken_ns,
                started_ns: trace.started_ns,
                ended_ns: trace.ended_ns,
                published_ns: trace.published_ns,
                attempt: trace.attempt,
                worker_started_ns: trace.worker_started_ns,
                worker_loaded_ns: trace.worker_loaded_ns,
            }),
            _ => None,
        };
        let mut payload = self.bus.payload(delivery).map_err(|error| match error {
            PayloadError::BadReference { chunk, len, .. } => {
                let chunk = u64::from(chunk);
                Violation::Reference { chunk, len }
            }
            // It has published from a segment that is not there.
            _ => queue,
        })?;
        let mut event = None;
        if header.kind == Kind::Dead {
            let (reason, data) = split_dead(&payload).ok_or(Violation::Reason(message.len))?;
            event = Some(data.to_vec());
            payload = reason.to_vec();
        }
        Ok(Local {
            number,
            id: header.id,
            root: header.root,
            parent: header.parent,
            from,
            news,
            last: header.last,
            stamps,
            payload,
            event,
        })
    }
}

impl LocalBus for SandboxBus {
    fn poll(
        &mut self,
        limit: usize,
        take: &mut dyn FnMut(Local) -> Result<(), Violation>,
    ) -> usize {
        let mut taken = 0;
        while taken < limit
            && let Some((delivery, place)) = self.receiver.receive()
        {
            taken += 1;
            let number = self.ahead.keep(place.lane, place.position);
            match self.read(&delivery, number) {
                Ok(local) => {
                    if let Err(violation) = take(local) {
                        self.receiver.refuse(delivery.source, violation);
                    }
                }
                Err(violation) => {
                    self.release(number);
                    self.receiver.refuse(delivery.source, violation);
                }
            }
        }
        self.vain_looks = if taken == 0 { self.vain_looks + 1 } else { 0 };
        taken
    }

    fn room(&self) -> usize {
        let lanes = &self.bus.own_layout().lanes;
        lanes.iter().map(|lane| lane.lane_slots as usize).sum()
    }

    fn take_refusal(&mut self) -> Option<Refused> {
        let refusal = self.receiver.take_refusal()?;
        let grain = refusal.family.index().checked_sub(1)?;
        let violation = refusal.violation;
        Some(Refused { grain, violation })
    }

    fn release(&mut self, number: u64) {
        if let Some((lane, position)) = self.ahead.release(number) {
            self.receiver.acknowledge(Place { lane, position });
        }
    }

    fn publish(&mut self, delivery: &Delivery) -> Publish {
        let queue = FamilyIndex(u16::try_from(delivery.grain + 1).expect("at most 31 grains"));
        let mut header = MessageHeader::event(delivery.id, delivery.root, delivery.parent, queue);
        header.traced = delivery.traced;
        if self.receiver.refusals().of(queue).is_some() {
            return Publish::Full;
        }
        match self.stage(delivery, &header) {
            Ok(()) => {
                self.instance.commit(Ack::NOTHING);
                Publish::Done
            }
            Err(Refusal::Full) => Publish::Full,
            Err(Refusal::Lied(violation)) => {
                self.receiver.refuse(queue, violation);
                Publish::Full
            }
            Err(Refusal::Never(why)) => {
                // Sizes are checked at the door, but by the limit that held at that time.
                tracing::error!(id = %delivery.id, why, "a message that no lane takes");
                Publish::Never(why)
            }
        }
    }

    fn alive(&self) -> HashSet<MessageId> {
        // What moves while it is looked at may be missed; it is then delivered twice, and its
        // effects are folded by id.
        let grains = 1..self.bus.topology().families().len() as u16;
        grains
            .map(|family| self.bus.audit(FamilyIndex(family)))
            .flat_map(|audit| audit.queued.into_iter().chain(audit.in_flight))
            .collect()
    }

    fn pool_sizes(&self) -> Vec<(u64, u64)> {
        let families = 0..self.bus.topology().families().len() as u16;
        families
            .map(|family| self.bus.pool_size(FamilyIndex(family)))
            .collect()
    }

    fn counters(&self) -> Vec<Counters> {
        let families = 0..self.bus.topology().families().len() as u16;
        families
            .map(|family| self.bus.counters(FamilyIndex(family)))
            .collect()
    }

    fn queues(&self) -> Vec<QueueLoad> {
        let families = 0..self.bus.topology().families().len() as u16;
        families
            .map(|family| self.bus.audit(FamilyIndex(family)))
            .map(|audit| QueueLoad {
                waiting: audit.queued.len(),
                taken: audit.in_flight.len(),
                resting: audit.orphans,
            })
            .collect()
    }

    fn update(&mut self) -> Result<(), LocalError> {
        match self.participant.update(&mut self.bus) {
            Ok(false) => Ok(()),
            Ok(true) => {
                self.receiver.rebind(&self.bus);
                // Made anew: the old one held the old segment of its consumer.
                self.instance = self.bus.instance(SlotIndex(0));
                Ok(())
            }
            Err(AttachError::Closed) => Err(LocalError::Ended("its init is gone".into())),
            Err(error) => Err(LocalError::Ended(error.to_string())),
        }
    }

    fn park(&mut self, timeout: Duration, is_awaited: &dyn Fn() -> bool) -> bool {
        if self.waiter.is_none() {
            match self.open_waiter() {
                Ok(waiter) => self.waiter = Some(waiter),
                Err(error) => tracing::warn!(%error, "cannot watch the guardian's line"),
            }
        }
        let parking = self.bell.prepare();
        if is_awaited() || self.receiver.has_message() {
            parking.cancel();
            return false;
        }
        // The one just now was in vain as well.
        let looks = std::mem::take(&mut self.vain_looks) + 1;
        let slept = match &mut self.waiter {
            Some(waiter) => {
                let waiter = &mut **waiter;
                let ready = &mut Vec::new();
                self.tally
                    .sleep_through(waiter, parking, looks, timeout, ready)
            }
            None => return self.tally.sleep(parking, looks, timeout),
        };
        slept.unwrap_or_else(|error| {
            // Tried again with a new one.
            tracing::warn!(%error, "a wait failed");
            self.waiter = None;
            std::thread::sleep(RETRY);
            false
        })
    }

    fn ringer(&self) -> Box<dyn Fn() + Send + Sync> {
        let bell = self.bell.clone();
        Box::new(move || bell.ring_all())
    }
}

/// Why a message was not staged.
enum Refusal {
    Full,
    Lied(Violation),
    Never(String),
}

impl From<StageError> for Refusal {
    fn from(error: StageError) -> Refusal {
        match error {
            StageError::Full(_) => Refusal::Full,
            StageError::Lied(_, violation) => Refusal::Lied(violation),
            other => Refusal::Never(other.to_string()),
        }
    }
}

impl From<LoanError> for Refusal {
    fn from(error: LoanError) -> Refusal {
        match error {
            LoanError::Exhausted { .. } => Refusal::Full,
            other => Refusal::Never(other.to_string()),
        }
    }
}

fn cause(code: FailureCode) -> Cause {
    match code {
        FailureCode::HandlerError => Cause::HandlerError,
        FailureCode::Timeout => Cause::Timeout,
        FailureCode::Crashed => Cause::Crashed,
        FailureCode::PayloadTooLarge => Cause::PayloadTooLarge,
        FailureCode::BadRoute => Cause::BadRoute,
        _ => Cause::Other,
    }
}

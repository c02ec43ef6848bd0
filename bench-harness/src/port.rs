//! One process's end of the local bus as a [`Link`]: run to completion, the acknowledgement of a
//! message committed together with the next one that is sent.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sandpipe::layout::HEAD_MAX;
use sandpipe::{
    Ack, Body, Bus, Claimer, Delivery, FamilyIndex, Instance, Loan, LoanError, Mapping, Memory,
    MessageHeader, MessageId, Payload, Place, Receiver, SlotIndex, StageError, TraceStamps,
    monotonic_ns,
};
use sandpipe_link::{Link, Seen};

use crate::clock::{PEER_SILENCE_MAX, spin_until};
use crate::company::Company;
use crate::error::BenchError;

/// Largest payload that travels in the lane slot.
const INLINE_BYTES_MAX: usize = 64;

/// How a receiver waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Looks again at once.
    Spin,
    /// Gives the core away between two looks.
    Yield,
    /// Sleeps on the queue's bell at once (spin 0).
    Park,
    /// The same, waiting for a child, a socket and a time as well.
    ParkInCompany,
}

/// How messages are received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hands {
    /// Alone, in place.
    Receiver,
    /// Through the table of messages in flight, as the instances of a pool do.
    Table,
}

/// What a port does.
#[derive(Clone, Copy, Debug)]
pub struct Habit {
    /// To whom it sends.
    pub to: FamilyIndex,
    /// Its instance slot.
    pub slot: SlotIndex,
    /// Bytes of each message that it touches.
    pub touched: usize,
    /// Messages of one commit.
    pub batch: usize,
    /// Whether a copy for the agent stands in each commit.
    pub backup: bool,
    /// How it receives.
    pub hands: Hands,
    /// How it waits.
    pub wait: Wait,
}

impl Habit {
    /// Sends whole messages, one a commit, and spins.
    #[must_use]
    pub fn to(to: FamilyIndex, touched: usize) -> Habit {
        Habit {
            to,
            slot: SlotIndex(0),
            touched,
            batch: 1,
            backup: false,
            hands: Hands::Receiver,
            wait: Wait::Spin,
        }
    }
}

#[derive(Debug)]
enum Ear {
    Receiver(Receiver<Mapping>),
    Table(Claimer<Mapping>),
}

/// A received message that is not acknowledged yet.
#[derive(Debug)]
struct Held {
    place: Option<Place>,
}

/// A process's end.
#[derive(Debug)]
pub struct Port {
    bus: Bus<Mapping>,
    instance: Instance<Mapping>,
    ear: Ear,
    habit: Habit,
    /// The message taken last.
    delivery: Delivery,
    held: Option<Held>,
    loan: Option<Loan>,
    staged: usize,
    sent: u128,
    /// The agent's end, in the process that plays the agent.
    agent: Option<Receiver<Mapping>>,
    /// Made at the first sleep, by the process that sleeps.
    company: Option<Company>,
}

impl Port {
    /// An end of the bus.
    #[must_use]
    pub fn new(bus: &Bus<Mapping>, habit: Habit) -> Port {
        let ear = match habit.hands {
            Hands::Receiver => Ear::Receiver(bus.receiver()),
            Hands::Table => Ear::Table(bus.claimer(habit.slot)),
        };
        Port {
            instance: bus.instance(habit.slot),
            ear,
            habit,
            delivery: Delivery::default(),
            held: None,
            loan: None,
            staged: 0,
            sent: 0,
            agent: None,
            company: None,
            bus: bus.clone(),
        }
    }

    /// Takes the agent's part as well: [`Link::flush`] empties its queue.
    #[must_use]
    pub fn with_agent(mut self, agent: &Bus<Mapping>) -> Port {
        self.agent = Some(agent.receiver());
        self
    }

    /// Sends to somebody else from now on.
    pub fn turn_to(&mut self, to: FamilyIndex) {
        self.habit.to = to;
    }

    /// Stages one message, also its backup copy, for the next commit; false if there is no room.
    ///
    /// # Errors
    /// If the bus refuses it for good.
    #[inline]
    pub fn stage(&mut self, message: &[u8]) -> Result<bool, BenchError> {
        if message.len() > INLINE_BYTES_MAX && self.loan.is_none() {
            let Some(mut loan) = self.borrow(message.len())? else {
                return Ok(false);
            };
            self.fill(&mut loan, message);
            self.loan = Some(loan);
        }
        let payload = match &self.loan {
            Some(loan) => Payload::Loaned(loan),
            None => Payload::Inline(message),
        };
        let id = MessageId(self.sent + 1);
        let header = MessageHeader::event(id, id, MessageId::NONE, self.habit.to);
        let trace = TraceStamps::default();
        if self.habit.backup {
            self.instance
                .stage(FamilyIndex::AGENT, &header, payload, trace)
                .map_err(refused)?;
        }
        match self.instance.stage(self.habit.to, &header, payload, trace) {
            Ok(()) => {}
            Err(StageError::Full(_)) => return Ok(false),
            Err(error) => return Err(refused(error)),
        }
        self.loan = None;
        self.sent += 1;
        self.staged += 1;
        Ok(true)
    }

    /// A few words word by word, since they were written so a moment ago and a wider load would
    /// wait for those stores; more of them at the memory's speed.
    #[inline]
    fn fill(&self, loan: &mut Loan, message: &[u8]) {
        let touched = self.habit.touched;
        if touched <= INLINE_BYTES_MAX {
            return self.instance.write(loan, 0, &message[..touched]);
        }
        let bytes = self.instance.memory().loan_bytes(loan);
        bytes[..touched].copy_from_slice(&message[..touched]);
    }

    fn borrow(&mut self, len: usize) -> Result<Option<Loan>, BenchError> {
        match self.instance.loan(len) {
            Ok(loan) => Ok(Some(loan)),
            Err(LoanError::Exhausted { .. }) => Ok(None),
            Err(error) => Err(BenchError::peer("the pool", error.to_string())),
        }
    }

    /// Makes everything staged a fact, together with the acknowledgement of what was received.
    #[inline]
    pub fn commit(&mut self) {
        let held = self.held.take();
        match held {
            Some(_) => self.instance.commit(self.delivery.ack),
            None => self.instance.commit(Ack::NOTHING),
        }
        self.staged = 0;
        match (&mut self.ear, held) {
            (
                Ear::Receiver(receiver),
                Some(Held {
                    place: Some(place), ..
                }),
            ) => {
                receiver.acknowledged(place);
            }
            (Ear::Table(claimer), Some(_)) => claimer.finish(),
            _ => {}
        }
    }

    /// Takes a message if there is one; what was held before has been acknowledged.
    #[inline]
    fn take(&mut self) -> bool {
        let delivery = &mut self.delivery;
        let place = match &mut self.ear {
            Ear::Receiver(receiver) => receiver.receive_into(delivery).map(Some),
            Ear::Table(claimer) => claimer.claim_into(monotonic_ns, delivery).then_some(None),
        };
        let Some(place) = place else {
            return false;
        };
        self.held = Some(Held { place });
        true
    }

    /// What a spinning consumer does when it has found nothing.
    #[inline]
    fn rest(&mut self) {
        if let Ear::Receiver(receiver) = &mut self.ear {
            receiver.back_off();
        }
    }

    /// Acknowledges what no commit has carried.
    #[inline]
    fn let_go(&mut self) {
        match (&mut self.ear, &self.held) {
            (_, None) => {}
            (
                Ear::Receiver(receiver),
                Some(Held {
                    place: Some(place), ..
                }),
            ) => {
                receiver.acknowledge(*place);
                self.held = None;
            }
            _ => self.commit(),
        }
    }

    /// Reads the message that was taken.
    #[inline]
    fn read(&self) -> Result<Seen, BenchError> {
        if let Body::Inline(words) = &self.delivery.message.body {
            let sum = words.iter().copied().fold(0, u64::wrapping_add);
            return Ok(Seen {
                first: words[0],
                sum,
            });
        }
        if self.habit.touched <= HEAD_MAX {
            return self.read_head();
        }
        let (segment, at) = self
            .bus
            .locate(&self.delivery)
            .map_err(|e| BenchError::peer("the local bus", e.to_string()))?;
        let words = segment.words(at, self.habit.touched / 8);
        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
        Ok(Seen {
            first: load(&words[0]),
            sum: words.iter().map(load).fold(0, u64::wrapping_add),
        })
    }

    /// Reads no more than what travels beside the reference.
    #[inline]
    fn read_head(&self) -> Result<Seen, BenchError> {
        let mut bytes = [0; HEAD_MAX];
        let payload = self.bus.payload_of(&self.delivery);
        let payload = payload.map_err(|e| BenchError::peer("the local bus", e.to_string()))?;
        payload.copy_to(&mut bytes[..self.habit.touched]);
        let words = bytes.as_chunks().0.iter().copied().map(u64::from_le_bytes);
        Ok(Seen {
            first: words.clone().next().unwrap_or_default(),
            sum: words.fold(0, u64::wrapping_add),
        })
    }

    fn has_message(&self) -> bool {
        match &self.ear {
            Ear::Receiver(receiver) => receiver.has_message(),
            Ear::Table(claimer) => claimer.has_message(),
        }
    }

    /// Sleeps on the queue's bell unless a message is there.
    fn park(&mut self) -> Result<(), BenchError> {
        if self.habit.wait == Wait::ParkInCompany && self.company.is_none() {
            self.company = Some(Company::new(&self.bus, self.habit.slot)?);
        }
        let bell = self.bus.bell(self.bus.family());
        let parking = bell.prepare();
        if self.has_message() {
            parking.cancel();
            return Ok(());
        }
        match &mut self.company {
            Some(company) => company.sleep(parking),
            None => {
                parking.sleep(Duration::MAX);
                Ok(())
            }
        }
    }
}

impl Link for Port {
    type Error = BenchError;

    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<(), BenchError> {
        let mut sent = Ok(false);
        spin_until("room on the local bus", || {
            sent = self.try_send(message);
            !matches!(sent, Ok(false))
        })?;
        sent.map(|_| ())
    }

    #[inline]
    fn try_send(&mut self, message: &[u8]) -> Result<bool, BenchError> {
        let staged = self.stage(message)?;
        if self.staged >= self.habit.batch || (!staged && self.staged > 0) {
            self.commit();
        }
        Ok(staged)
    }

    #[inline]
    fn receive(&mut self) -> Result<Seen, BenchError> {
        self.let_go();
        if self.habit.wait == Wait::Spin {
            spin_until("the sender on the local bus", || {
                let taken = self.take();
                if !taken {
                    self.rest();
                }
                taken
            })?;
            return self.read();
        }
        let start = Instant::now();
        while !self.take() {
            if start.elapsed() > PEER_SILENCE_MAX {
                return Err(BenchError::peer("the sender on the local bus", "silent"));
            }
            match self.habit.wait {
                Wait::Park | Wait::ParkInCompany => self.park()?,
                _ => std::thread::yield_now(),
            }
        }
        self.read()
    }

    fn flush(&mut self) -> Result<(), BenchError> {
        if let Some(receiver) = &mut self.agent {
            while let Some((_, place)) = receiver.receive() {
                receiver.acknowledge(place);
            }
        }
        Ok(())
    }

    fn out_of_order(expected: u64, seen: Seen) -> BenchError {
        let detail = format!("message {} came in place of {expected}", seen.first);
        BenchError::peer("the local bus", detail)
    }
}

fn refused(error: StageError) -> BenchError {
    BenchError::peer("the local bus", error.to_string())
}

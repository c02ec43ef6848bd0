//! One commit of an instance: its outputs, their backup copies, and its input's acknowledgement.

use std::time::Duration;

use bytes::Bytes;
use sandpipe::layout::INLINE_MAX;
use sandpipe::{
    Ack, Body, Bus, Delivery, FailureCode, FamilyIndex, Instance, Kind, Loan, LoanError, Mapping,
    Message, MessageHeader, MessageId, Payload, StageError, TraceStamps, derive_child, join_dead,
    monotonic_ns,
};

use crate::board::Board;
use crate::config::{Backup, Route, WorkerConfig};
use crate::event::{HandlerError, Output};

/// What became of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Output(Output),
    Failed(FailureCode, String),
    /// Its attempts are used up; the data is the event's own.
    Dead(FailureCode, String, Vec<u8>),
}

/// A mapping of a peer is older than the peer: a full lane would look full for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stale;

/// One message to stage: the queue that gets it, and its header.
type Piece = (FamilyIndex, MessageHeader);

/// Bytes of a failure's text at the most.
const REASON_MAX: usize = 4096;

/// The id of a failure: outputs have the indices below.
const FAILURE_INDEX: u32 = u32::MAX;

impl From<Result<Output, HandlerError>> for Outcome {
    fn from(result: Result<Output, HandlerError>) -> Outcome {
        match result {
            Ok(output) => Outcome::Output(output),
            Err(error) => Outcome::Failed(FailureCode::HandlerError, error.text),
        }
    }
}

/// Publishes an outcome and acknowledges the delivery, all or nothing. Waits while a lane or the
/// pool is full, until the worker ends the process at its time limit.
///
/// # Errors
/// [`Stale`]: nothing was published; the event must be handled by a newer instance.
pub(crate) fn publish(
    config: &WorkerConfig,
    bus: &Bus<Mapping>,
    board: &Board,
    instance: &mut Instance<Mapping>,
    delivery: &Delivery,
    outcome: Outcome,
    stamps: TraceStamps,
) -> Result<(), Stale> {
    let outcome = check(config, outcome);
    let without_chunk = without_chunk(&outcome);
    let (mut pieces, mut data) = pieces(config, delivery, outcome);
    let traced = delivery.message.header.traced;
    let mut room = Room::new(bus);
    let mut loan = None;
    if traced || data.len() > INLINE_MAX {
        loan = loop {
            match instance.loan(data.len()) {
                Ok(loan) => break Some(loan),
                Err(LoanError::Exhausted { .. }) => {
                    room.ask_for_more(board);
                    room.wait()?;
                }
                Err(error) => {
                    // Also of a failure's own text: what fits into a lane slot always fits.
                    let (code, text) = without_chunk.unwrap_or_else(|| {
                        let code = FailureCode::PayloadTooLarge;
                        (code, error.to_string())
                    });
                    let failed = Outcome::Failed(code, cut(text, INLINE_MAX));
                    (pieces, data) = self::pieces(config, delivery, failed);
                    break None;
                }
            }
        };
    }
    if let Some(loan) = &loan {
        instance.write(loan, 0, &data);
    }
    loop {
        let stamps = TraceStamps {
            published_ns: if traced { monotonic_ns() } else { 0 },
            ..stamps
        };
        if stage(instance, &pieces, &data, loan.as_ref(), stamps) {
            instance.commit(delivery.ack);
            return Ok(());
        }
        instance.discard();
        room.wait()?;
    }
}

/// Does everything that a first publication does but the commit, so that the memory it needs is
/// mapped and the processor's features are known: a few page faults and traps that would otherwise
/// stand between an event and its handler. Nothing becomes visible; a death inside costs nothing.
pub(crate) fn rehearse(config: &WorkerConfig, instance: &mut Instance<Mapping>) {
    let header = MessageHeader::event(MessageId(1), MessageId(1), MessageId::NONE, config.family());
    let message = Message {
        header,
        len: 0,
        body: Body::Inline([0; INLINE_MAX / 8]),
    };
    let delivery = Delivery {
        message,
        attempt: 1,
        source: FamilyIndex::AGENT,
        ack: Ack::NOTHING,
    };
    let (pieces, data) = pieces(config, &delivery, Outcome::Output(Output::from([0; 64])));
    std::hint::black_box(stack());
    // The first reading of the clock looks the system's function up.
    std::hint::black_box(monotonic_ns());
    let loan = instance.loan(data.len()).ok();
    if let Some(loan) = &loan {
        instance.write(loan, 0, &data);
    }
    let _ = stage(instance, &pieces, &data, None, TraceStamps::default());
    instance.discard();
    if let Some(loan) = loan {
        instance.give_back(loan);
    }
}

/// Touches the stack below.
#[inline(never)]
fn stack() -> [u8; 16 << 10] {
    std::hint::black_box([1; 16 << 10])
}

/// Stages everything; false if a lane is full.
fn stage(
    instance: &mut Instance<Mapping>,
    pieces: &[Piece],
    data: &[u8],
    loan: Option<&Loan>,
    stamps: TraceStamps,
) -> bool {
    pieces.iter().all(|(queue, header)| {
        let payload = loan.map_or(Payload::Inline(data), Payload::Loaned);
        match instance.stage(*queue, header, payload, stamps) {
            Ok(()) => true,
            // Of a lying consumer the agent hears as well; until it acts, its lane counts as full.
            Err(StageError::Full(_) | StageError::Lied(..)) => false,
            Err(error) => unreachable!("the worker checked its topology at its start: {error}"),
        }
    })
}

/// An output that may not go on is a failure.
fn check(config: &WorkerConfig, outcome: Outcome) -> Outcome {
    let Outcome::Output(output) = outcome else {
        return outcome;
    };
    let (len, max) = (output.data.len() as u64, config.max_payload_bytes);
    if len > max {
        let text = format!("the output has {len} bytes; max_payload_bytes is {max}");
        return Outcome::Failed(FailureCode::PayloadTooLarge, text);
    }
    let known = |name: &str| config.next.iter().any(|next| next.grain == name);
    let names = || {
        let names: Vec<_> = config.next.iter().map(|next| &*next.grain).collect();
        names.join(", ")
    };
    let bad = match (config.route, &output.to) {
        (Route::All, None) => None,
        (Route::ByOutput, Some(name)) if known(name) => None,
        (Route::ByOutput, Some(name)) => Some(format!(
            "the output names grain {name:?}, which may not follow; allowed: {}",
            names()
        )),
        (Route::ByOutput, None) => Some(format!(
            "the output must name the next grain (next = \"by_output\"); allowed: {}",
            names()
        )),
        (Route::All, Some(name)) => Some(format!(
            "the output names grain {name:?}, but the workflow is static; \
             set next = \"by_output\" in app.toml"
        )),
    };
    match bad {
        Some(text) => Outcome::Failed(FailureCode::BadRoute, text),
        None => Outcome::Output(output),
    }
}

/// What is told of an outcome that no chunk is large enough for, if not just that. A pool that was
/// made for less than this has no room for a dead event beside its reason.
fn without_chunk(outcome: &Outcome) -> Option<(FailureCode, String)> {
    match outcome {
        Outcome::Dead(code, text, _) => Some((*code, text.clone())),
        _ => None,
    }
}

/// The messages of an outcome and the payload that they share.
fn pieces(config: &WorkerConfig, delivery: &Delivery, outcome: Outcome) -> (Vec<Piece>, Bytes) {
    let parent = &delivery.message.header;
    let header = |index: u32, queue: FamilyIndex| MessageHeader {
        traced: parent.traced,
        ..MessageHeader::event(
            derive_child(parent.id, index),
            parent.root,
            parent.id,
            queue,
        )
    };
    let to_agent = |kind: Kind, index: u32, failure: FailureCode| {
        let header = MessageHeader {
            kind,
            last: true,
            failure,
            ..header(index, FamilyIndex::AGENT)
        };
        vec![(FamilyIndex::AGENT, header)]
    };
    let output = match outcome {
        Outcome::Failed(code, text) => {
            let text = cut(text, REASON_MAX).into_bytes().into();
            return (to_agent(Kind::Failed, FAILURE_INDEX, code), text);
        }
        Outcome::Dead(code, text, event) => {
            let data = join_dead(&text, &event).into();
            return (to_agent(Kind::Dead, FAILURE_INDEX, code), data);
        }
        Outcome::Output(output) => output,
    };
    if config.next.is_empty() {
        return (to_agent(Kind::Final, 0, FailureCode::Other), output.data);
    }
    let chosen = |name: &str| output.to.as_deref().is_none_or(|to| to == name);
    let next = config.next.iter().filter(|next| chosen(&next.grain));
    let families: Vec<_> = next.map(|next| FamilyIndex(next.family)).collect();
    let mut pieces = Vec::with_capacity(2 * families.len());
    for (index, &family) in families.iter().enumerate() {
        let header = header(index as u32, family);
        if config.backup == Backup::Async {
            let last = index + 1 == families.len();
            pieces.push((FamilyIndex::AGENT, MessageHeader { last, ..header }));
        }
        pieces.push((family, header));
    }
    (pieces, output.data)
}

/// The first bytes of a text, at a character's boundary.
fn cut(mut text: String, max: usize) -> String {
    if text.len() > max {
        let mut end = max;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text
}

/// Waits for room with growing pauses.
struct Room<'b> {
    bus: &'b Bus<Mapping>,
    pause: Duration,
    has_asked: bool,
}

impl Room<'_> {
    fn new(bus: &Bus<Mapping>) -> Room<'_> {
        Room {
            bus,
            pause: Duration::from_micros(50),
            has_asked: false,
        }
    }

    /// Wakes the worker, which asks for an extension of the pool if it may grow; only once, since
    /// it looks by itself as often as it wakes.
    fn ask_for_more(&mut self, board: &Board) {
        if self.bus.own_layout().extensions != 0 && !self.has_asked {
            self.has_asked = true;
            board.nudge();
            // Where the worker itself waits for events.
            self.bus.bell(self.bus.family()).ring_all();
        }
    }

    fn wait(&mut self) -> Result<(), Stale> {
        if self.bus.is_stale() {
            return Err(Stale);
        }
        std::thread::sleep(self.pause);
        self.pause = (self.pause * 2).min(Duration::from_millis(1));
        Ok(())
    }
}

//! A bare local bus from one process to another, without grains, agent or sandbox: for figures,
//! and for trying the bus out.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::thread;
use std::time::{Duration, Instant};

use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use sandpipe::layout::INLINE_MAX;
use sandpipe::wait::BellFd;
use sandpipe::{
    Ack, Bus, ChunkClass, Delivery, FamilyIndex, FamilySpec, Guardian, Instance, LoanError,
    Mapping, MessageHeader, MessageId, PARK_MAX, Participant, Payload, Reaction, Receiver,
    SlotIndex, StageError, Target, Topology, TraceStamps, socket,
};

create_exception!(
    sandpipe,
    Full,
    PyException,
    "The subscriber is behind: no place for this message now."
);

/// Family 0 is the host agent's; here it takes no part.
const PUBLISHER: FamilyIndex = FamilyIndex(1);
const SUBSCRIBER: FamilyIndex = FamilyIndex(2);

/// Far more than a handshake within one process takes.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Looks at the lanes between two looks at the clock.
const SPINS: u32 = 256;

/// Makes a one-way bus: (publisher, subscriber). Fork afterwards and use one end in each process.
///
/// `slots` messages fit into the lane, `chunks` payloads of up to `max_bytes` (over 64 bytes each)
/// may be unread. There is no guardian: when one of the processes dies, make a new pair.
#[pyfunction]
#[pyo3(signature = (max_bytes = 1 << 20, slots = 1024, chunks = 64))]
pub(crate) fn pair(max_bytes: u32, slots: u32, chunks: u32) -> PyResult<(Publisher, Subscriber)> {
    let topology = topology(max_bytes, slots, chunks)?;
    let mut guardian = Guardian::new(topology)?;
    guardian.make_family(PUBLISHER)?;
    guardian.make_family(SUBSCRIBER)?;
    let (ours_1, theirs_1) = sockets()?;
    let (ours_2, theirs_2) = sockets()?;
    let served = thread::spawn(move || {
        serve(&mut guardian, PUBLISHER, &ours_1)?;
        serve(&mut guardian, SUBSCRIBER, &ours_2)?;
        let (bytes, fds) = guardian.update_message(SUBSCRIBER);
        socket::send(&ours_1, &bytes, &fds)?;
        // Both ends stay open until the publisher has read its update.
        Ok((ours_1, ours_2))
    });
    let wrong = |error: sandpipe::AttachError| PyRuntimeError::new_err(error.to_string());
    let attach = |socket, family| Participant::attach(socket, family, HANDSHAKE_MAX).map_err(wrong);
    let (mut line, mut first) = attach(theirs_1, PUBLISHER)?;
    let (_line, second) = attach(theirs_2, SUBSCRIBER)?;
    let served: io::Result<_> = served.join().expect("the guardian's thread does not panic");
    let _open = served?;
    line.update(&mut first).map_err(wrong)?;
    Ok((Publisher::new(&first), Subscriber::new(second)))
}

fn topology(max_bytes: u32, slots: u32, chunks: u32) -> PyResult<Topology> {
    let spec = |targets, chunks| FamilySpec {
        slots: 1,
        targets,
        chunks,
    };
    let lane = Target {
        queue: SUBSCRIBER,
        lane_slots: slots,
    };
    let pool = vec![ChunkClass {
        bytes: max_bytes.into(),
        count: chunks,
    }];
    let families = vec![
        spec(vec![], vec![]),
        spec(vec![lane], pool),
        spec(vec![], vec![]),
    ];
    Topology::new(families).map_err(|error| PyValueError::new_err(error.to_string()))
}

fn sockets() -> io::Result<(OwnedFd, OwnedFd)> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    Ok(socketpair(family, kind, SocketFlags::CLOEXEC, None)?)
}

/// The guardian's side of one attach handshake.
fn serve(guardian: &mut Guardian, family: FamilyIndex, line: &OwnedFd) -> io::Result<()> {
    loop {
        let (message, _) = socket::receive(line, true)?;
        match guardian.handle(family, &message)? {
            Reaction::Reply(bytes, fds) => socket::send(line, &bytes, &fds)?,
            Reaction::Sealed => {
                let (bytes, fds) = guardian.peers_message(family);
                socket::send(line, &bytes, &fds)?;
            }
            Reaction::Attached => return Ok(()),
            Reaction::Refuse(_) | Reaction::Done | Reaction::Unknown => {
                return Err(io::Error::other("the handshake within one process failed"));
            }
        }
    }
}

/// The sending end of a pair.
#[pyclass(module = "sandpipe")]
#[derive(Debug)]
pub(crate) struct Publisher {
    instance: Instance<Mapping>,
    sent: u128,
}

impl Publisher {
    fn new(bus: &Bus<Mapping>) -> Publisher {
        Publisher {
            instance: bus.instance(SlotIndex(0)),
            sent: 0,
        }
    }

    fn stage(&mut self, payload: Payload<'_>) -> Result<(), StageError> {
        let id = MessageId(self.sent + 1);
        let header = MessageHeader::event(id, id, MessageId::NONE, SUBSCRIBER);
        self.instance
            .stage(SUBSCRIBER, &header, payload, TraceStamps::default())
    }
}

#[pymethods]
impl Publisher {
    /// Publishes bytes; does not wait. Wakes the subscriber if it sleeps.
    ///
    /// Raises Full while the subscriber is behind, ValueError if the payload is too large.
    fn publish(&mut self, data: &[u8]) -> PyResult<()> {
        let staged = if data.len() <= INLINE_MAX {
            self.stage(Payload::Inline(data))
        } else {
            let loan = self
                .instance
                .loan(data.len())
                .map_err(|error| match error {
                    LoanError::TooLarge { .. } => PyValueError::new_err(error.to_string()),
                    _ => Full::new_err(error.to_string()),
                })?;
            self.instance.write(&loan, 0, data);
            let staged = self.stage(Payload::Loaned(&loan));
            if staged.is_err() {
                self.instance.give_back(loan);
            }
            staged
        };
        staged.map_err(|error| match error {
            StageError::Full(_) => Full::new_err(error.to_string()),
            _ => PyRuntimeError::new_err(error.to_string()),
        })?;
        self.instance.commit(Ack::NOTHING);
        self.sent += 1;
        Ok(())
    }
}

/// The receiving end of a pair.
#[pyclass(module = "sandpipe")]
#[derive(Debug)]
pub(crate) struct Subscriber {
    bus: Bus<Mapping>,
    receiver: Receiver<Mapping>,
    /// For an event loop, once it has asked for it.
    bell_fd: Option<BellFd<Mapping>>,
}

#[pymethods]
impl Subscriber {
    /// A descriptor for an event loop, e.g. asyncio's add_reader: readable while there may be a
    /// message. Then call receive(0) until it returns None, which makes the descriptor wait again.
    ///
    /// Call it in the process and on the thread whose loop polls; not before a fork.
    fn fileno(&mut self) -> PyResult<RawFd> {
        if self.bell_fd.is_none() {
            let mut bell_fd = BellFd::new(self.bus.bell(SUBSCRIBER), None)?;
            bell_fd.park(|| self.receiver.has_message())?;
            self.bell_fd = Some(bell_fd);
        }
        let bell_fd = self.bell_fd.as_ref().expect("made above");
        Ok(bell_fd.as_raw_fd())
    }

    /// Waits for the next message and returns its bytes; None if `timeout` seconds passed.
    ///
    /// With `spin` it stays awake, which costs a core and saves the wake-up; else it sleeps.
    #[pyo3(signature = (timeout = None, *, spin = false))]
    fn receive<'py>(
        &mut self,
        py: Python<'py>,
        timeout: Option<f64>,
        spin: bool,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let deadline = match timeout.map(Duration::try_from_secs_f64).transpose() {
            Ok(timeout) => timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
            Err(error) => return Err(PyValueError::new_err(error.to_string())),
        };
        loop {
            let received = match self.receiver.receive() {
                Some(received) => Some(received),
                None if self.polled(timeout)? => self.receiver.receive(),
                None => py.detach(|| self.wait(deadline, spin)),
            };
            if let Some((delivery, place)) = received {
                let data = self.copied(py, &delivery);
                self.receiver.acknowledge(place);
                return data.map(Some);
            }
            // Ctrl-C ends the wait.
            py.check_signals()?;
            if self.bell_fd.is_some() && timeout == Some(0.0) {
                return Ok(None);
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(None);
            }
        }
    }
}

impl Subscriber {
    fn new(bus: Bus<Mapping>) -> Subscriber {
        Subscriber {
            receiver: bus.receiver(),
            bus,
            bell_fd: None,
        }
    }

    /// Whether an event loop waits for this subscriber: then it is parked now, and what came
    /// meanwhile may be received.
    fn polled(&mut self, timeout: Option<f64>) -> PyResult<bool> {
        match &mut self.bell_fd {
            Some(bell_fd) if timeout == Some(0.0) => {
                bell_fd.park(|| self.receiver.has_message())?;
                Ok(true)
            }
            // It is about to sleep itself: the bell is to wake that sleep.
            Some(bell_fd) => bell_fd.unpark().map(|()| false).map_err(Into::into),
            None => Ok(false),
        }
    }

    /// Waits for a while; a message if one came.
    fn wait(
        &mut self,
        deadline: Option<Instant>,
        spin: bool,
    ) -> Option<(Delivery, sandpipe::Place)> {
        let now = Instant::now();
        let end = deadline.map_or(now + PARK_MAX, |deadline| deadline.min(now + PARK_MAX));
        if !spin {
            let bell = self.bus.bell(SUBSCRIBER);
            let parking = bell.prepare();
            if self.receiver.has_message() {
                parking.cancel();
            } else {
                parking.sleep(end.saturating_duration_since(now));
            }
            return self.receiver.receive();
        }
        while Instant::now() < end {
            for _ in 0..SPINS {
                if let received @ Some(_) = self.receiver.receive() {
                    return received;
                }
                std::hint::spin_loop();
            }
        }
        None
    }

    fn copied<'py>(&self, py: Python<'py>, delivery: &Delivery) -> PyResult<Bound<'py, PyBytes>> {
        let data = self.bus.payload(delivery);
        let data = data.map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
        Ok(PyBytes::new(py, &data))
    }
}

//! The agent of the chain: takes whatever reaches its queue and hands it, unjudged, to the program
//! that judges.

use std::io::{BufWriter, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};

use sandpipe::{Bus, Delivery, Kind, Mapping, Participant, Receiver};

pub struct Feed {
    bus: Bus<Mapping>,
    participant: Participant,
    receiver: Receiver<Mapping>,
    judge: Child,
    records: BufWriter<ChildStdin>,
    answers: u64,
    /// Whether an answer came since every lane was seen empty.
    unconfirmed: bool,
    closed: bool,
}

impl Feed {
    pub fn new((participant, bus): (Participant, Bus<Mapping>)) -> Feed {
        let mut judge = Command::new(env!("CARGO_BIN_EXE_check-messages"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Feed {
            receiver: bus.receiver(),
            bus,
            participant,
            records: BufWriter::with_capacity(1 << 16, judge.stdin.take().unwrap()),
            judge,
            answers: 0,
            unconfirmed: false,
            closed: false,
        }
    }

    pub fn bus(&self) -> &Bus<Mapping> {
        &self.bus
    }

    /// Messages of the last hop that came.
    pub fn answers(&self) -> u64 {
        self.answers
    }

    /// Whether the source's last message came.
    pub fn closed(&self) -> bool {
        self.closed
    }

    pub fn drain(&mut self) {
        if self.participant.update(&mut self.bus).unwrap() {
            self.receiver.rebind(&self.bus);
        }
        for _ in 0..256 {
            let Some((delivery, place)) = self.receiver.receive() else {
                if std::mem::take(&mut self.unconfirmed) {
                    self.records.write_all(&[2]).unwrap();
                }
                return;
            };
            self.pass_on(&delivery);
            self.receiver.acknowledge(place);
        }
    }

    fn pass_on(&mut self, delivery: &Delivery) {
        let header = delivery.message.header;
        let payload = self.bus.payload(delivery).unwrap_or_default();
        let kind: u64 = match header.kind {
            Kind::Event => 1,
            Kind::Final => 2,
            _ => 3,
        };
        self.answers += u64::from(kind == 2);
        self.unconfirmed |= kind == 2;
        self.closed |= payload.get(16) == Some(&1);
        let mut put = |bytes: &[u8]| self.records.write_all(bytes).unwrap();
        put(&[1]);
        put(&u64::from(delivery.source.0).to_le_bytes());
        put(&kind.to_le_bytes());
        for id in [header.id, header.root, header.parent] {
            put(&id.0.to_le_bytes());
        }
        put(&(payload.len() as u64).to_le_bytes());
        put(&payload);
    }

    /// The judge's line, and whether it found nothing.
    pub fn verdict(self) -> (String, bool) {
        let Feed {
            mut judge, records, ..
        } = self;
        drop(records.into_inner().unwrap());
        let mut line = String::new();
        let mut output = judge.stdout.take().unwrap();
        output.read_to_string(&mut line).unwrap();
        let status = judge.wait().unwrap();
        (line.trim().to_string(), status.success())
    }
}

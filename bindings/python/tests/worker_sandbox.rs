//! A sandbox around one grain worker, for the Python tests: guardian and agent in one thread.
//!
//! `worker_sandbox CONFIG COMMAND...` starts the worker with `SANDPIPE_WORKER` = CONFIG. Each line
//! of stdin is an event (hex); each line of stdout says what happened:
//! `worker PID`, `attached`, `final ID HEX`, `output ID GRAIN HEX`, `failed ID CODE HEX`,
//! `exit CODE`. At the end of stdin the worker is asked to end.

use std::io::{self, BufRead, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver as Lines, TryRecvError, channel};
use std::thread;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, Signal, kill_process};
use sandpipe::layout::INLINE_MAX;
use sandpipe::{
    Ack, Bus, ChunkClass, FamilyIndex, FamilySpec, Guardian, Kind, Mapping, MessageHeader,
    MessageId, Participant, Payload, Reaction, SlotIndex, Target, Topology, TraceStamps, socket,
    split_dead,
};
use sandpipe_grain::{WORKER_VARIABLE, WorkerConfig};

const WORKER: FamilyIndex = FamilyIndex(1);
const PAUSE: Duration = Duration::from_micros(200);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [config, command @ ..] = arguments.as_slice() else {
        eprintln!("usage: worker_sandbox CONFIG COMMAND...");
        return ExitCode::from(2);
    };
    let config = WorkerConfig::from_json(config).expect("a worker's configuration");
    let guardian = Guardian::new(topology(&config)).expect("a guardian");
    let mut sandbox = Sandbox {
        guardian,
        lines: vec![None, None],
    };
    let (mut participant, mut bus) = sandbox.join_as_agent();
    let mut child = sandbox.start(&config, command);
    say(&format!("worker {}", child.id()));
    let mut attached = false;
    let events = stdin_lines();
    let (mut receiver, mut instance) = (bus.receiver(), bus.instance(SlotIndex(0)));
    let mut id = 0;
    loop {
        sandbox.serve();
        if participant.update(&mut bus).expect("the guardian lives") {
            receiver.rebind(&bus);
            instance = bus.instance(SlotIndex(0));
            attached = true;
            say("attached");
        }
        while let Some((delivery, place)) = receiver.receive() {
            say(&told(&config, &bus, &delivery));
            receiver.acknowledge(place);
        }
        if let Some(status) = child.try_wait().expect("the worker is ours") {
            say(&format!("exit {}", status.code().unwrap_or(-1)));
            return ExitCode::SUCCESS;
        }
        match attached.then(|| events.try_recv()) {
            Some(Ok(event)) => {
                id += 1;
                let header =
                    MessageHeader::event(MessageId(id), MessageId(id), MessageId::NONE, WORKER);
                publish(&mut instance, &header, &from_hex(&event));
            }
            Some(Err(TryRecvError::Disconnected)) => terminate(&child),
            _ => thread::sleep(PAUSE),
        }
    }
}

fn topology(config: &WorkerConfig) -> Topology {
    let chunks = vec![ChunkClass {
        bytes: 1 << 20,
        count: 16,
    }];
    let lane = |queue| Target {
        queue,
        lane_slots: 64,
    };
    let family = |slots, targets| FamilySpec {
        slots,
        targets,
        chunks: chunks.clone(),
    };
    // The grains that follow have queues which nobody reads; the agent's copies tell the test.
    let next = config
        .next
        .iter()
        .map(|next| lane(FamilyIndex(next.family)));
    let worker = [lane(FamilyIndex::AGENT)].into_iter().chain(next).collect();
    let mut families = vec![
        family(1, vec![lane(WORKER)]),
        family(config.slots(), worker),
    ];
    families.extend(config.next.iter().map(|_| family(1, vec![])));
    Topology::new(families).expect("the test's numbers are in bounds")
}

struct Sandbox {
    guardian: Guardian,
    lines: Vec<Option<OwnedFd>>,
}

impl Sandbox {
    fn admit(&mut self, family: FamilyIndex) -> OwnedFd {
        self.guardian.make_family(family).expect("a family segment");
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let pair = socketpair(AddressFamily::UNIX, kind, flags, None);
        let (ours, theirs) = pair.expect("a socket pair");
        self.lines[family.index()] = Some(ours);
        theirs
    }

    fn join_as_agent(&mut self) -> (Participant, Bus<Mapping>) {
        let line = self.admit(FamilyIndex::AGENT);
        let patience = Duration::from_secs(20);
        let joined = thread::spawn(move || Participant::attach(line, FamilyIndex::AGENT, patience));
        while !joined.is_finished() {
            self.serve();
        }
        joined
            .join()
            .expect("attach does not panic")
            .expect("the agent attaches")
    }

    /// Starts the worker; the shell moves its socket to descriptor 3.
    fn start(&mut self, config: &WorkerConfig, command: &[String]) -> Child {
        let line = self.admit(WORKER);
        let mut shell = Command::new("/bin/sh");
        shell
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 0</dev/null >&2"])
            .args(command)
            .env(WORKER_VARIABLE, config.to_json())
            .stdin(Stdio::from(line));
        shell.spawn().expect("the worker starts")
    }

    fn serve(&mut self) {
        for index in 0..self.lines.len() {
            while let Some(line) = &self.lines[index] {
                match socket::receive(line, false) {
                    Ok((bytes, _)) if !bytes.is_empty() => self.react(index, &bytes),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    _ => self.lines[index] = None,
                }
            }
        }
    }

    fn react(&mut self, index: usize, bytes: &[u8]) {
        let lines = &self.lines;
        let send = |to: usize, bytes: &[u8], fds: &[BorrowedFd<'_>]| {
            if let Some(line) = &lines[to] {
                socket::send(line, bytes, fds).expect("the other side is there");
            }
        };
        let family = FamilyIndex(index as u16);
        match self
            .guardian
            .handle(family, bytes)
            .expect("the handshake goes on")
        {
            Reaction::Reply(bytes, fds) => send(index, &bytes, &fds),
            Reaction::Refuse(bytes) => send(index, &bytes, &[]),
            Reaction::Sealed => {
                let (bytes, fds) = self.guardian.peers_message(family);
                send(index, &bytes, &fds);
                for other in self.guardian.others(family) {
                    let (bytes, fds) = self.guardian.update_message(family);
                    send(other.index(), &bytes, &fds);
                }
            }
            Reaction::Attached | Reaction::Done | Reaction::Unknown => {}
        }
    }
}

fn publish(instance: &mut sandpipe::Instance<Mapping>, header: &MessageHeader, data: &[u8]) {
    let loan = (data.len() > INLINE_MAX).then(|| {
        let loan = instance.loan(data.len()).expect("few events are under way");
        instance.write(&loan, 0, data);
        loan
    });
    let payload = loan.as_ref().map_or(Payload::Inline(data), Payload::Loaned);
    instance
        .stage(WORKER, header, payload, TraceStamps::default())
        .expect("few events are under way");
    instance.commit(Ack::NOTHING);
}

fn reason_of(dead: &[u8]) -> &[u8] {
    split_dead(dead).expect("a reason and an event").0
}

fn told(config: &WorkerConfig, bus: &Bus<Mapping>, delivery: &sandpipe::Delivery) -> String {
    let header = delivery.message.header;
    let payload = bus.payload(delivery);
    let payload = payload.expect("the worker names its own chunks");
    let hex = to_hex(&payload);
    let root = header.root.0;
    match header.kind {
        Kind::Final => format!("final {root} {hex}"),
        Kind::Dead => format!(
            "failed {root} {:?} {}",
            header.failure,
            to_hex(reason_of(&payload))
        ),
        Kind::Failed => format!("failed {root} {:?} {hex}", header.failure),
        _ => {
            let to = config
                .next
                .iter()
                .find(|next| next.family == header.queue.0);
            let grain = to.map_or("?", |next| next.grain.as_str());
            format!("output {root} {grain} {hex}")
        }
    }
}

fn terminate(child: &Child) {
    let pid = Pid::from_child(child);
    let _ = kill_process(pid, Signal::TERM);
    thread::sleep(Duration::from_millis(5));
}

fn stdin_lines() -> Lines<String> {
    let (sender, lines) = channel();
    thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

fn say(line: &str) {
    println!("{line}");
    let _ = io::stdout().flush();
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hex");
    (0..text.len() / 2).map(|index| digits(2 * index)).collect()
}

//! A memory cgroup around one participant: what is charged to it, and how it ends past its limit.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::{Duration, Instant};

use sandpipe::layout::PAGE;
use sandpipe::recover::Repair;
use sandpipe::{
    Ack, Bus, ChunkClass, FamilyIndex, FamilySpec, Mapping, Memory, Participant, Payload,
    SlotIndex, Target, Topology, TraceStamps,
};

use crate::house::header;
use crate::sandbox::{Sandbox, Watchdog, exit};

const AGENT: FamilyIndex = FamilyIndex::AGENT;
const GRAIN: FamilyIndex = FamilyIndex(1);
const S0: SlotIndex = SlotIndex(0);

const MIB: usize = 1 << 20;
/// The only chunk of each family.
const CHUNK: usize = 24 * MIB;
/// What a process that attaches needs for itself, under AddressSanitizer too, is well below it;
/// the control pages of a family are above it.
const LIMIT: usize = 12 * MIB;

/// The memory cgroup of one process, of v1 or v2; removed when dropped.
struct Cgroup {
    path: PathBuf,
    is_v1: bool,
}

impl Cgroup {
    /// `None`, and the test is skipped by name, where this machine gives us none.
    fn new(test: &str, limit: usize) -> Option<Cgroup> {
        let made = memory_controller().and_then(|(base, is_v1)| Cgroup::make(&base, is_v1, limit));
        made.inspect_err(|reason| _ = writeln!(io::stderr(), "SKIP {test}: {reason}"))
            .ok()
    }

    fn make(base: &Path, is_v1: bool, limit: usize) -> Result<Cgroup, String> {
        let nanos = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos();
        let path = base.join(format!("sandpipe-test-{}-{nanos}", std::process::id()));
        fs::create_dir(&path).map_err(|error| format!("mkdir {}: {error}", path.display()))?;
        let cgroup = Cgroup { path, is_v1 };
        let file = cgroup.file("memory.limit_in_bytes", "memory.max");
        let written = fs::write(&file, limit.to_string());
        written.map_err(|error| format!("{}: {error}", file.display()))?;
        Ok(cgroup)
    }

    fn file(&self, v1: &str, v2: &str) -> PathBuf {
        self.path.join(if self.is_v1 { v1 } else { v2 })
    }

    /// Moves the calling process in; what it has touched before stays charged elsewhere.
    fn enter(&self) {
        fs::write(self.path.join("cgroup.procs"), "0").unwrap_or_else(|_| exit(7));
    }

    fn usage(&self) -> usize {
        let file = self.file("memory.usage_in_bytes", "memory.current");
        fs::read_to_string(file).unwrap().trim().parse().unwrap()
    }

    fn kills(&self) -> u64 {
        let text = fs::read_to_string(self.file("memory.oom_control", "memory.events")).unwrap();
        let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        kills.unwrap().parse().unwrap()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Its process may still be on its way out.
        let until = Instant::now() + Duration::from_secs(10);
        while fs::remove_dir(&self.path).is_err() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The directory below which this process makes memory cgroups; whether it is one of v1.
fn memory_controller() -> Result<(PathBuf, bool), String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mounts: Vec<Vec<&str>> = mounts.lines().map(|l| l.split(' ').collect()).collect();
    let v1 = mounts.iter().find(|fields| {
        fields[2] == "cgroup" && fields[3].split(',').any(|option| option == "memory")
    });
    let v2 = mounts.iter().find(|fields| fields[2] == "cgroup2");
    if let Some(fields) = v1 {
        return Ok((fields[1].into(), true));
    }
    let v2 = Path::new(v2.ok_or("no cgroups are mounted here")?[1]);
    let children = v2.join("cgroup.subtree_control");
    // Refused where it is not ours to give; the look tells.
    let _ = fs::write(&children, "+memory");
    let given = fs::read_to_string(&children).unwrap_or_default();
    let given = given.split_whitespace().any(|name| name == "memory");
    given
        .then(|| (v2.into(), false))
        .ok_or("no cgroup has the memory controller".into())
}

/// An agent and a grain: 16 MiB of control pages and one large chunk each.
fn topology() -> Topology {
    let family = |queue: FamilyIndex| FamilySpec {
        slots: 2,
        targets: vec![Target {
            queue,
            lane_slots: 1 << 16,
        }],
        chunks: vec![ChunkClass {
            bytes: CHUNK as u64,
            count: 1,
        }],
    };
    let topology = Topology::new(vec![family(GRAIN), family(AGENT)]).unwrap();
    for family in [AGENT, GRAIN] {
        assert!(topology.layout(family).control_bytes > LIMIT + 4 * MIB);
    }
    topology
}

/// A sandbox whose agent is there, and its end if it hangs.
fn sandbox() -> (Watchdog, Sandbox, Participant, Bus<Mapping>) {
    let watchdog = Watchdog::new(Duration::from_secs(100));
    let mut sandbox = Sandbox::new(topology());
    let (participant, agent) = sandbox.join(AGENT);
    (watchdog, sandbox, participant, agent)
}

/// How a participant ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Well,
    Killed,
}

/// Runs `role` as an attached family whose process, its attach included, is in `cgroup`; how it
/// ended, and what was repaired of it. Anything
/// but a good end and the kernel's SIGKILL, above all a SIGBUS, fails the test.
fn run(
    sandbox: &mut Sandbox,
    family: FamilyIndex,
    cgroup: &Cgroup,
    role: impl FnOnce(Bus<Mapping>),
) -> (End, Repair) {
    let before = cgroup.kills();
    let pid = sandbox.spawn_detached(family, |socket| {
        cgroup.enter();
        match Participant::attach(socket, family, Duration::from_secs(20)) {
            Ok((_participant, bus)) => role(bus),
            Err(_) => exit(9),
        }
    });
    let mut status = 0;
    // SAFETY: waits for the own child.
    while unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } == 0 {
        sandbox.serve();
    }
    let repair = sandbox.kill_family(family, pid);
    if libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL {
        assert!(cgroup.kills() > before, "killed, but not for its memory");
        return (End::Killed, repair);
    }
    assert_eq!(status, 0, "neither a good end nor the kernel's kill");
    (End::Well, repair)
}

/// Writes every control page of the own family, reads every one of the peers'.
fn touch_control_pages(bus: &Bus<Mapping>) {
    for family in [AGENT, GRAIN] {
        let segment = bus.segment(family).unwrap();
        for at in (0..bus.topology().layout(family).control_bytes).step_by(PAGE) {
            if segment.is_writable() {
                segment.word(at).fetch_add(0, SeqCst);
            } else {
                segment.word(at).load(SeqCst);
            }
        }
    }
}

#[test]
fn touching_control_pages_costs_a_participant_nothing_and_never_kills_it() {
    let test = "touching_control_pages_costs_a_participant_nothing_and_never_kills_it";
    let Some(cgroup) = Cgroup::new(test, LIMIT) else {
        return;
    };
    let (_watchdog, mut sandbox, ..) = sandbox();
    // Twice: the second segment is a copy of the first.
    for _ in 0..2 {
        let (end, _) = run(&mut sandbox, GRAIN, &cgroup, |bus| {
            touch_control_pages(&bus)
        });
        assert_eq!((end, cgroup.kills()), (End::Well, 0));
    }
    assert!(cgroup.usage() < LIMIT / 2, "{} bytes", cgroup.usage());
}

#[test]
fn under_any_memory_limit_an_attach_succeeds_or_is_killed_and_the_next_one_succeeds() {
    let test = "under_any_memory_limit_an_attach_succeeds_or_is_killed_and_the_next_one_succeeds";
    let (_watchdog, mut sandbox, ..) = sandbox();
    let mut ends = Vec::new();
    for limit in (0..=12).map(|step| PAGE << step) {
        let Some(cgroup) = Cgroup::new(test, limit) else {
            return;
        };
        let (end, _) = run(&mut sandbox, GRAIN, &cgroup, |bus| {
            touch_control_pages(&bus)
        });
        ends.push(end);
    }
    assert_eq!(ends[0], End::Killed, "{ends:?}");
    assert_eq!(ends[12], End::Well, "{ends:?}");
    // Between them either may be: the kernel charges pages in batches for each CPU, so a limit near
    // what an attach needs holds on one CPU and not on another. What is promised is that it ends
    // one way or the other (see `run`), and leaves the next one room.
    let (_participant, grain) = sandbox.join(GRAIN);
    touch_control_pages(&grain);
}

#[test]
fn the_pages_of_a_chunk_are_charged_to_their_writer_and_cost_a_reader_nothing() {
    let test = "the_pages_of_a_chunk_are_charged_to_their_writer_and_cost_a_reader_nothing";
    let (Some(writers), Some(readers)) = (Cgroup::new(test, 2 * CHUNK), Cgroup::new(test, LIMIT))
    else {
        return;
    };
    let (_watchdog, mut sandbox, ..) = sandbox();
    let (end, _) = run(&mut sandbox, GRAIN, &writers, |bus| {
        let mut instance = bus.instance(S0);
        let loan = instance.loan(CHUNK).unwrap();
        fill(&bus);
        let (header, payload) = (header(1, AGENT), Payload::Loaned(&loan));
        let staged = instance.stage(AGENT, &header, payload, TraceStamps::default());
        staged.unwrap();
        instance.commit(Ack::NOTHING);
    });
    assert_eq!(end, End::Well);
    assert!(writers.usage() >= CHUNK, "{} bytes", writers.usage());
    let (end, _) = run(&mut sandbox, AGENT, &readers, |bus| {
        let (delivery, _) = bus.receiver().receive().unwrap();
        assert_eq!(delivery.source, GRAIN);
        let (at, bytes) = bus.topology().layout(GRAIN).chunk_data(0).unwrap();
        let segment = bus.segment(GRAIN).unwrap();
        let words = segment.words(at, bytes as usize / 8);
        assert!(words.iter().all(|word| word.load(Relaxed) == 7));
    });
    assert_eq!((end, readers.kills()), (End::Well, 0));
    assert!(readers.usage() < LIMIT / 2, "{} bytes", readers.usage());
}

/// Writes the family's only chunk from end to end.
fn fill(bus: &Bus<Mapping>) {
    let (at, bytes) = bus.own_layout().chunk_data(0).unwrap();
    let segment = bus.segment(bus.family()).unwrap();
    for word in segment.words(at, bytes as usize / 8) {
        word.store(7, Relaxed);
    }
}

#[test]
fn past_its_limit_the_writer_of_a_chunk_is_killed_and_its_loan_comes_back() {
    let test = "past_its_limit_the_writer_of_a_chunk_is_killed_and_its_loan_comes_back";
    let Some(cgroup) = Cgroup::new(test, LIMIT) else {
        return;
    };
    let (_watchdog, mut sandbox, mut participant, mut agent) = sandbox();
    let (end, repair) = run(&mut sandbox, GRAIN, &cgroup, |bus| {
        let _loan = bus.instance(S0).loan(CHUNK).unwrap();
        fill(&bus);
    });
    assert_eq!((end, repair.freed_chunks), (End::Killed, 1));
    let (_grain, bus) = sandbox.join(GRAIN);
    bus.instance(S0).loan(CHUNK).unwrap();
    participant.update(&mut agent).unwrap();
    touch_control_pages(&agent);
}

//! The grain of the tests: what it does is said by the event's first line, for one grain or all:
//! `GRAIN: sleep 100`, or `*: panic`. Then it appends its letter.

mod reach;

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use sandpipe_grain::{Context, Event, HandlerError, Output};

fn main() -> std::process::ExitCode {
    if let Ok(text) = std::env::var("FAIL_AT_START") {
        eprintln!("Traceback: {text}");
        return std::process::ExitCode::from(1);
    }
    if std::env::var_os("STORM").is_some() {
        storm();
    }
    sandpipe_grain::run(handle)
}

/// Rings the agent's bell for ever and handles nothing.
fn storm() -> ! {
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
    let config = std::env::var(sandpipe_grain::WORKER_VARIABLE).expect("init sets it");
    let config: sandpipe_grain::WorkerConfig = serde_json::from_str(&config).expect("valid");
    // Through a descriptor of this very process, the inherited one needs no unsafe code.
    let own = pidfd_open(getpid(), PidfdFlags::empty()).expect("our own");
    let fd = sandpipe_grain::ATTACH_FD;
    let line = pidfd_getfd(own, fd, PidfdGetfdFlags::empty()).expect("init gave it to us");
    let family = sandpipe::FamilyIndex(config.family);
    let attached = sandpipe::Participant::attach(line, family, Duration::from_secs(10));
    let (mut participant, mut bus) = attached.expect("the guardian lives");
    let bell = bus.bell(sandpipe::FamilyIndex::AGENT);
    loop {
        (0..1000).for_each(|_| bell.ring_all());
        participant.update(&mut bus).expect("the guardian lives");
    }
}

fn handle(event: &Event, context: &mut Context<'_>) -> Result<Output, HandlerError> {
    let text = String::from_utf8_lossy(event.data()).into_owned();
    note(&text, context);
    if let Some((whom, rest)) = text.split_once(": ")
        && (whom == "*" || whom == context.grain())
    {
        obey(rest, context)?;
        if rest.starts_with("descriptors") {
            return Ok(Output::from(descriptors()));
        }
        if let Some(rest) = rest.strip_prefix("reach ") {
            return Ok(Output::from(reach::reach(rest)));
        }
        if let Some(rest) = rest.strip_prefix("grow ") {
            let bytes: usize = rest.split(' ').next().unwrap_or_default().parse()?;
            return Ok(Output::from(vec![b'x'; bytes]));
        }
    }
    Ok(Output::from(format!("{text}{}", context.grain())))
}

/// What stands behind each descriptor of this process, a line each.
fn descriptors() -> String {
    let found = (0..4096).filter_map(|number| {
        let target = std::fs::read_link(format!("/proc/self/fd/{number}")).ok()?;
        Some(format!("{number} {}\n", target.display()))
    });
    found.collect()
}

/// Appends a line to the file that the environment names, so that a test can count.
fn note(text: &str, context: &Context<'_>) {
    let Ok(path) = std::env::var("NOTES") else {
        return;
    };
    let line = format!("{} {} {}\n", std::process::id(), context.grain(), text);
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path);
    if let Ok(mut file) = file {
        let _ = file.write_all(line.as_bytes());
    }
}

/// Does something outside the workflow, as a client of an outside service would: its line says for
/// whom, under which idempotency key, and what.
fn effect(what: &str, context: &Context<'_>) -> Result<(), HandlerError> {
    let what = what.split(' ').next().unwrap_or_default();
    let key = context.idempotency_key();
    let line = format!("{} {key} {what}\n", context.grain());
    let mut file = std::fs::OpenOptions::new();
    let mut file = file
        .create(true)
        .append(true)
        .open(std::env::var("NOTES")? + ".effects")?;
    // One call, so that a kill leaves a whole line or none.
    file.write_all(line.as_bytes())?;
    Ok(())
}

fn obey(order: &str, context: &Context<'_>) -> Result<(), HandlerError> {
    let (order, value) = order.trim().split_once(' ').unwrap_or((order.trim(), ""));
    let number = value
        .split(' ')
        .next()
        .unwrap_or_default()
        .parse::<u64>()
        .unwrap_or(0);
    match order {
        "sleep" => std::thread::sleep(Duration::from_millis(number)),
        "fail" => return Err(HandlerError::from("it was told to fail")),
        "log" => {
            println!("plain on stdout");
            eprintln!("plain on stderr");
            context.log("two lines\nwith their event");
        }
        "flood" => flood(number),
        "panic" => panic!("it was told to panic"),
        "exit" => std::process::exit(3),
        "abort" => std::process::abort(),
        "effect" => effect(value, context)?,
        "cursed" if !is_cured() => std::process::abort(),
        "child" => {
            std::process::Command::new("sleep").arg("1000").spawn()?;
        }
        "hoard" => {
            // Written page by page, so that it is really there.
            let bytes = vec![1u8; usize::try_from(number << 20).unwrap_or(0)];
            std::hint::black_box(&bytes);
        }
        "spin" => {
            let begin = std::time::Instant::now();
            while begin.elapsed() < Duration::from_millis(number) {}
        }
        "crowd" => crowd(number)?,
        "vandalise" => vandalise(Duration::from_millis(number))?,
        _ => {}
    }
    Ok(())
}

/// Whether the test has said that what killed instances kills none any more.
fn is_cured() -> bool {
    std::env::var("NOTES").is_ok_and(|notes| std::path::Path::new(&(notes + ".cured")).exists())
}

/// Starts that many children; the error says how many it were when the next one was refused. The
/// children are kept for a second, so that a test can see what else can be done meanwhile.
fn crowd(count: u64) -> Result<(), HandlerError> {
    let start = |_| std::process::Command::new("sleep").arg("1000").spawn();
    let started: Vec<_> = (0..count).map(start).take_while(Result::is_ok).collect();
    std::thread::sleep(Duration::from_secs(1));
    if started.len() as u64 == count {
        return Ok(());
    }
    let refused = start(0).err().map(|error| error.to_string());
    let reason = format!("{} children, then: {refused:?}", started.len());
    Err(HandlerError::from(reason.as_str()))
}

/// Writes noise over all shared memory that this process may write, again and again: its family's
/// segment (lanes, commits, descriptors, chunks) and the hint page.
fn vandalise(time: Duration) -> Result<(), HandlerError> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let shared = maps.lines().filter(|line| line.contains(" rw-s "));
    let shared: Vec<std::ops::Range<u64>> = shared.filter_map(range_of).collect();
    // Through this file, a store into a mapping needs no pointer.
    let memory = std::fs::File::options()
        .write(true)
        .open("/proc/self/mem")?;
    let (begin, mut noise) = (std::time::Instant::now(), 0x5eed_u64);
    let mut random = || {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        noise
    };
    while begin.elapsed() < time {
        for page in shared.iter().flat_map(|range| range.clone().step_by(4096)) {
            let mut words = [0; 4096];
            for word in words.chunks_exact_mut(8) {
                // Half of them near what could be true.
                let shift = random() % 2 * 60;
                word.copy_from_slice(&(random() >> shift).to_le_bytes());
            }
            memory.write_all_at(&words, page)?;
        }
    }
    Ok(())
}

/// The addresses of a line of `/proc/self/maps`.
fn range_of(line: &str) -> Option<std::ops::Range<u64>> {
    let (from, to) = line.split_once(' ')?.0.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some(number(from)?..number(to)?)
}

/// Writes so many MiB to standard error.
fn flood(mib: u64) {
    let line = [[b'f'; 1023].as_slice(), b"\n"].concat();
    let mib_of_lines = line.repeat(1024);
    for _ in 0..mib {
        let _ = std::io::stderr().write_all(&mib_of_lines);
    }
}

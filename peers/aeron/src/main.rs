//! Aeron over shared memory (`aeron:ipc`): an exclusive publication, an image that is polled, and
//! the C media driver as a third process that is not pinned.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::ffi::CString;
use std::fmt::Display;
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

use rusteron_client::{
    Aeron, AeronBufferClaim, AeronContext, AeronExclusivePublication,
    AeronFragmentClosureAssembler, AeronImage, AeronSubscription, Handlers,
};
use rusteron_media_driver::{AeronDriver, AeronDriverContext};
use sandpipe_link::program::{Kind, Side, Task, run, unpin};
use sandpipe_link::{Link, Seen, read};

/// Largest message that fits into one fragment; a longer one is put together from several.
const FRAGMENT_BYTES_MAX: usize = 65_504 - 32;
/// How long the other side may take to appear or to answer.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// What the driver sleeps when it has nothing to do: it must keep moving the publisher's limit.
const DRIVER_SLEEP: Duration = Duration::from_micros(100);
/// A log of three such terms: smaller than the default of 64 MiB, which has a longer tail.
const CHANNEL: &str = "aeron:ipc?term-length=16m";
/// Set for the driver's process: its directory.
const DRIVER_DIR: &str = "SANDPIPE_AERON_DRIVER";

fn main() -> ExitCode {
    match std::env::var_os(DRIVER_DIR) {
        Some(dir) => {
            let ended = drive(Path::new(&dir));
            ended.map_or_else(
                |error| {
                    eprintln!("{error}");
                    ExitCode::FAILURE
                },
                |()| ExitCode::SUCCESS,
            )
        }
        None => run(open),
    }
}

fn said(error: impl Display) -> String {
    format!("Aeron: {error}")
}

fn dir_name(dir: &Path) -> Result<CString, String> {
    CString::new(dir.as_os_str().as_encoded_bytes()).map_err(said)
}

/// The driver's process.
fn drive(dir: &Path) -> Result<(), String> {
    let parent = parent_id();
    unpin();
    let context = AeronDriverContext::new().map_err(said)?;
    context.set_dir(&dir_name(dir)?).map_err(said)?;
    context.set_dir_delete_on_start(true).map_err(said)?;
    let driver = AeronDriver::new(&context).map_err(said)?;
    driver.start(true).map_err(said)?;
    loop {
        if driver.main_do_work().map_err(said)? == 0 {
            std::thread::sleep(DRIVER_SLEEP);
        }
        if parent_id() != parent {
            // Nobody else is left to remove a log of many MiB.
            return std::fs::remove_dir_all(dir).map_err(said);
        }
    }
}

/// The driver, ended together with its files.
struct Driver {
    process: Child,
    dir: PathBuf,
}

impl Driver {
    fn start(dir: &Path) -> Result<Driver, String> {
        let program = std::env::current_exe().map_err(said)?;
        let process = Command::new(program)
            .env(DRIVER_DIR, dir)
            .env("AERON_THREADING_MODE", "SHARED")
            .env("AERON_IPC_MTU_LENGTH", "65504")
            .env("AERON_TERM_BUFFER_SPARSE_FILE", "false")
            .spawn()
            .map_err(said)?;
        let dir = dir.to_owned();
        Ok(Driver { process, dir })
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // All fail only if it is gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

struct Ends {
    publication: AeronExclusivePublication,
    image: AeronImage,
    subscription: AeronSubscription,
    assembler: AeronFragmentClosureAssembler,
    /// Received and not asked for yet: one poll may give several.
    seen: VecDeque<Seen>,
    fragments_max: usize,
    touched: usize,
    _aeron: Aeron,
    _driver: Option<Driver>,
}

fn open(task: &Task, side: &Side) -> Result<Ends, String> {
    let dir = PathBuf::from(format!("/dev/shm/sandpipe-bench-aeron-{}", side.tag));
    let driver = (!side.second).then(|| Driver::start(&dir));
    let driver = driver.transpose()?;
    let start = Instant::now();
    let wait = |what: &str| {
        std::thread::sleep(Duration::from_millis(2));
        match start.elapsed() < SILENCE_MAX {
            true => Ok(()),
            false => Err(format!("Aeron: {what} does not appear")),
        }
    };
    while !dir.join("cnc.dat").exists() {
        wait("the driver")?;
    }
    let context = AeronContext::new().map_err(said)?;
    context.set_dir(&dir_name(&dir)?).map_err(said)?;
    let aeron = Aeron::new(&context).map_err(said)?;
    aeron.start().map_err(said)?;
    let (out, back) = if side.second { (2, 1) } else { (1, 2) };
    let channel = CString::new(CHANNEL).map_err(said)?;
    let publication = aeron
        .async_add_exclusive_publication(&channel, out)
        .and_then(|adding| adding.poll_blocking(SILENCE_MAX))
        .map_err(said)?;
    let subscription = aeron
        .async_add_subscription(c"aeron:ipc", back, Handlers::NONE, Handlers::NONE)
        .and_then(|adding| adding.poll_blocking(SILENCE_MAX))
        .map_err(said)?;
    let image = loop {
        if let (true, Some(image)) = (publication.is_connected(), subscription.image_at_index(0)) {
            break image;
        }
        wait("the other process")?;
    };
    let large = task.len > FRAGMENT_BYTES_MAX;
    let fragments_max = match (task.kind, large) {
        (Kind::RoundTrip, false) => 1,
        (Kind::RoundTrip, true) => 20,
        (Kind::OneWay, _) => 64,
    };
    Ok(Ends {
        publication,
        image,
        subscription,
        assembler: AeronFragmentClosureAssembler::new().map_err(said)?,
        seen: VecDeque::new(),
        fragments_max,
        touched: task.touched,
        _aeron: aeron,
        _driver: driver,
    })
}

impl Ends {
    fn poll(&mut self, large: bool) -> Result<(), String> {
        let (seen, touched) = (&mut self.seen, self.touched);
        let mut take = |bytes: &[u8]| seen.push_back(read(&bytes[..touched]));
        if large {
            self.assembler
                .poll(
                    &self.subscription,
                    &mut take,
                    |take, bytes, _| take(bytes),
                    self.fragments_max,
                )
                .map_err(said)?;
        } else {
            self.image
                .poll_fn(|bytes, _| take(bytes), self.fragments_max)
                .map_err(said)?;
        }
        Ok(())
    }
}

impl Link for Ends {
    type Error = String;

    fn send(&mut self, message: &[u8]) -> Result<(), String> {
        while !self.try_send(message)? {
            std::hint::spin_loop();
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<Seen, String> {
        let large = self.touched > FRAGMENT_BYTES_MAX;
        let mut looks = 0_u32;
        let mut start = None;
        loop {
            if let Some(seen) = self.seen.pop_front() {
                return Ok(seen);
            }
            self.poll(large)?;
            looks = looks.wrapping_add(1);
            if looks & 0xf_ffff == 0
                && start.get_or_insert_with(Instant::now).elapsed() > SILENCE_MAX
            {
                return Err("Aeron: silent".to_owned());
            }
        }
    }

    fn try_send(&mut self, message: &[u8]) -> Result<bool, String> {
        let claim = AeronBufferClaim::new_zeroed_on_stack();
        let large = message.len() > FRAGMENT_BYTES_MAX;
        let sent = match large {
            true => self.publication.offer(message).map(|_| ()),
            false => self
                .publication
                .try_claim(message.len(), &claim)
                .map(|_| ()),
        };
        match sent {
            Err(error) if error.is_retryable() => return Ok(false),
            Err(error) => return Err(said(error)),
            Ok(()) if large => {}
            Ok(()) => {
                claim.data()[..self.touched].copy_from_slice(&message[..self.touched]);
                claim.commit().map_err(said)?;
            }
        }
        Ok(true)
    }

    fn out_of_order(expected: u64, seen: Seen) -> String {
        format!("Aeron: message {} came in place of {expected}", seen.first)
    }
}

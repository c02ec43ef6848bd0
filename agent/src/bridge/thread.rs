//! The bus thread's loop.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sandpipe::wait::SpinBudget;
use sandpipe_global_bus::{AppendError, GlobalBus, ReplayError};
use tokio::sync::oneshot;

use super::appends::Appends;
use super::bounds::Bounds;
use super::clock::Clock;
use super::limits::Limits;
use super::local::{LocalBus, Publish, Refused, SandboxSource};
use super::mailbox::{Mailbox, Post, Stop, Waiter};
use super::replace::Replacement;
use super::status::GrainState;
use crate::core::{Command, Core, Reply, Submit, Workflow};
use crate::telemetry::Telemetry;

/// Messages that are read before everything else gets its turn.
const POLL_LIMIT: usize = 256;

/// How often health is looked at, and how often marks are committed.
const HOUSEKEEPING: Duration = Duration::from_millis(100);
const MARKS: Duration = Duration::from_secs(1);

/// The longest park: a bell may be lost with its ringer.
const PARK: Duration = Duration::from_millis(50);

/// The longest park while requests are open: nobody rings for a backup copy.
const COPIES: Duration = Duration::from_millis(2);

/// What a bus thread is made of.
pub struct Settings {
    /// The application.
    pub workflow: Workflow,
    /// Where its messages are backed up.
    pub global: Box<dyn GlobalBus>,
    /// Where its sandbox comes from.
    pub sandbox: Box<dyn SandboxSource>,
    /// How it is reached.
    pub mailbox: Arc<Mailbox>,
    /// The largest request.
    pub max_payload_bytes: usize,
    /// Who hears of the paths of traced requests.
    pub telemetry: Telemetry,
    /// What it may cost the agent.
    pub bounds: Bounds,
}

/// Why a bus thread has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was told to.
    Stopped,
    /// Another agent has taken the sandbox over.
    TakenOver,
}

/// One application's bus thread.
pub struct BusThread {
    pub(super) core: Core<Waiter>,
    pub(super) app: Arc<str>,
    pub(super) backup: bool,
    pub(super) partitions: u32,
    pub(super) global: Box<dyn GlobalBus>,
    pub(super) source: Box<dyn SandboxSource>,
    pub(super) local: Option<Box<dyn LocalBus>>,
    /// Why there is no local bus.
    pub(super) absent: Arc<str>,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) posts: VecDeque<Post>,
    pub(super) appends: Appends,
    pub(super) clock: Clock,
    pub(super) workers: Vec<GrainState>,
    pub(super) attachments: u64,
    pub(super) adopted: bool,
    pub(super) housekeeping: Instant,
    pub(super) marks: Instant,
    pub(super) retry: Instant,
    pub(super) stopping: Option<(Instant, oneshot::Sender<usize>)>,
    pub(super) max_payload_bytes: usize,
    pub(super) telemetry: Telemetry,
    pub(super) limits: Limits,
    /// The most that waited in each queue, the agent's first.
    pub(super) high_water: Vec<usize>,
    pub(super) replacing: Option<Box<Replacement>>,
    /// Requests that came while a version is replaced.
    pub(super) held: VecDeque<Submit<Waiter>>,
    pub(super) fenced: bool,
    /// Grains that were found out since the start, by index: what they wrote.
    pub(super) refused: Vec<Refused>,
}

impl BusThread {
    /// Recovers what the global bus holds of the application, and makes or adopts its sandbox.
    /// A sandbox that cannot be made is tried again later; its requests get 503 with the reason.
    ///
    /// # Errors
    /// The replay's.
    pub fn new(settings: Settings) -> Result<BusThread, ReplayError> {
        let Settings {
            workflow,
            mut global,
            sandbox,
            mailbox,
            max_payload_bytes,
            telemetry,
            bounds,
        } = settings;
        let waker = Arc::clone(&mailbox);
        global.set_waker(Arc::new(move || waker.wake()));
        let now = Instant::now();
        let mut thread = BusThread {
            app: Arc::clone(&workflow.app),
            backup: workflow.backup,
            partitions: workflow.partitions,
            core: Core::new(workflow),
            global,
            source: sandbox,
            local: None,
            absent: "the sandbox is being made".into(),
            mailbox,
            posts: VecDeque::new(),
            appends: Appends::default(),
            clock: Clock::start(),
            workers: Vec::new(),
            attachments: 0,
            adopted: false,
            housekeeping: now,
            marks: now,
            retry: now,
            stopping: None,
            max_payload_bytes,
            telemetry,
            limits: Limits::new(bounds, now),
            high_water: Vec::new(),
            replacing: None,
            held: VecDeque::new(),
            fenced: false,
            refused: Vec::new(),
        };
        thread.core.begin_recovery();
        thread.replay()?;
        thread.attach();
        Ok(thread)
    }

    /// Runs until it is stopped, or until another agent takes the sandbox over.
    pub fn run(mut self) -> End {
        // Grains need the cores as well.
        let mut budget = SpinBudget::new();
        let mut rung = false;
        while !self.is_done() {
            let moved = match self.local {
                Some(_) => budget.spin(|| self.turn()),
                None => self.turn(),
            };
            if !moved {
                let begin = Instant::now();
                if std::mem::take(&mut rung) {
                    self.count_empty_wake(begin);
                }
                rung = self.park(begin);
                self.count_wake(rung);
                budget.slept(begin.elapsed());
            }
        }
        self.end()
    }

    /// Looks at everything once; whether anything was there.
    fn turn(&mut self) -> bool {
        let mut moved = self.take_posts();
        moved |= self.read_local();
        moved |= self.flush();
        moved |= self.go_on_replacing();
        if let Some(number) = self.appends.acknowledged(&*self.global) {
            self.core.durable(self.clock.now(), number);
            self.carry_out();
            moved = true;
        }
        let now = Instant::now();
        if now >= self.housekeeping {
            self.housekeeping = now + HOUSEKEEPING;
            self.keep_house(now);
        }
        moved
    }

    fn take_posts(&mut self) -> bool {
        self.mailbox.take_news();
        let mut posts = std::mem::take(&mut self.posts);
        self.mailbox.take(&mut posts);
        let moved = !posts.is_empty();
        for post in posts.drain(..) {
            self.take_post(post);
            self.carry_out();
        }
        self.posts = posts;
        moved
    }

    fn take_post(&mut self, post: Post) {
        match post {
            Post::Submit(submit) if self.replacing.is_some() => self.hold(submit),
            Post::Submit(submit) => self.submit(submit),
            Post::Collect(id, waiter) => self.core.collect(id, waiter),
            // Whoever asked may be gone.
            Post::Status(waiter) => drop(waiter.send(self.status())),
            Post::DeadLetters(waiter) => drop(waiter.send(self.dead_letters())),
            Post::DeadLetter(event, waiter) => drop(waiter.send(self.core.dead_letter(event))),
            Post::DeleteLetter(event, waiter) => {
                self.core.delete_letter(self.clock.now(), event, waiter);
            }
            Post::Redrive(event, waiter) => self.redrive(event, waiter),
            Post::Workers(number, states) if number == self.source.number() => {
                self.workers = states;
            }
            // Of a sandbox that does not serve yet, or no more.
            Post::Workers(..) => {}
            Post::Replace(replacement) => self.begin_replacing(replacement),
            Post::Stop(Stop { patience, done }) => {
                self.give_up_replacing();
                self.stopping = Some((Instant::now() + patience, done));
            }
        }
    }

    pub(super) fn submit(&mut self, submit: Submit<Waiter>) {
        if let Some(reason) = self.not_ready() {
            let _ = submit.waiter.send(Reply::Unavailable(reason));
            return;
        }
        if submit.payload.len() > self.max_payload_bytes {
            // The front door has let it in under the limit of the version before.
            let reason = "the application was replaced by a version that takes less at once";
            let _ = submit.waiter.send(Reply::Unavailable(reason.into()));
            return;
        }
        self.look_at_spool();
        // Only those who need the disk pay for a look at it.
        if submit.must_be_durable() {
            self.look_at_health();
        }
        self.core.submit(self.clock.now(), submit);
    }

    pub(super) fn read_local(&mut self) -> bool {
        if self.appends.is_congested() {
            return false;
        }
        let Some(local) = &mut self.local else {
            return false;
        };
        let (core, now) = (&mut self.core, self.clock.now());
        let moved = local.poll(POLL_LIMIT, &mut |message| core.local(now, message)) > 0;
        let refused = local.take_refusal();
        if moved || self.core.has_backlog() {
            self.core.retry_full();
            self.carry_out();
        }
        if let Some(refused) = refused {
            self.quarantine(refused);
        }
        moved
    }

    /// Does what the core wants.
    pub(super) fn carry_out(&mut self) {
        while let Some(command) = self.core.next_command() {
            match command {
                Command::Append { number, record } => self.appends.push(number, record),
                Command::Publish(delivery) => {
                    // Before it is visible: an instance may take it before this thread goes on.
                    let now = self.clock.now();
                    let published = match &mut self.local {
                        Some(local) => local.publish(&delivery),
                        None => Publish::Full,
                    };
                    match published {
                        Publish::Done => self.core.published(now, delivery),
                        Publish::Full => self.core.full(delivery),
                        Publish::Never(why) => self.core.undeliverable(now, delivery, &why),
                    }
                }
                Command::Release(number) => {
                    if let Some(local) = &mut self.local {
                        local.release(number);
                    }
                }
                Command::Traced(path) => self.telemetry.offer(&self.app, path),
                // A client that hung up cancels only its waiting.
                Command::Answer { waiter, reply } => drop(waiter.send(reply)),
            }
        }
    }

    pub(super) fn flush(&mut self) -> bool {
        match self.appends.flush(&mut *self.global) {
            Ok(moved) => moved,
            Err(AppendError::Invalid(error)) => {
                let (bus, partitions) = (&*self.global, self.partitions);
                for record in self.appends.take_invalid(&error, bus, partitions) {
                    tracing::error!(id = %record.id, %error, "a message cannot be backed up");
                }
                true
            }
            Err(error) => {
                self.core.set_unavailable(Some(error.to_string().into()));
                false
            }
        }
    }

    fn keep_house(&mut self, now: Instant) {
        self.core.tick(self.clock.now());
        self.carry_out();
        self.look_at_health();
        if now >= self.marks {
            self.marks = now + MARKS;
            self.look_at_queues();
            if let Err(error) = self.global.commit_marks() {
                tracing::warn!(%error, "marks were not committed");
            }
        }
        if let Some(local) = &mut self.local
            && let Err(error) = local.update()
        {
            self.lose_sandbox(&error);
        }
        if self.local.is_none() && now >= self.retry && !self.fenced {
            self.recover_sandbox();
        }
    }

    /// Sleeps until there may be something; whether a ring ended it.
    fn park(&mut self, now: Instant) -> bool {
        if let Some(local) = &mut self.local
            && let Err(error) = local.update()
        {
            self.lose_sandbox(&error);
            return false;
        }
        if self.limits.forbid_waking(now) {
            // Nobody is announced: rings cost the ringer only, and what comes waits so long.
            std::thread::sleep(COPIES);
            return false;
        }
        let timeout = if self.core.has_backlog() {
            Duration::from_millis(1)
        } else if self.core.in_flight() > 0 {
            COPIES
        } else {
            PARK
        };
        self.mailbox.announce();
        let mailbox = &self.mailbox;
        let rung = match &mut self.local {
            Some(local) => local.park(timeout, &|| mailbox.is_awaited()),
            None => {
                std::thread::sleep(Duration::from_millis(5));
                false
            }
        };
        self.mailbox.awake();
        rung
    }

    fn is_done(&self) -> bool {
        let Some((deadline, _)) = &self.stopping else {
            return self.fenced;
        };
        self.core.is_idle() || self.local.is_none() || Instant::now() >= *deadline
    }

    fn end(mut self) -> End {
        let open = self.core.in_flight();
        if let Err(error) = self.global.close(Instant::now() + Duration::from_secs(5)) {
            tracing::error!(app = %self.app, %error, "not everything is backed up");
        }
        self.mailbox.set_ringer(None);
        self.local = None;
        let Some((_, done)) = self.stopping.take() else {
            return End::TakenOver;
        };
        self.source.shut_down(Duration::from_secs(3));
        let _ = done.send(open);
        End::Stopped
    }
}

impl Drop for BusThread {
    /// However it ends, also by a panic, nobody waits for it in vain.
    fn drop(&mut self) {
        self.mailbox.close();
    }
}

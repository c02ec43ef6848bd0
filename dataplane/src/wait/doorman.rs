//! A descriptor that becomes readable when a word moves, without io_uring: a thread sleeps on the
//! words and writes an eventfd.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use super::Watched;
use super::companion::Companion;
use crate::futex;

/// The thread and its eventfd.
#[derive(Debug)]
pub(super) struct Doorman {
    door: Arc<Door>,
    /// With the descriptor that becomes readable.
    thread: Companion<1>,
}

#[derive(Debug)]
struct Door {
    /// Counts the orders, moved under the order's lock; the thread sleeps on it between them.
    orders: AtomicU64,
    /// The last order that the thread is done with.
    done: AtomicU64,
    order: Mutex<Order>,
}

#[derive(Debug)]
enum Order {
    Rest,
    /// By address: the caller keeps the words mapped until it disarms.
    Watch {
        words: Vec<(usize, u32)>,
        until: Instant,
    },
    End,
}

/// How long the thread sleeps without orders between two looks.
const REST: Duration = Duration::from_secs(3600);

impl Doorman {
    pub(super) fn new() -> io::Result<Doorman> {
        let door = Arc::new(Door {
            orders: AtomicU64::new(0),
            done: AtomicU64::new(0),
            order: Mutex::new(Order::Rest),
        });
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let theirs = Arc::clone(&door);
        let work = move |[event]: &[OwnedFd; 1]| serve(&theirs, event);
        let thread = Companion::start("sandpipe-door", [event], work)?;
        Ok(Doorman { door, thread })
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.event().as_fd()
    }

    fn event(&self) -> &OwnedFd {
        let [event] = self.thread.descriptors();
        event
    }

    /// Watches the words until one moves or the time is up.
    pub(super) fn arm(&mut self, words: &[Watched<'_>], timeout: Duration) -> io::Result<()> {
        self.disarm()?;
        let until = Instant::now() + timeout;
        let words = words
            .iter()
            .map(|watched| (futex::address_of(watched.word), watched.seen))
            .collect();
        self.give(Order::Watch { words, until });
        Ok(())
    }

    /// Ends the watch; when it returns the thread sleeps on no word of the caller's. True if the
    /// descriptor was readable.
    pub(super) fn disarm(&mut self) -> io::Result<bool> {
        let number = self.give(Order::Rest);
        loop {
            let done = self.door.done.load(Ordering::SeqCst);
            if done == number {
                break;
            }
            futex::wait(&self.door.done, done as u32, REST);
        }
        match rustix::io::read(self.event(), &mut [0_u8; 8]) {
            Ok(_) => Ok(true),
            Err(rustix::io::Errno::AGAIN) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn give(&self, order: Order) -> u64 {
        let door = &self.door;
        let number = {
            let mut given = door.order.lock().unwrap_or_else(PoisonError::into_inner);
            *given = order;
            door.orders.fetch_add(1, Ordering::SeqCst) + 1
        };
        futex::wake(&door.orders, 1);
        number
    }
}

fn serve(door: &Door, event: &OwnedFd) {
    loop {
        let (number, order) = {
            let mut order = door.order.lock().unwrap_or_else(PoisonError::into_inner);
            let number = door.orders.load(Ordering::SeqCst);
            (number, std::mem::replace(&mut *order, Order::Rest))
        };
        match order {
            Order::End => return,
            Order::Watch { mut words, until } => {
                words.push((futex::address_of(&door.orders), number as u32));
                // An error means that the caller looks for itself.
                let left = until.saturating_duration_since(Instant::now());
                let _ = futex::wait_any_at(&words, left);
                if door.orders.load(Ordering::SeqCst) == number {
                    let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
                }
            }
            Order::Rest => {}
        }
        door.done.store(number, Ordering::SeqCst);
        futex::wake(&door.done, 1);
        futex::wait(&door.orders, number as u32, REST);
    }
}

impl Drop for Doorman {
    fn drop(&mut self) {
        if self.thread.is_here() {
            self.give(Order::End);
        }
    }
}

//! Dead letters, as the bus thread is asked for them.

use sandpipe_abi::MessageId;

use super::mailbox::Waiter;
use super::thread::BusThread;
use crate::core::Reply;
use crate::front_door::AppDeadLetters;

impl BusThread {
    pub(super) fn dead_letters(&self) -> AppDeadLetters {
        AppDeadLetters {
            app: self.app.to_string(),
            letters: self.core.dead_letters(),
            dropped: self.core.counters().dead_dropped,
        }
    }

    /// Sends the event of a letter again, if requests are taken now.
    pub(super) fn redrive(&mut self, event: MessageId, waiter: Waiter) {
        let refused = match &self.replacing {
            Some(_) => Some("another version is just taking over; try again".into()),
            None => self.not_ready(),
        };
        if let Some(reason) = refused {
            let _ = waiter.send(Reply::Unavailable(reason));
            return;
        }
        self.look_at_health();
        self.core.redrive(self.clock.now(), event, waiter);
    }
}

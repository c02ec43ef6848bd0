//! Dead letters of all applications, for the control socket.

use std::time::Duration;

use sandpipe_abi::MessageId;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::{AppDoor, FrontDoor};
use crate::bridge::Post;
use crate::core::{DeadLetter, Reply, WholeLetter};

/// How long a bus thread may take to answer: a new request is durable by then, or never.
const WAIT: Duration = Duration::from_secs(10);

/// The dead letters of one application.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppDeadLetters {
    /// The application.
    pub app: String,
    /// The letters, the oldest first.
    pub letters: Vec<DeadLetter>,
    /// Letters that made place for newer ones since the agent's start.
    pub dropped: u64,
}

/// One letter with its event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppDeadLetter {
    /// The application.
    pub app: String,
    /// Everything of the letter.
    #[serde(flatten)]
    pub letter: WholeLetter,
}

/// What became of one letter that was to be sent again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redriven {
    /// The application.
    pub app: String,
    /// The dead event.
    pub id: String,
    /// The new request, if it was accepted; its answer will be at `/results/` and this.
    pub sent: Option<String>,
    /// Why it was not.
    pub refused: Option<String>,
}

impl FrontDoor {
    /// The dead letters of an application, or of all. One that does not answer in time is left
    /// out.
    pub async fn dead_letters(&self, app: Option<&str>) -> Vec<AppDeadLetters> {
        let mut all = Vec::new();
        for door in self.named(app) {
            let (waiter, answer) = oneshot::channel();
            door.mailbox.post(Post::DeadLetters(waiter));
            if let Ok(Ok(letters)) = tokio::time::timeout(WAIT, answer).await {
                all.push(letters);
            }
        }
        all
    }

    /// The letter of this id, if one of the applications (or this one) has it.
    pub async fn dead_letter(&self, app: Option<&str>, id: &str) -> Option<AppDeadLetter> {
        let event = MessageId::parse(id)?;
        for door in self.named(app) {
            let (waiter, answer) = oneshot::channel();
            door.mailbox.post(Post::DeadLetter(event, waiter));
            if let Ok(Ok(Some(letter))) = tokio::time::timeout(WAIT, answer).await {
                let app = door.name.to_string();
                return Some(AppDeadLetter { app, letter });
            }
        }
        None
    }

    /// Deletes the letter of this id, durably; the application that had it, or `None`.
    ///
    /// # Errors
    /// An application that did not answer in time; the letter may be deleted or not.
    pub async fn delete_letter(
        &self,
        app: Option<&str>,
        id: &str,
    ) -> Result<Option<String>, String> {
        let Some(event) = MessageId::parse(id) else {
            return Ok(None);
        };
        for door in self.named(app) {
            let (waiter, answer) = oneshot::channel();
            door.mailbox.post(Post::DeleteLetter(event, waiter));
            match tokio::time::timeout(WAIT, answer).await {
                Ok(Ok(Reply::Accepted(_))) => return Ok(Some(door.name.to_string())),
                Ok(Ok(Reply::Unknown)) => {}
                _ => return Err(format!("{} does not answer; list the letters", door.name)),
            }
        }
        Ok(None)
    }

    /// Sends the event of this letter again, or those of all letters, one after the other. What
    /// finds no room stays on the list. Of a letter that was sent before, it says so again.
    pub async fn redrive(&self, app: Option<&str>, letter: Option<&str>) -> Vec<Redriven> {
        let mut done = Vec::new();
        for door in self.named(app) {
            let ids = match letter {
                Some(id) => vec![id.to_owned()],
                None => {
                    let listed = self.dead_letters(Some(&door.name)).await.into_iter();
                    let letters = listed.flat_map(|listed| listed.letters);
                    letters.map(|letter| letter.id).collect()
                }
            };
            for id in ids {
                done.extend(redrive(&door, id).await);
            }
        }
        done
    }

    fn named(&self, app: Option<&str>) -> Vec<AppDoor> {
        let mut doors = self.apps();
        doors.retain(|door| app.is_none_or(|name| name == &*door.name));
        doors
    }
}

/// What becomes of one letter; `None` if the application has no such letter.
async fn redrive(door: &AppDoor, id: String) -> Option<Redriven> {
    let (waiter, answer) = oneshot::channel();
    door.mailbox
        .post(Post::Redrive(MessageId::parse(&id)?, waiter));
    let (sent, refused) = match tokio::time::timeout(WAIT, answer).await {
        Ok(Ok(Reply::Accepted(again))) => (Some(again.to_string()), None),
        Ok(Ok(Reply::Unknown)) => return None,
        Ok(Ok(Reply::Unavailable(reason))) => (None, Some(reason.to_string())),
        Ok(Ok(Reply::Busy)) => (None, Some("too many requests are open; try again".into())),
        _ => (None, Some("no answer in time; list the letters".into())),
    };
    let app = door.name.to_string();
    Some(Redriven {
        app,
        id,
        sent,
        refused,
    })
}

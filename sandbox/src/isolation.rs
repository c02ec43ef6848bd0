use serde::{Deserialize, Serialize};

/// One protection and whether it holds here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IsolationItem {
    /// What it is, for example `pid namespace`.
    pub name: String,
    /// On or off.
    pub state: IsolationState,
    /// Why it is off, or how it is done; empty if there is nothing to say.
    pub reason: String,
    /// What to do to turn it on; empty if there is nothing to do.
    pub remedy: String,
}

/// Whether a protection holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IsolationState {
    /// It holds.
    On,
    /// It does not, for the reason beside it.
    Off,
}

impl IsolationItem {
    pub(crate) fn on(name: &str, reason: impl Into<String>) -> IsolationItem {
        IsolationItem {
            name: name.into(),
            state: IsolationState::On,
            reason: reason.into(),
            remedy: String::new(),
        }
    }

    pub(crate) fn off(
        name: &str,
        reason: impl ToString,
        remedy: impl Into<String>,
    ) -> IsolationItem {
        IsolationItem {
            name: name.into(),
            state: IsolationState::Off,
            reason: reason.to_string(),
            remedy: remedy.into(),
        }
    }

    /// Off because the spec says so.
    pub(crate) fn not_wanted(name: &str) -> IsolationItem {
        IsolationItem::off(name, "not wanted by the application", "")
    }
}

//! A prober in a sandbox of its own, and which parts of the sandbox hold.

use std::collections::BTreeMap;
use std::process::Stdio;

use sandpipe_sandbox::{IsolationState, SandboxSpec};
use serde_json::Value;

use super::{Agent, Scene, skip};

/// The parts of a sandbox, each with the reason if it is off.
pub type Parts = BTreeMap<String, Option<String>>;

/// What a kernel says that lacks something, or does not grant it: EPERM, EINVAL, ENOSYS,
/// EOPNOTSUPP. Any other reason is a mistake of ours and no reason to skip.
const LACKING: [&str; 4] = [
    "(os error 1)",
    "(os error 22)",
    "(os error 38)",
    "(os error 95)",
];

/// Has a prober obey in a sandbox of its own and returns what it wrote, with the sandbox's status.
pub fn probe(
    uid: Option<u32>,
    orders: &[String],
    change: impl FnOnce(&mut SandboxSpec),
) -> (Value, Parts) {
    let scene = Scene::owned_by(uid);
    let mut spec = scene.prober("app", orders);
    change(&mut spec);
    let mut agent = Agent::start_as(&spec, uid, Stdio::inherit());
    let said = scene.said("app");
    let isolation = agent.status().isolation.into_iter();
    let on = isolation.map(|item| {
        let off = item.state == IsolationState::Off;
        (item.name, off.then_some(item.reason))
    });
    let on = on.collect();
    agent.shut_down();
    (said, on)
}

pub fn holds(on: &Parts, part: &str) -> bool {
    let Some(reason) = &on[part] else { return true };
    let lacking = LACKING.iter().any(|errno| reason.contains(errno));
    assert!(lacking, "{part}: {reason}");
    skip(&format!("{part}: {reason}"));
    false
}

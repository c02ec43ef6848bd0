//! Which files the agent can reach, by Landlock: its own directories, and what it reads.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use landlock::{
    Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, Ruleset, RulesetAttr,
};

use super::AgentRights;
use super::files::{DEVICES, KNOWN, SYSTEM, made};

/// A ruleset of what an agent reaches. It executes nothing, whatever it may read.
///
/// No scope of signals: it ends the inits of its sandboxes, which are outside.
pub(super) fn ruleset(rights: &AgentRights) -> io::Result<OwnedFd> {
    let root = [Path::new("/")];
    let read: Vec<&Path> = match &rights.read {
        Some(read) => {
            let declared = read.iter().map(AsRef::as_ref);
            declared.chain(SYSTEM.map(Path::new)).collect()
        }
        None => root.to_vec(),
    };
    let own = [rights.run_dir.as_path(), rights.data_dir.as_path()];
    let write = own.into_iter().chain(DEVICES.map(Path::new));
    let rules = read
        .into_iter()
        .map(|path| (path, AccessFs::ReadFile | AccessFs::ReadDir))
        .chain(write.map(|path| (path, written())));
    made(rules, || {
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(KNOWN))?
            .handle_access(AccessNet::BindTcp)?;
        if !rights.connects {
            ruleset = ruleset.handle_access(AccessNet::ConnectTcp)?;
        }
        ruleset.create()
    })
}

/// Files, directories and sockets; no devices, no links, nothing to execute.
fn written() -> BitFlags<AccessFs> {
    let never = AccessFs::Execute
        | AccessFs::MakeChar
        | AccessFs::MakeBlock
        | AccessFs::MakeFifo
        | AccessFs::MakeSym
        | AccessFs::IoctlDev;
    AccessFs::from_all(KNOWN) & !never
}

pub(super) fn describe(rights: &AgentRights, version: u32) -> String {
    let read = match &rights.read {
        Some(read) => format!("reads the system's and {} more", read.len()),
        None => "reads what its user may ([own_rights] read bounds it)".into(),
    };
    let tcp = match (version, rights.connects) {
        (..4, _) => "TCP is not handled",
        (_, true) => "binds no TCP port",
        (_, false) => "binds and connects no TCP port",
    };
    format!(
        "Landlock ABI {version}; writes {} and {}, {read}, executes nothing, {tcp}",
        rights.run_dir.display(),
        rights.data_dir.display(),
    )
}

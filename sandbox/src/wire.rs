//! Messages over the sandbox's socket: one JSON object a packet, descriptors beside it.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

use crate::{KernelLimit, SandboxStatus, WorkerActivity};

/// The kernel takes at most 253 descriptors a message.
pub(crate) const FDS_MAX: usize = 160;
/// Longest packet; a status with the tails of many failed workers is the longest there is.
pub(crate) const PACKET_BYTES_MAX: usize = 160 << 10;

/// What an agent, or a tool of the same user, asks of init.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub(crate) enum Request {
    /// Become the owner, with the agent's standard error beside it: older owners are fenced.
    Claim,
    /// Ask for [`SandboxStatus`].
    Status,
    /// End a worker's family for good; only for the owner.
    Quarantine {
        /// Index of the worker in the spec.
        worker: usize,
        /// What it did, at most 1 KiB.
        reason: String,
    },
    /// What each worker has to do.
    Activity,
    /// How the kernel's limits stand.
    Limits,
    /// End a worker that is idle, until a message comes for it; only for the owner.
    Unload {
        /// Index of the worker in the spec.
        worker: usize,
    },
    /// Start a worker that was unloaded; only for the owner.
    Load {
        /// Index of the worker in the spec.
        worker: usize,
    },
    /// End: SIGTERM to the workers, SIGKILL after the time limit.
    Shutdown {
        /// How long the workers may take.
        timeout_ms: u64,
    },
}

/// What init answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub(crate) enum Reply {
    /// The sandbox is the asker's; its attach socket lies beside the message.
    Claimed { epoch: u64, spec_hash: u64 },
    /// The state, with a pidfd beside it for each worker that has a process, in their order.
    Status(SandboxStatus),
    /// The worker is being ended, and will not be started again.
    Quarantined,
    /// In the spec's order.
    Activity { workers: Vec<WorkerActivity> },
    /// Those that can be told.
    Limits { limits: Vec<KernelLimit> },
    /// The worker is being ended or started, or it was no time for that: the state tells.
    Noted,
    /// Init will end.
    ShuttingDown,
    /// The request was not understood or not allowed.
    Refused { reason: String },
}

/// Sends one packet. Never raises SIGPIPE; on a non-blocking socket never blocks.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    assert!(
        fds.len() <= FDS_MAX,
        "{} descriptors in one message",
        fds.len()
    );
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        let pushed = control.push(SendAncillaryMessage::ScmRights(fds));
        assert!(pushed, "the buffer holds FDS_MAX descriptors");
    }
    let bytes = [IoSlice::new(bytes)];
    rustix::io::retry_on_intr(|| sendmsg(socket, &bytes, &mut control, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// Receives one packet and its descriptors; `None` if the other end has hung up.
///
/// # Errors
/// `WouldBlock` on a non-blocking socket without one; `InvalidData` if it was cut short.
pub(crate) fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; PACKET_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let message = loop {
        match recvmsg(socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC) {
            // With a time limit on the socket the kernel does not go on by itself.
            Err(rustix::io::Errno::INTR) => {}
            result => break result?,
        }
    };
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = part {
            fds.extend(received);
        }
    }
    if message
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a message was cut short: no descriptor is left, or it is not ours",
        ));
    }
    if message.bytes == 0 {
        return Ok(None);
    }
    bytes.truncate(message.bytes);
    Ok(Some((bytes, fds)))
}

/// Sends a request or a reply.
pub(crate) fn send_json(
    socket: impl AsFd,
    message: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    send(socket.as_fd(), &serde_json::to_vec(message)?, fds)
}

/// Parses a packet as either end of the socket would; whether it is a message of theirs. For the
/// fuzzer only.
#[must_use]
pub fn parse_packet(bytes: &[u8]) -> bool {
    let request = serde_json::from_slice::<Request>(bytes);
    request.is_ok() || serde_json::from_slice::<Reply>(bytes).is_ok()
}

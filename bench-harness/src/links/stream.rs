//! A pipe and a Unix socket: two copies through the kernel, and a sleep whenever nothing is there.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};
use rustix::pipe::{fcntl_setpipe_size, pipe};
use sandpipe_link::{Link, Seen, read};

use crate::error::BenchError;

/// What the kernel carries the bytes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Two pipes.
    Pipe,
    /// A pair of connected stream sockets.
    UnixSocket,
}

/// Bytes that a pipe is asked to hold: as many as a process may without privileges.
const PIPE_BYTES: usize = 1 << 20;
/// Bytes that a socket is asked to hold.
const SOCKET_BYTES: usize = 4 << 20;

/// One end.
#[derive(Debug)]
pub struct StreamEnd {
    reader: File,
    writer: File,
    message: Vec<u8>,
}

impl StreamEnd {
    /// The file that messages of `len` bytes come from, and the one they go to.
    #[must_use]
    pub fn new(reader: OwnedFd, writer: OwnedFd, len: usize) -> StreamEnd {
        StreamEnd {
            reader: File::from(reader),
            writer: File::from(writer),
            message: vec![0; len],
        }
    }
}

/// Both ends, for messages of `len` bytes.
///
/// # Errors
/// The system's, e.g. too many open files.
pub fn ends(kind: Kind, len: usize) -> Result<[StreamEnd; 2], BenchError> {
    match kind {
        Kind::Pipe => {
            let ((there_out, there_in), (back_out, back_in)) = (wide_pipe()?, wide_pipe()?);
            let first = StreamEnd::new(back_out, there_in, len);
            Ok([first, StreamEnd::new(there_out, back_in, len)])
        }
        Kind::UnixSocket => {
            let flags = SocketFlags::CLOEXEC;
            let (one, two) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)
                .map_err(|e| BenchError::os("socketpair", e.into()))?;
            Ok([socket_end(one, len)?, socket_end(two, len)?])
        }
    }
}

/// A pipe that holds as much as it may: its reading end and its writing end.
///
/// # Errors
/// The system's.
pub fn wide_pipe() -> Result<(OwnedFd, OwnedFd), BenchError> {
    let (read, write) = pipe().map_err(|e| BenchError::os("pipe", e.into()))?;
    // A smaller one works as well: it only takes more turns.
    let _ = fcntl_setpipe_size(&write, PIPE_BYTES);
    Ok((read, write))
}

fn socket_end(socket: OwnedFd, len: usize) -> Result<StreamEnd, BenchError> {
    // The kernel cuts it to its own limit.
    let _ = sockopt::set_socket_send_buffer_size(&socket, SOCKET_BYTES);
    let other = socket.try_clone().map_err(|e| BenchError::os("dup", e))?;
    Ok(StreamEnd::new(socket, other, len))
}

impl Link for StreamEnd {
    type Error = BenchError;

    fn send(&mut self, message: &[u8]) -> Result<(), BenchError> {
        self.writer
            .write_all(message)
            .map_err(|e| BenchError::os("write", e))
    }

    fn receive(&mut self) -> Result<Seen, BenchError> {
        self.reader
            .read_exact(&mut self.message)
            .map_err(|e| BenchError::os("read", e))?;
        Ok(read(&self.message))
    }

    fn try_send(&mut self, message: &[u8]) -> Result<bool, BenchError> {
        self.send(message).map(|()| true)
    }

    fn out_of_order(expected: u64, seen: Seen) -> BenchError {
        let detail = format!("message {} came in place of {expected}", seen.first);
        BenchError::peer("the stream", detail)
    }
}

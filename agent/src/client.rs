//! A small HTTP/1.1 client for a front door: one request a connection, whole bodies.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(5);

/// The longest head that is read.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// What the front door answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Header names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// The first header of that (lower-case) name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The body as text, bytes that are none replaced.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Sends one request and waits for the whole answer, up to `patience` without a byte.
///
/// # Errors
/// The connection's, and `InvalidData` for an answer that is not HTTP.
pub fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
    patience: Duration,
) -> io::Result<Response> {
    let mut stream = TcpStream::connect_timeout(&address, CONNECT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patience))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    stream.write_all(head.as_bytes())?;
    // A server that refuses the request may close before it has read the body: its answer counts.
    let sent = stream.write_all(body);
    match read_response(&mut stream) {
        Ok(response) => Ok(response),
        Err(error) => Err(sent.err().unwrap_or(error)),
    }
}

fn read_response(stream: &mut TcpStream) -> io::Result<Response> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 16 << 10];
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        let read = read_some(stream, &mut buffer)?;
        if read == 0 || bytes.len() > HEAD_BYTES_MAX {
            return Err(invalid("the connection ended within the head"));
        }
        bytes.extend_from_slice(&buffer[..read]);
    };
    let mut body = bytes.split_off(end + 4);
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let response = Response {
        status: status.ok_or_else(|| invalid("no status line"))?,
        headers,
        body: Vec::new(),
    };
    let length = response
        .header("content-length")
        .and_then(|text| text.parse::<usize>().ok());
    while length.is_none_or(|length| body.len() < length) {
        let read = read_some(stream, &mut buffer)?;
        if read == 0 {
            break;
        }
        body.extend_from_slice(&buffer[..read]);
    }
    if length.is_some_and(|length| body.len() != length) {
        return Err(invalid("the connection ended within the body"));
    }
    Ok(Response { body, ..response })
}

/// A read with a time-out is not taken up again by the kernel after a stop or a signal.
fn read_some(stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Is interrupted once before each byte.
    struct Interrupted(bool);

    impl Read for Interrupted {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0 = !self.0;
            if self.0 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            buffer[0] = b'x';
            Ok(1)
        }
    }

    #[test]
    fn an_interrupted_read_goes_on() {
        let mut buffer = [0; 4];
        assert_eq!(
            read_some(&mut Interrupted(false), &mut buffer).unwrap(),
            1,
            "the signal ended the read"
        );
        assert_eq!(buffer[0], b'x');
    }
}

//! A small HTTP/1.1 client with kept-alive connections: enough for the front door's answers, and
//! nothing in it that starts a thread.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use crate::clock::PEER_SILENCE_MAX;
use crate::error::BenchError;

/// Longest answer that is taken.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Header names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The first header of that name (given in lower case).
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A kept-alive connection.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    address: String,
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects to `host:port`.
    ///
    /// # Errors
    /// If nobody listens there.
    pub fn open(address: &str) -> Result<Connection, BenchError> {
        let os = |e| BenchError::os(format!("connect to {address}"), e);
        let stream = TcpStream::connect(address).map_err(os)?;
        stream.set_nodelay(true).map_err(os)?;
        stream
            .set_read_timeout(Some(PEER_SILENCE_MAX))
            .map_err(os)?;
        Ok(Connection {
            stream,
            address: address.to_owned(),
            buffer: Vec::new(),
        })
    }

    /// Sends a POST and waits for its answer.
    ///
    /// # Errors
    /// If the peer closes, is silent for a long time, or answers no HTTP.
    pub fn post(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer, BenchError> {
        self.send(path, headers, body)?;
        self.answer()
    }

    /// Sends a GET and waits for its answer.
    ///
    /// # Errors
    /// As of [`Connection::post`].
    pub fn get(&mut self, path: &str) -> Result<Answer, BenchError> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", self.address);
        self.stream
            .write_all(request.as_bytes())
            .map_err(|e| BenchError::os("send a request", e))?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Answer, BenchError> {
        loop {
            if let Some(answer) = self.take_answer()? {
                return Ok(answer);
            }
            self.read_more()?;
        }
    }

    /// Sends a POST without waiting.
    ///
    /// # Errors
    /// If the peer has closed.
    pub fn send(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<(), BenchError> {
        let mut request = format!("POST {path} HTTP/1.1\r\nhost: {}\r\n", self.address);
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
        let mut bytes = request.into_bytes();
        bytes.extend_from_slice(body);
        self.stream
            .write_all(&bytes)
            .map_err(|e| BenchError::os("send a request", e))
    }

    /// Reads what is there; blocks if nothing is.
    ///
    /// # Errors
    /// If the peer has closed or is silent for a long time.
    pub fn read_more(&mut self) -> Result<(), BenchError> {
        let mut bytes = [0; 16 << 10];
        let got = self
            .stream
            .read(&mut bytes)
            .map_err(|e| BenchError::os("read an answer", e))?;
        if got == 0 {
            return Err(BenchError::peer(&self.address, "closed the connection"));
        }
        self.buffer.extend_from_slice(&bytes[..got]);
        Ok(())
    }

    /// The next whole answer among what was read.
    ///
    /// # Errors
    /// If it is no HTTP.
    pub fn take_answer(&mut self) -> Result<Option<Answer>, BenchError> {
        match parse(&self.buffer) {
            Ok(None) => Ok(None),
            Ok(Some((answer, used))) => {
                self.buffer.drain(..used);
                Ok(Some(answer))
            }
            Err(detail) => Err(BenchError::peer(&self.address, detail)),
        }
    }

    /// How long a read may block.
    ///
    /// # Errors
    /// The system's.
    pub fn set_read_timeout(&self, timeout: Duration) -> Result<(), BenchError> {
        self.stream
            .set_read_timeout(Some(timeout))
            .map_err(|e| BenchError::os("set a read timeout", e))
    }

    /// The socket, to wait on.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// The first answer in `bytes` and how many of them it is, `None` if it is not whole yet.
fn parse(bytes: &[u8]) -> Result<Option<(Answer, usize)>, String> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| "a header that is no text")?;
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let status = first
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3)?.parse().ok())
        .ok_or_else(|| format!("answered \"{first}\", no HTTP/1.1"))?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let answer = Answer {
        status,
        headers,
        body: Vec::new(),
    };
    let length = match answer.header("content-length") {
        Some(length) => length
            .parse::<usize>()
            .map_err(|_| "a length that is no number")?,
        None if answer.header("transfer-encoding").is_some() => {
            return Err("a chunked answer, which this client does not read".into());
        }
        None => 0,
    };
    if length > ANSWER_BYTES_MAX {
        return Err(format!("an answer of {length} bytes"));
    }
    let (start, stop) = (end + 4, end + 4 + length);
    let Some(body) = bytes.get(start..stop) else {
        return Ok(None);
    };
    Ok(Some((
        Answer {
            body: body.to_vec(),
            ..answer
        },
        stop,
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;

    #[test]
    fn an_answer_is_taken_when_it_is_whole_and_the_next_one_stays() {
        let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\n\r\nhelloHTTP/1.1 503 ";
        for cut in 0..49 {
            assert_eq!(parse(&bytes[..cut.min(47)]).unwrap(), None, "at {cut}");
        }
        let (answer, used) = parse(bytes).unwrap().unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, "hello"));
        assert_eq!(answer.header("x-a"), Some("b"));
        assert_eq!(&bytes[used..], b"HTTP/1.1 503 ");
    }

    #[test]
    fn what_is_no_http_is_refused() {
        assert!(
            parse(b"SMTP ready\r\n\r\n")
                .unwrap_err()
                .contains("SMTP ready")
        );
        assert!(parse(b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n").is_err());
        let huge = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 1_u64 << 40);
        assert!(parse(huge.as_bytes()).unwrap_err().contains("bytes"));
    }

    #[test]
    fn two_posts_share_one_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut writer = stream;
            for _ in 0..2 {
                let mut length = 0;
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).unwrap();
                    if let Some(value) = line.strip_prefix("content-length: ") {
                        length = value.trim().parse().unwrap();
                    }
                    if line == "\r\n" {
                        break;
                    }
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                write!(
                    writer,
                    "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n"
                )
                .unwrap();
                writer.write_all(&body).unwrap();
            }
        });
        let mut connection = Connection::open(&address).unwrap();
        for body in ["one", "two"] {
            assert_eq!(
                connection.post("/", &[], body.as_bytes()).unwrap().text(),
                body
            );
        }
        server.join().unwrap();
    }
}

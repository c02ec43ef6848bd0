//! The judge of the kill test: reads what the agent received from its standard input and counts
//! what is lost, doubled, torn, invented or early.
//!
//! It knows nothing of the bus, shares no code with it or with the producers, and trusts no count
//! of theirs: a message carries its number, its hop and a CRC-32C in its payload, numbers have no
//! gap, and the last message says that it is the last. Exit code 0: no violation.
//!
//! A record is a tag byte. Tag 1, a message: source, kind (`u64`), id, root, parent (`u128`),
//! payload length (`u64`), the payload. Tag 2: every lane has been seen empty since the message
//! before. All numbers are little-endian.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io::{self, BufReader, ErrorKind, Read};
use std::process::ExitCode;

/// The source, the first and the second grain.
const HOPS: usize = 3;

/// The kind of an answer: what the last grain publishes.
const KIND_FINAL: u64 = 2;

/// One message as the agent received it.
struct Record {
    source: u64,
    kind: u64,
    id: u128,
    root: u128,
    parent: u128,
    payload: Vec<u8>,
}

/// What one request has shown so far: id and parent by hop, once they were seen.
#[derive(Default)]
struct Request {
    hops: [Option<(u128, u128)>; HOPS],
}

#[derive(Default)]
struct Judge {
    open: HashMap<u64, Request>,
    /// By number: whether all hops were seen. Complete requests are not kept.
    complete: Vec<bool>,
    unconfirmed: Vec<u64>,
    last: Option<u64>,
    messages: u64,
    doubled: u64,
    torn: u64,
    invented: u64,
    early: u64,
}

impl Judge {
    fn message(&mut self, record: &Record) {
        self.messages += 1;
        let Some((number, hop, last)) = open_payload(&record.payload) else {
            self.torn += 1;
            return;
        };
        let expected_kind = if hop as usize + 1 == HOPS {
            KIND_FINAL
        } else {
            1
        };
        let honest = record.root == u128::from(number)
            && record.source == hop + 1
            && record.kind == expected_kind
            && (hop > 0 || (record.id == record.root && record.parent == 0));
        if !honest || number == 0 || hop as usize >= HOPS {
            self.invented += 1;
            return;
        }
        if last {
            self.last = Some(number);
        }
        if record.kind == KIND_FINAL {
            self.unconfirmed.push(number);
        }
        let request = self.open.entry(number).or_default();
        let seen = &mut request.hops[hop as usize];
        if seen.is_some() || is_set(&self.complete, number) {
            self.doubled += 1;
            return;
        }
        *seen = Some((record.id, record.parent));
        if let [Some(first), Some(second), Some(third)] = request.hops {
            // Each is the child of the one before.
            self.invented += u64::from(second.1 != first.0 || third.1 != second.0);
            self.open.remove(&number);
            set(&mut self.complete, number);
        }
    }

    /// Every lane was empty after the answers came, so their copies must be there.
    fn all_seen(&mut self) {
        for number in self.unconfirmed.drain(..) {
            self.early += u64::from(!is_set(&self.complete, number));
        }
    }

    /// The verdict's line, and whether it is good.
    fn verdict(&self) -> (String, bool) {
        let last = self.last.unwrap_or(0);
        let missing = |number: u64| {
            let seen = self.open.get(&number).map_or(0, |request| {
                request.hops.iter().filter(|hop| hop.is_some()).count()
            });
            HOPS - seen
        };
        let open = (1..=last).filter(|&number| !is_set(&self.complete, number));
        let lost: usize = open.map(missing).sum();
        let beyond = self.complete.iter().skip(last as usize + 1);
        let beyond = beyond.filter(|&&complete| complete).count()
            + self.open.keys().filter(|&&number| number > last).count();
        let invented = self.invented + beyond as u64;
        let Judge {
            messages,
            doubled,
            torn,
            early,
            ..
        } = self;
        let line = format!(
            "{messages} messages of {last} requests: lost {lost}, doubled {doubled}, torn {torn}, \
             invented {invented}, answers before their copies {early}"
        );
        let violations = lost as u64 + doubled + torn + invented + early;
        (line, violations == 0 && last > 0)
    }
}

fn is_set(flags: &[bool], number: u64) -> bool {
    flags.get(number as usize).copied().unwrap_or(false)
}

fn set(flags: &mut Vec<bool>, number: u64) {
    let at = number as usize;
    if flags.len() <= at {
        flags.resize(at + 1, false);
    }
    flags[at] = true;
}

/// Number, hop and whether it is the last, of a payload whose check sum is right.
fn open_payload(payload: &[u8]) -> Option<(u64, u64, bool)> {
    let (content, sum) = payload.split_last_chunk::<4>()?;
    if crc32c(content) != u32::from_le_bytes(*sum) || content.len() < 24 {
        return None;
    }
    let word = |at: usize| {
        let bytes: [u8; 8] = content[at..at + 8].try_into().expect("eight bytes");
        u64::from_le_bytes(bytes)
    };
    Some((word(0), word(8), word(16) != 0))
}

/// CRC-32C (Castagnoli), one table, written from its polynomial.
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let mut crc = byte as u32;
            let mut bit = 0;
            while bit < 8 {
                crc = (crc >> 1) ^ (0x82f6_3b78 * (crc & 1));
                bit += 1;
            }
            table[byte] = crc;
            byte += 1;
        }
        table
    };
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (crc >> 8) ^ TABLE[((crc ^ u32::from(byte)) & 0xff) as usize]
    })
}

/// The next record; `Ok(None)` for a look that found every lane empty.
fn read_record(input: &mut impl Read) -> io::Result<Option<Record>> {
    let mut tag = [0];
    input.read_exact(&mut tag)?;
    if tag[0] != 1 {
        return Ok(None);
    }
    let (source, kind) = (read_u64(input)?, read_u64(input)?);
    let (id, root, parent) = (read_u128(input)?, read_u128(input)?, read_u128(input)?);
    let mut payload = vec![0; read_u64(input)? as usize];
    input.read_exact(&mut payload)?;
    Ok(Some(Record {
        source,
        kind,
        id,
        root,
        parent,
        payload,
    }))
}

fn read_u64(input: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    input.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn read_u128(input: &mut impl Read) -> io::Result<u128> {
    let mut bytes = [0; 16];
    input.read_exact(&mut bytes)?;
    Ok(u128::from_le_bytes(bytes))
}

fn main() -> ExitCode {
    let mut input = BufReader::with_capacity(1 << 20, io::stdin().lock());
    let mut judge = Judge::default();
    loop {
        match read_record(&mut input) {
            Ok(Some(record)) => judge.message(&record),
            Ok(None) => judge.all_seen(),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
            Err(error) => {
                eprintln!("cannot read the records: {error}");
                return ExitCode::from(2);
            }
        }
    }
    let (line, good) = judge.verdict();
    println!("{line}");
    ExitCode::from(u8::from(!good))
}
